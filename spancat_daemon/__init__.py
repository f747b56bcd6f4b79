"""spancat-daemon: deploys spaCy span categorizers from running trainings, whole and atomically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spancat_daemon.saving import save
    from spancat_daemon.serving import HotModel, Release, live, load, load_bytes, releases, to_bytes

__version__ = "0.1.0"

__all__ = ["HotModel", "Release", "live", "load", "load_bytes", "releases", "save", "to_bytes"]


def __getattr__(name: str) -> Any:
    """Import what is for those who serve or save when it is first asked for: the program does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # only needed here

    part = "saving" if name == "save" else "serving"
    found = globals()[name] = getattr(importlib.import_module(f"spancat_daemon.{part}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
