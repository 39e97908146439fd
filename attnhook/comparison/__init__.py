"""Comparing models: the same photos, one pixel grid, numbers with controls."""
