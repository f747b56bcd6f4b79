"""The staged copy of a checkpoint: made beside the releases, checked while it is made, not yet live."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from spancat_daemon.checkpoint.contents import Plan, Planned
from spancat_daemon.checkpoint.tree import Source, SourceFile, Stamp, shown
from spancat_daemon.checkpoint.wholeness import DigestProof
from spancat_daemon.errors import Rejected, SpancatDaemonError, name_place
from spancat_daemon.release.copying import write_whole
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.manifest import MANIFEST_NAME, MODEL_NAME, FileDigest, content_digest, dump
from spancat_daemon.release.placing import (
    CREATE,
    DIRECTORY_MODE,
    FILE_MODE,
    OPEN_DIRECTORY,
    UNDER_CONSTRUCTION,
    Abandoned,
    Placing,
    directories_of,
    planned_bytes,
)
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.release.syncing import sync_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import Release
    from spancat_daemon.release.manifest import Manifest

__all__ = ["Abandoned", "Lacking", "Staged", "copies", "discard", "restage", "seal", "stage", "stage_derived"]


class Lacking(SpancatDaemonError):  # noqa: N818  # a state of the disk that callers branch on
    """Too little free space to stage a checkpoint and leave what must stay free.

    Attributes:
        needed: bytes that have to be free.
        free: bytes that are.
    """

    def __init__(self, reason: str, *, needed: int, free: int, where: str = "", hint: str = "") -> None:
        super().__init__(reason, where=where, hint=hint)
        self.needed = needed
        self.free = free


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged copy.

    Attributes:
        path: its directory, in the deployment folder's staging directory.
        files: digest and size of each file in it, ``model.bin`` included, by path.
        model_sha256: digest of ``model.bin``.
        content_sha256: identity of the content.
        bytes: sum of the sizes of the files, ``model.bin`` not counted twice.
        bytes_written: how many of them were written (or reflinked) rather than hard-linked.
        linked: paths of the files that are hard links of the previous release's.
        plan: what it was made to.
        derived_from: the content of the staged copy that it was made of; None: it was made of a checkpoint.
    """

    path: Path
    files: Mapping[str, FileDigest]
    model_sha256: str
    content_sha256: str
    bytes: int
    bytes_written: int
    linked: tuple[str, ...]
    plan: Plan
    derived_from: str | None = None


def stage(
    plan: Plan,
    source: Source,
    tree: Tree,
    *,
    staging_path: Path,
    previous: Release | None,
    min_free_bytes: int,
    durability: Durability = DURABLE,
    abandoned: Callable[[], bool] = lambda: False,
) -> Staged:
    """Copy what `plan` says out of the checkpoint, into a new directory below `staging_path`.

    The checkpoint is read once. A file that equals the previous release's becomes a hard link of it; any
    other is copied with its digest and its proof taken from the same bytes, and is on stable storage on
    return (its name is only after `seal`). The checkpoint is proven not to have changed meanwhile.

    Args:
        plan: what to copy or write.
        source: the open checkpoint.
        tree: its scan, that `plan` was made of.
        staging_path: an existing directory of the file system that holds the releases.
        previous: the release to link unchanged files to.
        min_free_bytes: what must be free on the file system afterwards.
        durability: how bytes are made to stay.
        abandoned: asked again and again while bytes move; True gives up.

    Raises:
        Moved: the checkpoint changed; also where a proof failed because it did.
        Vanished: it is gone.
        Rejected: a file is not whole, can't be read, or has a name that a release needs for itself.
        Lacking: too little free space. Known before anything is written if lengths alone tell, so that a
            sparse file of terabytes is not even begun.
        Abandoned: `abandoned` said so.
        OSError: the staging directory can't be written or made to stay; names the file. In any case nothing
            is left behind, unless the removal fails too: recovery finds that.
    """
    _check_names(plan)
    _check_space(plan, staging_path, previous, min_free_bytes)
    return _filled(
        plan,
        source,
        staging_path,
        previous,
        durability,
        abandoned,
        unmoved=lambda: source.unchanged(tree),
        min_free_bytes=min_free_bytes,
    )


