"""The viewer: one self-contained HTML file in which people explore the attention of a model over their photos."""
