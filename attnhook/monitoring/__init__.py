"""Attention while training: a monitor that looks at fixed photos, and writers for its numbers and pictures."""
