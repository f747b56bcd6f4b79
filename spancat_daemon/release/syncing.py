"""Making several files or directories stay at once.

Each is still synced by a call of its own, whose error is its own; but calls that wait at the same time share
commits of the journal and flushes of the device. Measured for the 13 files of a pipeline on a virtual disk:
ext4 73 ms one after the other, 14 at once; xfs 67 and 19. Not so btrfs, which lets threads that sync beside
each other wait for a tick where it does not know its device to be an SSD (`log_multiple_pids` in its
tree-log.c): 22 ms one after the other, 39 at once; so there they are made one after the other. One ``syncfs``
for all of them would wait for what other programs have written too, which may be gigabytes of the next save.
"""

from __future__ import annotations

from concurrent.futures import wait
from typing import TYPE_CHECKING, Final

from spancat_daemon.release.durability import file_system_type
from spancat_daemon.release.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

AT_ONCE: Final = 8
"""How many calls wait at the same time, beside one of whoever waits for them."""

_BTRFS: Final = 0x9123683E  # linux/magic.h

_THREADS: Final = Threads("sync", at_most=AT_ONCE)


def sync_all(syncs: Sequence[Callable[[], None]], *, on: Path) -> None:
    """Make all the calls, several at once where that is faster, and return when each has ended.

    Args:
        syncs: each makes something stay.
        on: a path on their file system.

    Raises:
        OSError: one of them failed, the first of those in the order given. None is made again; those that
            had not begun are not made.
    """
    if len(syncs) < 2 or file_system_type(on) == _BTRFS:
        for sync in syncs:
            sync()
        return
    own, *others = syncs
    begun: list[Future[None]] = []
    try:
        begun += (_THREADS.submit(sync) for sync in others)
        own()
        for future in begun:
            future.result()
    finally:
        for future in begun:
            future.cancel()
        wait(begun)
