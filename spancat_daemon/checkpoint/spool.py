"""A spool: whole checkpoints that a training leaves between its evaluations.

As in a maildir, each is written below ``tmp/`` and renamed into ``new/`` when it is complete, under a name
that sorts by the time of its making. It is a pipeline's directory and ``entry.json``, the last file of all,
which names every other file with its size and digest. Nobody but the training takes one away, and only when
there are newer ones. So what is to be deployed is the newest of them, whatever its step: a training that was
started anew begins with lower ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import orjson

from spancat_daemon.checkpoint.tree import Source, shown
from spancat_daemon.checkpoint.wholeness import DigestProof
from spancat_daemon.errors import Moved, Rejected, Vanished

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from spancat_daemon.checkpoint.settle import Writer
    from spancat_daemon.checkpoint.tree import SourceFile, Tree
    from spancat_daemon.checkpoint.wholeness import Proof, ProofFactory

ENTRIES: Final = "new"
"""The folder of a spool that entries are renamed into."""

ENTRY_NAME: Final = "entry.json"
"""What is told of an entry; not part of the pipeline, so of no release."""

MAX_ENTRY_BYTES: Final = 2 << 20
"""Largest ``entry.json``: a pipeline of 100 components has 45 KB."""

_SCHEMA: Final = 1
_DAY: Final = "[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"
_HOUR: Final = "([01][0-9]|2[0-3])([0-5][0-9]){2}"
_NAME: Final = re.compile(_DAY + "T" + _HOUR + r"\.[0-9]{6}Z-[0-9]{9,}-[0-9]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RACES: Final = 10  # removed between being found and being opened: each time for a newer one
_LONGEST_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Promised:
    """What a file is said to hold."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What is told of one entry.

    Attributes:
        step: of the training, when the weights were what they are here.
        files: all files of the pipeline, by relative path.
    """

    step: int
    files: Mapping[str, Promised]

    def proofs(self, proofs: Mapping[str, ProofFactory]) -> dict[str, ProofFactory]:
        """For each of its files a proof that the bytes are those promised, besides the one it has."""
        return {path: partial(_proof, self.files[path].sha256, proofs[path]) for path in self.files}


def open_checkpoint(path: Path, *, writer: Writer) -> Source:
    """Open the checkpoint that a rule's source means now: the folder itself, or its newest entry.

    Raises:
        Vanished: there is none.
        Rejected: what is there is no folder, or may not be opened.
        Moved: entries come and go faster than one can be opened.
    """
    return _newest(path) if writer == "spool" else Source.open(path)


def watched_path(path: Path, *, writer: Writer) -> Path:
    """The folder in which each change can mean another checkpoint."""
    return path / ENTRIES if writer == "spool" else path


def _newest(spool: Path) -> Source:
    with Source.open(spool) as root, root.below(ENTRIES) as entries:
        for _ in range(_RACES):
            name = entries.last_name(_NAME)
            if name is None:
                raise Vanished("there is no entry in the spool (yet)", where=str(entries.path))
            try:
                return entries.below(name, has_successor=True)
            except Vanished:
                continue
    raise Moved("its entries come and go too fast", where=str(spool))


def read_entry(source: Source, tree: Tree) -> Entry:
    """Read what is told of an entry.

    Raises:
        Rejected: it is not what a training writes, or can't be read.
        Moved: it changed meanwhile, or is gone.
    """
    file = tree.by_path.get(ENTRY_NAME)
    if file is None:
        raise Moved("is gone", where=f"{source.path}/{ENTRY_NAME}")
    data = source.read_small(file, MAX_ENTRY_BYTES)
    try:
        told = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Rejected(f"is not whole JSON: {error.msg}", where=ENTRY_NAME) from None
    if not isinstance(told, dict) or told.get("schema") != _SCHEMA:
        raise Rejected(
            f"is not of the schema {_SCHEMA}, the only one that is known",
            where=ENTRY_NAME,
            hint="use the same version of spancat-daemon on both sides",
        )
    step, files = told.get("step"), told.get("files")
    if not _is_count(step):
        raise Rejected("does not say a number of steps in 'step'", where=ENTRY_NAME)
    if not isinstance(files, dict):
        raise Rejected("does not name files in 'files'", where=ENTRY_NAME)
    return Entry(step, {path: _promised(path, said) for path, said in files.items()})


def _promised(path: str, said: Any) -> Promised:
    sha256, size = (said.get("sha256"), said.get("bytes")) if isinstance(said, dict) else (None, None)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or not _is_count(size):
        raise Rejected(f"does not say sha256 and bytes of {_short(path)}", where=ENTRY_NAME)
    return Promised(sha256, size)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def missing(entry: Entry, tree: Tree) -> str | None:
    """The first file that is promised and not there, as while an entry is being removed; for a message."""
    return next((_short(path) for path in sorted(entry.files) if path not in tree.by_path), None)


def check_promises(entry: Entry, source: Source, tree: Tree) -> None:
    """Hold what is there against what was promised, but for the bytes that are still to be copied.

    Of the small files that say what the others mean the bytes too: a release can hold what is made of them.

    Args:
        entry: what was promised; nothing of it is missing.
        source: the entry.
        tree: its scan.

    Raises:
        Rejected: there is a file too many, or one has other bytes.
        Moved: a file changed meanwhile.
    """
    for file in _but_itself(tree):
        promised = entry.files.get(file.path)
        if promised is None:
            raise Rejected(f"is not named in {ENTRY_NAME}", where=file.path)
        if promised.bytes != file.stamp.size:
            raise Rejected(
                f"has {file.stamp.size:,} bytes and not the {promised.bytes:,} that {ENTRY_NAME} says",
                where=file.path,
            )
        if file.path in {"config.cfg", "meta.json"} or file.path.endswith("/cfg"):
            proof = _proof(promised.sha256, None)
            proof.feed(source.read_small(file))
            try:
                proof.finish()
            except Rejected as error:
                raise Rejected(error.reason, where=file.path) from None


def _but_itself(tree: Tree) -> Iterator[SourceFile]:
    return (file for file in tree.files if file.path != ENTRY_NAME)


def _proof(sha256: str, also: ProofFactory | None) -> Proof:
    return DigestProof(sha256, promised_by=ENTRY_NAME, also=also() if also is not None else None)


def _short(path: str) -> str:
    return shown(path[:_LONGEST_SHOWN])
