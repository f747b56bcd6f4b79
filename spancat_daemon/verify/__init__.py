"""Whether a release is what its manifest says (digests), and loads with spaCy (in a child process)."""
