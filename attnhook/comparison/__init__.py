"""Models beside each other: the same photos, one pixel grid, numbers with controls."""
