"""Replacing ``current`` without an instant in which it is absent; records nothing.

========== =========== ===========================================================================
swap       current is  calls
========== =========== ===========================================================================
symlink    link, none  a new link under a unique name, renamed over ``current``
symlink    directory   a new link as ``releases/<old id>``, exchanged with ``current``
exchange   none        ``releases/<new id>`` renamed to ``current``, replacing nothing
exchange   link        ``releases/<new id>`` exchanged with ``current``; the link is then removed
exchange   directory   ``releases/<new id>`` renamed to ``releases/<old id>``, exchanged with ``current``
========== =========== ===========================================================================

Whatever is replaced lies under its own name in ``releases/`` the moment it is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from spancat_daemon.errors import SpancatDaemonError, about
from spancat_daemon.release.durability import rename_exchange, rename_noreplace

if TYPE_CHECKING:
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import Current, DeploymentFolder

Kind = Literal["symlink", "exchange"]

TEMPORARY_LINK: Final = ".current."


class CannotSwap(SpancatDaemonError):  # noqa: N818  # a state of the folder
    """The folder can't be swapped as it is; recovery, or a person, has to look at it first."""


def lead_to(
    folder: DeploymentFolder, release_id: str, *, kind: Kind, outgoing: str | None, durability: Durability
) -> None:
    """Replace ``current`` so that it leads to ``releases/<release_id>``, durably; records nothing.

    Args:
        folder: where.
        release_id: of a release that is not live and lies under its own name.
        kind: how.
        outgoing: id of what is live.
        durability: how renames are made to stay.

    Raises:
        OSError: it failed; ``current`` is the old or the new one.
    """
    current = folder.current_state()
    if kind == "symlink" and current.kind != "directory":
        _rename_link_over(folder, release_id)
    else:
        if kind == "symlink":
            _exchange_directory_for_link(folder, release_id, _must_have_name(folder, outgoing))
        elif current.kind == "directory":
            _exchange_directories(folder, release_id, _must_have_name(folder, outgoing))
        else:
            _exchange_link_for_directory(folder, release_id, current)
        durability.sync_directory_at(folder.releases_path)
    durability.sync_directory_at(folder.path)


def renew(folder: DeploymentFolder, current: Current, durability: Durability) -> None:
    """Make what ``current`` leads to stay, when whoever swapped it did not live to do so, or failed.

    The directory is written anew first: an fsync that is only tried again reports success for what an earlier
    one lost.

    Raises:
        OSError: it can't be made to stay.
    """
    if current.kind == "link" and current.id is not None:
        _rename_link_over(folder, current.id)
    else:
        temporary = _temporary_link(folder, "releases")
        temporary.unlink()
    durability.sync_directory_at(folder.releases_path)
    durability.sync_directory_at(folder.path)


def supports_exchange(folder_path: Path) -> bool:
    """Whether a link and a directory can be exchanged there, by doing it with two temporary names.

    Args:
        folder_path: a deployment folder, or where one will be: then its nearest existing parent is tried.

    Raises:
        OSError: nothing can be created there.
    """
    import tempfile  # noqa: PLC0415  # brings what packs archives; only a check asks

    while not folder_path.exists():
        folder_path = folder_path.parent
    with tempfile.TemporaryDirectory(prefix=".spancat-daemon-", dir=folder_path) as temporary:
        link, directory = Path(temporary, "link"), Path(temporary, "directory")
        link.symlink_to("directory")
        directory.mkdir()
        try:
            rename_exchange(link, directory)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                return False
            raise
        return link.is_dir() and directory.is_symlink()


def _rename_link_over(folder: DeploymentFolder, release_id: str) -> None:
    temporary = _temporary_link(folder, f"releases/{release_id}")
    try:
        temporary.rename(folder.current)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _exchange_directory_for_link(folder: DeploymentFolder, release_id: str, outgoing: str) -> None:
    # Here the link leads nowhere: it is relative to the folder, where the exchange puts it.
    place = folder.releases_path / outgoing
    _link(place, f"releases/{release_id}")
    try:
        rename_exchange(place, folder.current)
    except BaseException:
        with contextlib.suppress(OSError):
            if place.is_symlink():
                place.unlink()
        raise


def _exchange_directories(folder: DeploymentFolder, release_id: str, outgoing: str) -> None:
    final, place = folder.releases_path / release_id, folder.releases_path / outgoing
    rename_noreplace(final, place)
    try:
        rename_exchange(place, folder.current)
    except BaseException:
        with contextlib.suppress(OSError):
            if folder.current_state().id == outgoing:
                rename_noreplace(place, final)
        raise


def _exchange_link_for_directory(folder: DeploymentFolder, release_id: str, current: Current) -> None:
    final = folder.releases_path / release_id
    if current.kind == "absent":
        rename_noreplace(final, folder.current)
        return
    rename_exchange(final, folder.current)
    with contextlib.suppress(OSError):  # else recovery does it
        final.unlink()


def _temporary_link(folder: DeploymentFolder, target: str) -> Path:
    temporary = folder.path / f"{TEMPORARY_LINK}{os.getpid()}.{secrets.token_hex(4)}"
    _link(temporary, target)
    return temporary


def _link(path: Path, target: str) -> None:
    with about(path):
        path.symlink_to(target)


def _must_have_name(folder: DeploymentFolder, outgoing: str | None) -> str:
    if outgoing is None:
        raise CannotSwap("is a release without a known name", where=str(folder.current))
    return outgoing