def restage(
    release: Release,
    *,
    staging_path: Path,
    durability: Durability = DURABLE,
    abandoned: Callable[[], bool] = lambda: False,
) -> Staged:
    """Make a new staged copy of a release, or of a rejected snapshot, whose files become hard links of its.

    Every file is read and held against its manifest; one that can't be linked, or is writable, is copied.
    Nothing of the release itself changes, and it may go once this returns.

    Args:
        release: what to stage again.
        staging_path: as in `stage`.
        durability: as in `stage`.
        abandoned: as in `stage`.

    Raises:
        Rejected: a file is missing, can't be read, or is not what the manifest says.
        Moved: a file was replaced meanwhile.
        Vanished: the release is gone.
        Abandoned, OSError: as `stage`.
    """
    with Source.open(release.path) as source:
        return _filled(
            _plan_of(release),
            source,
            staging_path,
            release,
            durability,
            abandoned,
            # The proofs say it all, and linking changes what a second look would compare.
            unmoved=lambda: None,
            min_free_bytes=0,
        )


def stage_derived(
    staged: Staged,
    plan: Plan,
    *,
    staging_path: Path,
    previous: Release | None,
    min_free_bytes: int,
    durability: Durability = DURABLE,
    abandoned: Callable[[], bool] = lambda: False,
) -> Staged:
    """Make another staged copy of what a staged one holds, with files that were derived from it.

    Args:
        staged: the copy; stays as it is.
        plan: what to take over, of its `copies`, and what to write.
        staging_path: as in `stage`.
        previous: as in `stage`.
        min_free_bytes: as in `stage`.
        durability: as in `stage`.
        abandoned: as in `stage`.

    Raises:
        Rejected: a derived file is not whole, or somebody has been at the copy.
        Moved, Vanished, Lacking, Abandoned, OSError: as `stage`.
    """
    _check_space(plan, staging_path, previous, min_free_bytes)
    with Source.open(staged.path) as source:
        made = _filled(
            plan,
            source,
            staging_path,
            previous,
            durability,
            abandoned,
            unmoved=lambda: None,  # as in `restage`
            min_free_bytes=min_free_bytes,
        )
    return replace(made, derived_from=staged.content_sha256)


def copies(path: Path, files: Mapping[str, FileDigest]) -> list[Planned]:
    """Plan to take over all that lies in a release, or staged copy, but what every one gets anew.

    That is the manifest, and the name ``model.bin``.

    Args:
        path: its directory.
        files: what it promises to hold.

    Raises:
        Rejected: a file is missing, or no file any more.
    """
    return [
        Planned(
            path=name,
            source=_present(path, name),
            data=None,
            proof=partial(DigestProof, digest.sha256, promised_by="the manifest"),
        )
        for name, digest in files.items()
        if name != MODEL_NAME
    ]


def _filled(
    plan: Plan,
    source: Source,
    staging_path: Path,
    previous: Release | None,
    durability: Durability,
    abandoned: Callable[[], bool],
    *,
    unmoved: Callable[[], None],
    min_free_bytes: int,
) -> Staged:
    """Make the copy that is planned; `unmoved` raises if its source is not what it was planned to."""
    path = staging_path / f"{os.getpid()}-{secrets.token_hex(8)}"
    path.mkdir(UNDER_CONSTRUCTION)
    try:
        with Placing(path, source, previous, durability, abandoned) as placing:
            try:
                placing.fill(plan)
                unmoved()
                placing.conclude()
            except Rejected:
                unmoved()  # half a file is no fault of a trainer that is just writing it
                raise
            model = placing.files[plan.model_file]
            placing.files[MODEL_NAME] = model
            staged = Staged(
                path=path,
                files=dict(sorted(placing.files.items())),
                model_sha256=model.sha256,
                content_sha256=content_digest(placing.files),
                bytes=sum(digest.bytes for digest in placing.files.values()) - model.bytes,
                bytes_written=placing.bytes_written,
                linked=tuple(sorted(placing.linked)),
                plan=plan,
            )
        _check_free(path, min_free_bytes)
    except BaseException as error:
        try:
            remove_tree(path)
        except OSError as leftover:
            error.add_note(f"and it could not be removed: {leftover}")
        raise
    return staged


