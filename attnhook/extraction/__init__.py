"""Data-set scale: attention of as many photos as there are, into files that can be read while they grow."""
