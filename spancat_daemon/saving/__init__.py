"""For those who hold a trained pipeline in memory, and want it live: ``save``.

Nothing here imports spaCy: whoever has a pipeline has done so.
"""

from spancat_daemon.saving.forced import save

__all__ = ["save"]
