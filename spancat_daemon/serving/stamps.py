"""How one release is told from another, and from itself after a repair, without reading it."""

from __future__ import annotations

import os

from spancat_daemon.release.manifest import MANIFEST_NAME

Stamp = tuple[tuple[int | str, ...], ...]


def stamp_of(directory_fd: int) -> Stamp:
    """Tell which release an open directory is: another one, or another manifest, has another stamp."""
    return (_identity(os.fstat(directory_fd)), _of_entry(MANIFEST_NAME, directory_fd))


def stamp_of_files(directory_fd: int) -> Stamp:
    """Tell in which state all files of a release are: what replaces or repairs any of them changes it.

    The times of inodes are left out: sharing a file with the next release changes those.
    """
    found: list[tuple[int | str, ...]] = [_identity(os.fstat(directory_fd))]
    for folder, directories, files, fd in os.fwalk(".", dir_fd=directory_fd):
        found += [(folder, name, *_of_entry(name, fd)) for name in sorted([*directories, *files])]
    return tuple(found)


def _of_entry(name: str, directory_fd: int) -> tuple[int, ...]:
    try:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        return (-1, error.errno or 0)
    return (*_identity(status), status.st_size, status.st_mtime_ns)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid)
