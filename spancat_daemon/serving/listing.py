"""Which releases a deployment folder holds, and the hold on one of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spancat_daemon.errors import SpancatDaemonError, Vanished
from spancat_daemon.release import lease as leases
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.manifest import MANIFEST_NAME, BadManifest
from spancat_daemon.release.survey import CURRENT, RELEASES, Release, current_of, live_of, survey_of
from spancat_daemon.serving.hindrance import Hindered

if TYPE_CHECKING:
    from spancat_daemon.release.lease import Lease

_ATTEMPTS = 100  # each fails only if a swap falls between two system calls


@dataclass(frozen=True, slots=True)
class Held:
    """A release that stays for as long as its lease is not let go.

    Attributes:
        release: which; its path is where it lay when it was taken.
        lease: the hold on it.
    """

    release: Release
    lease: Lease

    @property
    def directory(self) -> Path:
        """A path that leads to this very release in this process, wherever it is moved, while it is held."""
        return Path(f"/proc/self/fd/{self.lease.directory_fd}")


def releases(folder: str | os.PathLike[str]) -> tuple[Release, ...]:
    """Return the releases of a deployment folder, newest (highest sequence) first.

    Needs no lock and no spaCy. Releases whose manifest is damaged are left out.

    Raises:
        SpancatDaemonError: there is no such folder, it can't be read, or it is no deployment folder.
    """
    path = absolute(folder)
    try:
        if path.is_dir():
            return survey_of(path).releases
    except OSError as error:
        raise unreadable(path, error) from error
    raise _nothing_in(path)


def live(folder: str | os.PathLike[str]) -> Release | None:
    """Return the live release of a deployment folder; ``None`` if nothing was published there yet.

    Raises:
        SpancatDaemonError: as `releases`; or what is live is gone, or its manifest is damaged.
    """
    path = absolute(folder)
    try:
        if not path.is_dir():
            raise _nothing_in(path)
        for _ in range(_ATTEMPTS):
            before = current_of(path)
            found = live_of(path)
            if found is not None or before.kind == "absent":
                return found
            if current_of(path) == before:
                raise SpancatDaemonError(
                    "does not lead to a release with a readable manifest",
                    where=str(path / CURRENT),
                    hint="roll back: spancat-daemon rollback",
                )
    except OSError as error:
        raise unreadable(path, error) from error
    raise _too_fast(path)


def hold(folder: Path, wanted: str | int | Release | None = None) -> Held:
    """Hold the live release of a folder, or the one that is wanted.

    Args:
        folder: an absolute path.
        wanted: a release, or its id, the start of it, its sequence number, or ``@1`` for the one before live.

    Raises:
        SpancatDaemonError: there is none, it is damaged, or it can't be read.
    """
    try:
        if wanted is None:
            return _holding(folder, leases.take(folder / CURRENT), folder / CURRENT, live=True)
        for _ in range(_ATTEMPTS):
            release = DeploymentFolder(folder).find(wanted.id if isinstance(wanted, Release) else str(wanted))
            try:
                lease = leases.take(release.path)
            except Vanished:  # pruned, or moved by a swap: looked for anew
                continue
            held = _holding(folder, lease, release.path, live=release.live)
            if held.release.id == release.id:
                return held
            lease.release()
    except Vanished:
        raise _nothing_in(folder) from None
    except OSError as error:
        raise unreadable(folder, error) from error
    raise _too_fast(folder)


def hold_open(folder: Path, directory_fd: int) -> Held:
    """Hold the live release that was opened as `directory_fd`, and no other; raises what `hold` does."""
    try:
        lease = leases.take(Path(f"/proc/self/fd/{directory_fd}"))
        return _holding(folder, lease, folder / CURRENT, live=True)
    except Vanished:
        raise _nothing_in(folder) from None
    except OSError as error:
        raise unreadable(folder, error) from error


def folder_of(release: Release) -> Path:
    """Return the deployment folder that a release was found in."""
    return release.path.parent if release.path.name == CURRENT else release.path.parent.parent


def absolute(folder: str | os.PathLike[str]) -> Path:
    """Return a path that stays the same when the process changes its directory; links are not resolved."""
    return Path(os.path.abspath(folder))  # noqa: PTH100  # ".." goes too, Path.absolute() leaves it


def unreadable(folder: Path, error: OSError) -> SpancatDaemonError:
    """Say why a folder can't be used, in one message."""
    if isinstance(error, FileNotFoundError):
        return _nothing_in(folder)
    hint = ""
    if isinstance(error, PermissionError):
        hint = "this user needs to read and enter the folder, and each above it"
    return Hindered(f"can't be read: {error.strerror or error}", where=str(folder), hint=hint)


def _holding(folder: Path, lease: Lease, taken: Path, *, live: bool) -> Held:
    try:
        manifest = lease.manifest()
    except BadManifest as error:
        lease.release()
        hint = error.hint or "go back to a whole one: spancat-daemon rollback"
        raise BadManifest(error.reason, where=str(taken / MANIFEST_NAME), hint=hint) from error
    except BaseException:
        lease.release()
        raise
    is_current = live and not (folder / CURRENT).is_symlink()
    path = folder / CURRENT if is_current else folder / RELEASES / manifest.id
    return Held(Release(manifest.id, manifest.sequence, path, manifest, live), lease)


def _too_fast(folder: Path) -> SpancatDaemonError:
    return SpancatDaemonError("changes too fast to be read", where=str(folder), hint="try again")


def _nothing_in(folder: Path) -> Vanished:
    """Say what a path is that no release was found in."""
    where = str(folder)
    if not folder.exists():
        return Vanished("there is no such folder", where=where, hint="give a rule's `deploy` folder")
    if (folder / MANIFEST_NAME).exists():
        inside = folder.resolve().parent
        above = inside.parent if inside.name == RELEASES else inside
        return Vanished("is a release, not a deployment folder", where=where, hint=f"give {above}")
    if (folder / "config.cfg").exists():
        reason = "is a pipeline of spaCy, not a deployment folder"
        return Vanished(reason, where=where, hint="spacy.load() reads it; or give a rule's `deploy` folder")
    if os.path.lexists(folder / CURRENT):
        hint = "`spancat-daemon check` says more; or roll back"
        return Vanished("does not lead to a release", where=str(folder / CURRENT), hint=hint)
    hint = "`spancat-daemon snapshot` publishes one, or the daemon at the next checkpoint"
    return Vanished("there is no release yet", where=where, hint=hint)
