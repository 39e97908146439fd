"""Comparisons of models over the same photos: what is measured, and the report's page."""
