"""For those who serve: releases read whole, held for as long as they are used, and changed under way.

Nothing here imports spaCy before a model is to be loaded.
"""

from spancat_daemon.release.survey import Release
from spancat_daemon.serving.hot import HotModel
from spancat_daemon.serving.listing import live, releases
from spancat_daemon.serving.loading import load
from spancat_daemon.serving.weights import load_bytes, to_bytes

__all__ = ["HotModel", "Release", "live", "load", "load_bytes", "releases", "to_bytes"]
