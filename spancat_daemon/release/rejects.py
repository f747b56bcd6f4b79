"""Snapshots that must not go live, kept for people: to look into, to try out, and to promote all the same.

Each lies in ``.spancat-daemon/rejected/`` under its id, and is to the last bit what its release would have
been; its manifest's ``verification`` says why it is none. It comes there by one rename of a sealed stage and
leaves by one rename into the trash, so that no crash leaves half of one. Unchanged files are hard links of
the releases', so what one takes is what is new in it; the newest are kept, however large, and one content
once. Retention neither counts nor removes them, a lease does not hold them, and what else lies in the
directory is left alone.

Beside them lies at most one empty file, ``<id>.gone``: the newest of all, if that went. It keeps
`DeploymentFolder.next_sequence` from giving a number again that was shown to people.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from spancat_daemon.release import manifest as manifests
from spancat_daemon.release import trash
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.folder import NoSuchRelease, fitting
from spancat_daemon.release.manifest import MANIFEST_NAME, BadManifest, parse_release_id
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.release.survey import Release, names_in

if TYPE_CHECKING:
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.staging import Staged

_GONE: Final = ".gone"


def keep(
    folder: DeploymentFolder,
    staged: Staged,
    manifest: Manifest,
    *,
    last: int,
    durability: Durability = DURABLE,
) -> None:
    """Keep a staged copy that was rejected, in place of one of the same content. The folder is locked.

    It is kept before older ones go, so that a failure takes none of them; a disk that is nearly full holds
    it all the same, for only its manifest is written here. Older ones that can't be removed are tried again
    with the next.

    Args:
        folder: where.
        staged: the copy, not sealed. It is not there any more afterwards.
        manifest: what is to be said of it, the verdict in its ``verification``.
        last: how many may stay, this one among them; 0: none, it is discarded.
        durability: how bytes and names are made to stay.

    Raises:
        OSError: it could not be kept; the older ones all are. What is left of it is where it was staged (the
            caller discards it, or else recovery), or, if only the names could not be made to stay, whole
            among the rejected ones, where it may not outlast a power cut.
    """
    from spancat_daemon.release.staging import discard, seal  # noqa: PLC0415  # whoever lists them needs none

    if last > 0:
        seal(staged, manifest, durability)
        staged.path.rename(folder.rejected_path / manifest.id)
        durability.sync_directory_at(staged.path.parent)
        durability.sync_directory_at(folder.rejected_path)
    else:
        _remember(folder, manifest.id, durability)
        discard(staged)
    with contextlib.suppress(OSError):
        let_go(folder, last=last, durability=durability)


def let_go(folder: DeploymentFolder, *, last: int, durability: Durability = DURABLE) -> list[str]:
    """Remove all but the newest, and of equal contents all but the newest. The folder is locked.

    Returns:
        The ids that are gone, oldest first.

    Raises:
        OSError: one could not be removed; the first such error, after all were tried.
    """
    readable = {release.id: release.manifest.content_sha256 for release in rejected(folder)}
    going: list[str] = []
    contents: set[str] = set()
    names = _names(folder)
    for name in names:
        content = readable.get(name, name)  # one that can't be read is let go when its time comes
        if len(contents) >= last or content in contents:
            going.append(name)
        contents.add(content)
    going.reverse()
    gone: list[str] = []
    failure: OSError | None = None
    for name in going:
        try:
            if name == names[0]:
                _remember(folder, name, durability)
            _throw_away(folder, name, durability)
        except OSError as error:
            failure = failure or error
        else:
            gone.append(name)
    if failure is not None:
        raise failure
    return gone


def forget(folder: DeploymentFolder, release_id: str, durability: Durability = DURABLE) -> None:
    """Remove one, such as one that became a release; harmless if it is gone. The folder is locked.

    Raises:
        OSError: it is whole still, or in the trash and recovery's to empty.
    """
    names = _names(folder)
    if release_id in names:
        if release_id == names[0]:
            _remember(folder, release_id, durability)
        _throw_away(folder, release_id, durability)


def rejected(folder: DeploymentFolder) -> list[Release]:
    """Return those that can be read, newest first. Needs no lock."""
    found: list[Release] = []
    for name in _names(folder):
        path = folder.rejected_path / name
        with contextlib.suppress(BadManifest):  # damaged, or gone meanwhile
            manifest = manifests.read(path / MANIFEST_NAME)
            if manifest.id == name:
                found.append(Release(name, manifest.sequence, path, manifest, live=False))
    return found


def find_rejected(folder: DeploymentFolder, name: str) -> Release:
    """Find one by id, sequence number or unique start of its id, as `DeploymentFolder.find` does.

    Raises:
        NoSuchRelease: none or several; names the newest.
    """
    known = rejected(folder)
    matches = fitting(name, known, [release.id for release in known])
    if len(matches) == 1:
        return matches[0]
    if matches:
        several = ", ".join(release.id for release in matches[:5])
        raise NoSuchRelease(f"{name!r} fits several rejected snapshots: {several}", where=str(folder.path))
    newest = ", ".join(release.id for release in known[:3])
    raise NoSuchRelease(
        f"there is no rejected snapshot {name!r}",
        where=str(folder.path),
        hint=f"the newest are {newest}" if newest else "none is kept here",
    )


def refusal(folder: DeploymentFolder, content_sha256: str, terms_sha256: str) -> Release | None:
    """Return the one with this content, if it was these terms that it was rejected by."""
    for release in rejected(folder):
        manifest = release.manifest
        if (
            manifest.content_sha256 == content_sha256
            and manifest.verification.get("terms_sha256") == terms_sha256
            and manifest.verification.get("passed") is not True
        ):
            return release
    return None


def _names(folder: DeploymentFolder) -> list[str]:
    """Ids of those that are kept, readable or not, newest first."""
    found: list[tuple[int, str]] = []
    for name in names_in(folder.rejected_path):
        path = folder.rejected_path / name
        sequence = parse_release_id(name)
        if sequence is not None and path.is_dir() and not path.is_symlink():
            found.append((sequence, name))
    return [name for _, name in sorted(found, reverse=True)]


def _throw_away(folder: DeploymentFolder, name: str, durability: Durability) -> None:
    thrown = trash.throw_away(folder.rejected_path, name, folder.trash_path, durability)
    remove_tree(folder.trash_path / thrown)


def _remember(folder: DeploymentFolder, release_id: str, durability: Durability) -> None:
    """Leave the name of the newest, which is about to go; of such names, only the newest stays."""
    marks = {name: number for name in names_in(folder.rejected_path) if (number := _marked(name))}
    name = f"{release_id}{_GONE}"
    if max(marks.values(), default=0) >= (_marked(name) or 0):
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    os.close(os.open(folder.rejected_path / name, flags, 0o644))
    durability.sync_directory_at(folder.rejected_path)
    for lower in marks:
        (folder.rejected_path / lower).unlink(missing_ok=True)


def _marked(name: str) -> int | None:
    """Return the number that such a name stands for; None if it is not one."""
    return parse_release_id(name.removesuffix(_GONE)) if name.endswith(_GONE) else None