def seal(staged: Staged, manifest: Manifest, durability: Durability = DURABLE) -> None:
    """Write the manifest, and make the staged directory's every name stay; then it can be renamed.

    Raises:
        OSError: it could not be; the staged copy must be discarded, never sealed again.
    """
    if manifest.files != staged.files or manifest.content_sha256 != staged.content_sha256:
        raise ValueError("this manifest is of another staged copy")
    root = os.open(staged.path, OPEN_DIRECTORY)
    try:
        fd = os.open(MANIFEST_NAME, CREATE, FILE_MODE, dir_fd=root)
        try:
            os.fchmod(fd, FILE_MODE)
            write_whole(fd, dump(manifest))
            # Every change comes before the first fsync: that one takes them all into one journal commit.
            os.fchmod(root, DIRECTORY_MODE)
            durability.sync_file(fd)
        finally:
            os.close(fd)
        # From the bottom up, and all of one depth at once.
        for _, level in groupby(sorted(sorted(directories_of(staged.files)), key=_height), key=_height):
            sync_all(
                [partial(_sync_directory, root, directory, durability) for directory in level], on=staged.path
            )
        durability.sync_directory(root)
    except OSError as error:
        name_place(error, staged.path)
        raise
    finally:
        os.close(root)


def _height(directory: str) -> int:
    return -directory.count("/")


def _sync_directory(root: int, directory: str, durability: Durability) -> None:
    fd = os.open(directory, OPEN_DIRECTORY, dir_fd=root)
    try:
        durability.sync_directory(fd)
    finally:
        os.close(fd)


def discard(staged: Staged) -> None:
    """Remove a staged copy; nothing happens if it isn't there any more (it became a release).

    Raises:
        OSError: something of it can't be removed.
    """
    remove_tree(staged.path)


def _plan_of(release: Release) -> Plan:
    """Plan all of a release but what every release gets anew: its manifest, and the name ``model.bin``."""
    manifest = release.manifest
    model_file = f"{manifest.component}/model"
    if model_file not in manifest.files or manifest.files[model_file] != manifest.files.get(MODEL_NAME):
        raise Rejected(f"has no {model_file} that is its {MODEL_NAME}", where=str(release.path))
    return Plan(
        files=tuple(sorted(copies(release.path, manifest.files), key=lambda file: file.path)),
        component=manifest.component,
        factory=manifest.factory,
        labels=manifest.labels,
        spans_key=manifest.spans_key,
        threshold=manifest.threshold,
        lang=manifest.lang,
        pipeline=manifest.pipeline,
        spacy_version=manifest.spacy_version,
        metrics=manifest.metrics,
        metrics_may_be_stale=manifest.metrics_may_be_stale,
        model_file=model_file,
    )


def _present(directory: Path, path: str) -> SourceFile:
    where = f"{directory}/{shown(path)}"
    try:
        status = (directory / path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise Rejected("is missing", where=where) from None
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("is not a file any more", where=where)
    return SourceFile(path, Stamp.of(status))


def _check_names(plan: Plan) -> None:
    for planned in plan.files:
        if planned.path in {MANIFEST_NAME, MODEL_NAME}:
            raise Rejected(
                f"has a file or component named {planned.path!r}, which every release has of its own",
                hint="rename it; if `source` is a release, point it to a checkpoint that a trainer writes",
            )


def _check_space(plan: Plan, path: Path, previous: Release | None, min_free_bytes: int) -> None:
    known = previous.manifest.files if previous is not None else {}
    certain = 0  # what no hard link can save
    for planned in plan.files:
        digest = known.get(planned.path)
        if digest is None or digest.bytes != planned_bytes(planned):
            certain += planned_bytes(planned)
    _check_free(path, certain + min_free_bytes)


def _check_free(path: Path, needed: int) -> None:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise Lacking(
            f"{needed:,} bytes have to be free and {free:,} are",
            needed=needed,
            free=free,
            where=str(path),
            hint="free some space, keep fewer releases, or lower min_free",
        )
