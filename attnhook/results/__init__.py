"""One call from a model and photos to pictures."""
