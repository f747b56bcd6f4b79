"""Removing a directory tree for good, whatever its modes, without ever leaving it through a link."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from spancat_daemon.errors import name_place


def remove_tree(path: Path) -> None:
    """Remove `path` and everything below it; nothing happens if it isn't there.

    Links are removed, never followed. Directories that their owner may not read or write are made so first
    (``shutil.rmtree`` gives up on them).

    Raises:
        OSError: something can't be removed; what came before it is gone.
    """
    with contextlib.suppress(FileNotFoundError):
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove(parent, path.name)
        except OSError as error:
            inside = error.filename if isinstance(error.filename, str) else ""
            name_place(error, path / "…" / inside if inside and inside != path.name else path)
            raise
        finally:
            os.close(parent)


def _remove(parent: int, name: str) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        _open_up(parent, name)
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
        for entry in names:
            _remove(directory, entry)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def _open_up(parent: int, name: str) -> None:
    # chmod follows links, so it goes through a descriptor that is known to be the directory itself.
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{handle}").chmod(stat.S_IRWXU)
    finally:
        os.close(handle)
