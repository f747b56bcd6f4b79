"""The service: its loop, its workers, and the socket that commands talk to it through."""
