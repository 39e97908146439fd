"""From captured attention to patch maps and numbers. Pure functions."""
