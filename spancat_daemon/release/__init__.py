"""Releases: made on disk without ever being half there, swapped live, kept, and let go."""
