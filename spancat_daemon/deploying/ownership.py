"""Whose a folder is: what root makes in another user's, that user's daemon could not use."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def taken_over_from(folder: Path) -> tuple[Path, str] | None:
    """Return whom root would take a folder over from by making files in it, and what is theirs.

    Args:
        folder: it need not exist; then what it would be made in counts.

    Returns:
        The folder, or the nearest above it that exists, and its owner's name; None if that is root, or this
        process is not root's.
    """
    if os.geteuid():
        return None
    there = next(path for path in (folder, *folder.parents) if path.exists())
    owner = there.stat().st_uid
    return (there, name_of(owner)) if owner else None


def name_of(user: int) -> str:
    """Return a user's name, or number if it has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
