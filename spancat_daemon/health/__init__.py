"""Whether what serves a release is well after a swap."""
