"""Running a model over photos: targets, training state, fingerprints, `describe` and `verify`."""
