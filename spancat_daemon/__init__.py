"""spancat-daemon: deploys spaCy span categorizers from running trainings, whole and atomically."""

__version__ = "0.1.0"
