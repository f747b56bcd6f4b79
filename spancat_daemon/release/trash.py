"""Letting directories go so that a crash leaves each either whole under its name or in the trash."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from spancat_daemon.release.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from spancat_daemon.release.durability import Durability


def throw_away(directory: Path, name: str, trash: Path, durability: Durability) -> str:
    """Move ``directory/name`` into the trash under a name of its own; it stays gone from its place.

    That it stays in the trash is of no matter: it is only deleted there. Made to stay first, or alone, it
    could be found in both by the next recovery, which would empty it where it is still a release.

    Returns:
        The name it has in the trash: the old one, a dot and random digits.

    Raises:
        OSError: it may or may not have been moved, and may not stay so.
    """
    thrown = f"{name}.{secrets.token_hex(4)}"
    (directory / name).rename(trash / thrown)
    durability.sync_directory_at(directory)
    return thrown


def original_name(thrown: str) -> str:
    """Return the name that something in the trash had before."""
    return thrown.rpartition(".")[0]


def empty(directory: Path, *, spare: Collection[str] = ()) -> list[str]:
    """Delete everything in a directory but what is to be spared, without following a link out of it.

    Only names are removed: a file that is a hard link of another release's stays there. Not made durable:
    what comes back after a power cut is deleted by the next recovery.

    Returns:
        The names of what it tried to delete.

    Raises:
        OSError: something can't be deleted; the first such error, after all was tried.
    """
    failure: OSError | None = None
    names = sorted(set(os.listdir(directory)).difference(spare))  # noqa: PTH208  # names, not paths
    for name in names:
        try:
            remove_tree(directory / name)
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return names
