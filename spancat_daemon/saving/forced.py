"""``save``: a pipeline in memory, live at once."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.deploying.ownership import name_of, taken_over_from
from spancat_daemon.deploying.refusal import Refused
from spancat_daemon.deploying.saves import Saved
from spancat_daemon.errors import Moved, Rejected, SpancatDaemonError, UsageError
from spancat_daemon.release import incoming
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.manifest import MANIFEST_NAME
from spancat_daemon.saving import place
from spancat_daemon.saving.interruptible import Work
from spancat_daemon.saving.pipeline import fit, origin_of, write
from spancat_daemon.saving.publication import Publication
from spancat_daemon.saving.telling import telling
from spancat_daemon.saving.terms import Terms
from spancat_daemon.serving.faults import MISSING_CODE
from spancat_daemon.serving.listing import absolute
from spancat_daemon.verify.verification import CannotVerify

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from spacy.language import Language

    from spancat_daemon.checkpoint.contents import Contents
    from spancat_daemon.config.model import Keep
    from spancat_daemon.release.incoming import Entry
    from spancat_daemon.release.survey import Release
    from spancat_daemon.saving.terms import Level

_WRITES: Final = 3  # the clock must be set back during each of them for a fourth to be needed


def save(
    nlp: Language,
    folder: str | os.PathLike[str],
    *,
    component: str = "auto",
    contents: Contents | None = None,
    keep: Mapping[str, Any] | Keep | None = None,
    verify: Level | None = None,
    force: bool = True,
    timeout_s: float = 600.0,
    logger: logging.Logger | None = None,
) -> Release:
    """Make a trained pipeline live in a deployment folder, as the daemon makes a checkpoint live.

    The same staging, verification, swap and history; what was live stays as a release. A daemon that holds
    the folder does it, on the terms of its rule and with all that follows a swap there; if another process
    does, it is waited for. Else it is done here: then no steps of ``[[watch.after]]`` are run and no
    ``[watch.health]`` is asked, now or later, and a daemon that is started later tells it in its log. What it
    replaces is not promoted again by a rule unless its checkpoint changes, or by force.

    The pipeline stays as it is. Nothing is printed, and nothing left behind, also if it is interrupted:
    Ctrl-C stops it, or comes too late, and then the release is returned. Once a release is live it is
    returned, whatever fails afterwards.

    A folder that is missing is made. Not so in the empty mount point of a disk that it was saved to before:
    of a folder on another disk than ``$XDG_STATE_HOME`` (``~/.local/state``) is remembered there, under
    ``spancat-daemon/folders``, where it lies.

    Args:
        nlp: the pipeline. What is written are the weights it has now; in ``with nlp.use_params(averages)``,
            those. Pipes that are disabled stay so in the release. Others may predict with it meanwhile, but
            not train it.
        folder: a rule's `deploy` folder, or one that becomes a deployment folder by this.
        component: the name of its span categorizer; ``auto``: the only one.
        contents: what of the pipeline, as a rule's `contents`; None: what the rule says, or else as what is
            live has it, or else ``pipeline``.
        keep: retention, as a rule's ``[watch.keep]``, such as ``{"last": 5}``; None: all releases stay, or
            what the rule of a daemon says, which can't be said otherwise here.
        verify: what it must be seen to do: "none", "structure" or, if None, "load", by which a confined
            process of this Python loads it and lets it predict; or what the rule of a daemon says.
        force: also if its content is live already, was rejected before, or what is live is on probation.
        timeout_s: how long others who hold the folder are waited for, and a daemon's answer is.
        logger: told what happens, if no daemon does it; None: nobody is, besides the folder's history.

    Returns:
        The release that is live with the content of the pipeline; new, unless without `force` it was live.

    Raises:
        Rejected: it must not go live; says why.
        FolderBusy: others held the folder for `timeout_s`.
        UsageError: an argument makes no sense; or a daemon holds the folder, and `keep` or `verify` is given.
        SpancatDaemonError: the pipeline is not trained, can't be written, or was trained on meanwhile; or the
            folder can't be written, is none, or, as ``Elsewhere``, its disk is not mounted. Or, as
            ``NoAnswer``, the daemon did not answer in time, and may still do it.
        TypeError: `nlp` is no pipeline.
    """
    until_s = time.monotonic() + timeout_s
    if not os.fspath(folder):
        raise UsageError("no folder is given", hint="an empty path would be the current directory")
    name, terms = fit(nlp, component), Terms.checked(contents, keep, verify)
    where = DeploymentFolder(absolute(folder))
    with _explained(where.path):
        _check_place(where.path)
        whereabouts = place.checked(where)
        for writes_left in reversed(range(_WRITES)):
            where.prepare()
            with _saved(nlp, where) as entry:
                saved = Saved(entry.path, origin_of(entry), name, contents, force)
                publication = Publication(
                    where,
                    entry,
                    saved,
                    terms,
                    until_s=until_s,
                    log=telling(logger),
                    whereabouts=whereabouts,
                )
                try:
                    return Work(publication.make, publication.stop).result()
                except Moved:
                    if not writes_left:
                        raise
                except SpancatDaemonError as error:
                    _put_in_words(error, entry, where)
                    raise
    raise AssertionError  # pragma: no cover  # the last time it returns or raises


@contextmanager
def _saved(nlp: Language, folder: DeploymentFolder) -> Iterator[Entry]:
    with incoming.make(folder.incoming_path) as entry:
        try:
            write(nlp, entry)
            yield entry
        finally:
            with suppress(OSError):  # recovery does it then
                entry.remove()


def _check_place(path: Path) -> None:
    """Refuse what is certainly no deployment folder, before anything is made in it."""
    if os.path.lexists(path) and not path.is_dir():
        raise UsageError("is not a directory", where=str(path), hint="choose another folder")
    if (path / MANIFEST_NAME).exists():
        raise UsageError(
            "is a release, not a deployment folder", where=str(path), hint="give the one above it"
        )
    for there in (path, *path.resolve().parents):
        if (there / "config.cfg").exists() and (there / "meta.json").exists():
            what = "is" if there == path else "lies inside of"
            raise UsageError(
                f"{what} a pipeline of spaCy, not a deployment folder",
                where=str(path),
                hint="give another folder",
            )
    taken = taken_over_from(path)
    if taken is not None:
        there, owner = taken
        raise UsageError(
            f"belongs to {owner}, and what root makes in it {owner}'s daemon could not use",
            where=str(there),
            hint=f"do this as {owner}",
        )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what the system refused, and what to do."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in {errno.EACCES, errno.EPERM}:
            there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            hint = (
                f"it belongs to {name_of(there.lstat().st_uid)}: save as that user, or choose another folder"
            )
        elif error.errno == errno.EROFS:
            hint = "it is read-only: choose another folder"
        elif error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = "free some space, or keep fewer releases"
        raise SpancatDaemonError(
            f"can't be saved to: {error.strerror or error}", where=str(folder), hint=hint
        ) from error


def _put_in_words(error: SpancatDaemonError, entry: Entry, folder: DeploymentFolder) -> None:
    """Leave out what the caller can't know: where the pipeline lay meanwhile, and which rule there may be."""
    if error.where.startswith(str(entry.path)):
        error.where = error.where.removeprefix(str(entry.path)).lstrip("/")
    if isinstance(error, Refused):
        error.hint = f"what was found out is in {folder.rejected_path / error.snapshot / MANIFEST_NAME}"
    if isinstance(error, CannotVerify):
        error.hint = 'verify="structure" needs no process of this Python'
    if isinstance(error, Rejected) and MISSING_CODE.search(error.reason):
        error.hint = (
            "a release is loaded by other processes, which know nothing of what this program has registered:"
            ' install that as a package with an entry point of spaCy\'s; or verify="structure", and import it'
            " wherever the release is loaded"
        )
