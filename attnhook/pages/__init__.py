"""Self-contained HTML pages: the viewer and the comparison report."""
