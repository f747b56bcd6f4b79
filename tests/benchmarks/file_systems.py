"""Where to measure: the file system that temporary files lie on, and others in a file of it, as root."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from spancat_daemon.release.removal import remove_tree
from tests.faults.loop_device import Kind, Mounted, lacks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs")
_SIZE_BYTES: Final = 9 << 30  # of which only what is written takes room


@contextmanager
def room_on(kind: str, folder: Path) -> Iterator[Path]:
    """A folder on such a file system, emptied afterwards: the large measurements fill it with gigabytes."""
    if _kind_of(folder) == kind:
        yield _made(folder / "room")
        _empty(folder / "room")
        return
    if missing := lacks(kind):
        pytest.skip(missing)
    with Mounted(_made(folder / kind), Kind(kind, size_bytes=_SIZE_BYTES)) as mounted:
        yield mounted.path
        _empty(mounted.path)
    mounted.image.unlink()


def _kind_of(folder: Path) -> str:
    done = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", folder], capture_output=True, check=True)
    return os.fsdecode(done.stdout).strip()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lost+found":
            remove_tree(path)
