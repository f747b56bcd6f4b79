"""What the service has no use for, and its libraries import all the same, is left out of its memory.

To be called in the service's own process alone, before anything of it is imported: other programs that use
this package decide for themselves what they import.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config.unplugged import without_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIBRARIES: Final = (
    "structlog",
    "apscheduler.schedulers.background",
    "watchdog.observers.inotify_c",
    "spancat_daemon.config.load",  # pydantic, which looks for plugins when it is first used
)
_ARENA_MAX: Final = -8  # M_ARENA_MAX, see mallopt(3)


class _Postponed(ModuleType):
    """What is imported in place of a module; whoever wants more than it was given gets the real one's."""

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__(name)
        vars(self).update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def spare() -> None:
    """Imports the libraries without what only others need of them, and keeps the allocator to one arena.

    * structlog imports rich, if it is there, for tracebacks that the log has its own form of: 4 MB.
    * structlog and APScheduler import asyncio, for loggers and jobs that await, of which there are none:
      2 MB. Whoever uses it does get it.
    * pydantic and APScheduler search all that is installed for plugins, and import what reads descriptions of
      packages: 2 MB, and a tenth of a second. A daemon has no plugins.
    * APScheduler imports pools of processes and the names that other systems have for time zones: 1 MB. It
      gets an executor and a zone from `triggers.schedule`.
    * watchdog imports what finds libraries for ctypes, and that what packs archives: 1 MB.
    * glibc's malloc gives threads an arena each, which keep what was freed in them: 3 MB. Snapshots are few
      at a time, and allocate little.
    """
    _keep_to_one_arena()
    # APScheduler asks of each job whether it is one to be awaited
    without_loops = _Postponed("asyncio", iscoroutinefunction=inspect.iscoroutinefunction)
    without_metadata = _Postponed(
        "importlib.metadata",
        entry_points=lambda **_: (),
        version=lambda _name: "3",  # APScheduler's own, which nobody asks
        PackageNotFoundError=ImportError,
    )
    without_pools = ModuleType("apscheduler.executors.pool")
    vars(without_pools)["ThreadPoolExecutor"] = None
    with (
        _instead("rich", None),
        _instead("asyncio", without_loops),
        _instead("importlib.metadata", without_metadata),
        _instead("apscheduler.executors.pool", without_pools),
        _instead("tzlocal", _Postponed("tzlocal", get_localzone=_local_zone)),
        _instead("shutil", _Postponed("shutil")),
        _instead("tempfile", _Postponed("tempfile")),
        without_plugins(),
    ):
        for name in _LIBRARIES:
            importlib.import_module(name)


def serve(path: Path | None) -> int:
    """Runs the service, spared, on a configuration file or the first that is found; its exit code."""
    spare()
    from spancat_daemon.daemon import service  # noqa: PLC0415  # the whole daemon, which must find it spared

    return service.serve(path)


def _local_zone() -> Any:
    return importlib.import_module("tzlocal").get_localzone()


def give_back() -> None:
    """Returns to the system what was freed; to be called after a burst of work. Takes some milliseconds."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _keep_to_one_arena() -> None:
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@contextlib.contextmanager
def _instead(name: str, stand_in: ModuleType | None) -> Iterator[None]:
    """Has imports of a module that was not imported yet find something else, or with None no such module."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in  # type: ignore[assignment]  # None: the import system's reference, 5.3.1
    try:
        yield
    finally:
        sys.modules.pop(name, None)
