"""What keeps serving whole across ``fork()``: the locks, and who has to be told in the child.

Threads do not live on in a forked child, but what they held does. So a fork waits until no load is under way
and no state is half changed; then the child begins with neither.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # its fork hook must be registered, and so nest, before ours
import logging
import os
import threading
import weakref
from typing import Final, Protocol

logger = logging.getLogger(__name__)

FORK_PATIENCE_S: Final = 60.0
"""How long a fork waits for a load; one that takes longer leaves its memory and its lease to the child."""


class Forked(Protocol):
    """Something that goes on in the child of a fork."""

    def after_fork(self) -> None:
        """Called in the child's only thread."""


class _Locks:
    """Two locks of the process, taken in this order.

    Attributes:
        loading: held while a model is loaded and warmed up; one at a time, for srsly switches the garbage
            collector of the whole process off and on.
        state: held for a few assignments. Reentrant, for the garbage collector may close somebody's iterator
            in the midst of it.
    """

    def __init__(self) -> None:
        self.loading = threading.RLock()
        self.state = threading.RLock()
        self.waited = False


locks: Final = _Locks()
_followers: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()


def follow(follower: Forked) -> None:
    """Tell it of every fork in the child, for as long as it lives."""
    with locks.state:
        _followers.add(follower)


def followers() -> list[Forked]:
    """Return all that live."""
    with locks.state:
        return list(_followers)


def _before() -> None:
    waited = locks.loading.acquire(timeout=FORK_PATIENCE_S)
    locks.state.acquire()
    locks.waited = waited


def _in_parent() -> None:
    waited = locks.waited
    locks.state.release()
    if waited:
        locks.loading.release()


def _in_child() -> None:
    if locks.waited:
        _in_parent()
    else:
        locks.state.release()
        locks.loading = threading.RLock()
    for follower in followers():
        try:
            follower.after_fork()
        except Exception:  # each of the others has to be told all the same
            logger.exception("could not go on in a forked child")


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
