"""What the service has no use for, and its libraries import all the same, is left out of its memory.

To be called in the service's own process alone, before anything of it is imported: other programs that use
this package decide for themselves what they import.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import inspect
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ARENA_MAX: Final = -8  # M_ARENA_MAX, see mallopt(3)


class _Postponed(ModuleType):
    """Stands for a package until somebody wants more of it than it was given: then that is imported."""

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.find_spec(name)
        if self.__spec__ is not None and self.__spec__.submodule_search_locations is not None:
            self.__path__ = self.__spec__.submodule_search_locations  # its modules can be imported as ever
        vars(self).update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def spare() -> None:
    """Imports the libraries without what only others need of them, and keeps the allocator to one arena.

    * structlog imports rich, if it is there, for tracebacks that the log has its own form of: 4 MB.
    * structlog and APScheduler import asyncio, for loggers and jobs that await, of which there are none:
      2 MB. Whoever uses it does get it.
    * pydantic searches all that is installed for plugins, and imports what reads their descriptions: 2 MB.
    * glibc's malloc gives threads an arena each, which keep what was freed in them: 3 MB. Snapshots are few
      at a time, and allocate little.
    """
    _keep_to_one_arena()
    if "asyncio" not in sys.modules:
        # APScheduler asks of each job whether it is one to be awaited
        sys.modules["asyncio"] = _Postponed("asyncio", iscoroutinefunction=inspect.iscoroutinefunction)
    with _without("rich"), _environment("PYDANTIC_DISABLE_PLUGINS", "__all__"):
        importlib.import_module("structlog")
        importlib.import_module("spancat_daemon.config.load")


def give_back() -> None:
    """Returns to the system what was freed; to be called after a burst of work. Takes some milliseconds."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _keep_to_one_arena() -> None:
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """As if a package were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # see the import system's reference, 5.3.1
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]  # what is started later is to find what the user left
        else:
            os.environ[name] = before
