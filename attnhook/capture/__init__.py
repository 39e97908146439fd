"""How attention is read off a running model. Knows nothing of any library's models."""
