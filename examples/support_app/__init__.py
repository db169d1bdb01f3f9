"""A support assistant that serves what Touchstone releases: an example to copy from."""
