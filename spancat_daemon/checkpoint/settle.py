"""The proof that a checkpoint is complete and of one generation (DESIGN.md, section 3: settling).

spaCy writes a pipeline file by file, in place, ``vocab/lookups.bin`` last (`Language.to_disk`). So whenever
a save is under way, or was cut off for ever, some file is missing or a file is newer than one that spaCy
writes after it. Which files some pipes write nobody knows: whether one of those is missing is told by the
times of directories, which `copytree` sets when all is in them. Copies that keep times keep the order too if
they are made into an empty place (``copytree`` to model-best), or begin with the files that spaCy writes
first (``rsync -t``); one over an older copy in any other order may replace just the files that spaCy writes
last, and then be cut off. Two saves within one tick of the clock that stamps files would look like one; spaCy
takes longer for each. An entry of a spool carries the digests of its files, and needs no order.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from spancat_daemon.checkpoint.layout import (
    FACTORIES,
    expected_files,
    open_folders,
    read_outline,
    with_span_categorizers,
)
from spancat_daemon.checkpoint.spool import ENTRY_NAME, check_promises, missing, read_entry
from spancat_daemon.checkpoint.wholeness import proof_for
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spancat_daemon.checkpoint.layout import Layout
    from spancat_daemon.checkpoint.tree import Source, SourceFile, Tree
    from spancat_daemon.checkpoint.wholeness import ProofFactory

Writer = Literal["spacy", "any", "spool"]

# In every pipeline, whatever its components: enough to see most saves under way without parsing anything.
_BEFORE_PIPES = ("tokenizer", "meta.json", "config.cfg")
_ALWAYS = ("meta.json", "config.cfg", "vocab/strings.json", "vocab/lookups.bin")
_AFTER_PIPES = (
    "vocab/strings.json",
    "vocab/vectors",
    "vocab/key2row",
    "vocab/vectors.cfg",
    "vocab/lookups.bin",
)

# rsync(1), "-T" and "--delay-updates"
_TEMPORARY = re.compile(r"\.(.+)\.[^.]+")
_TEMPORARY_FOLDERS = {".~tmp~", ".rsync-partial"}

_NS = 1_000_000_000
# Stamps this far ahead come from another clock: a file server's, or ours before it was set back.
_FOREIGN_CLOCK_S = 1.0
_SECOND_LOOK_TICKS = 3
# A copy that goes on makes the next file, or sets the directory's times, long before.
_COPYING_S = 1.0
_COPYING_LOOK_S = 0.02
# What keeps no more than whole seconds (sshfs, ext4 with small inodes), or every other one (FAT).
_COARSE_S = 2.0
_SHORTEST_WAIT_S = 0.0001

CLOCK_REALTIME_COARSE = 5
"""Linux's clock id (<linux/time.h>) of the clock that stamps files; Python's `time` does not name it."""


def file_clock_ns() -> int:
    """The wall clock that Linux stamps files with: it moves once a tick (clock_gettime(2))."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


@dataclass(frozen=True, slots=True)
class Settled:
    """A checkpoint that may be copied.

    The proof is complete only when, after the copy, every file's `Proof` has finished and
    ``source.unchanged(tree)`` has not raised.

    Attributes:
        source: still open; whoever opened it closes it.
        tree: as it was proven.
        newest_ns: the newest mtime of its files: when the trainer finished, by the file system's clock.
        proofs: what each file's bytes must prove while they are copied, by relative path; what has none is no
            part of the pipeline.
    """

    source: Source
    tree: Tree
    layout: Layout
    newest_ns: int
    proofs: Mapping[str, ProofFactory]


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A checkpoint that must not be copied as it stands.

    Attributes:
        reason: one sentence for the log.
        path: the file it is about, relative to the checkpoint; empty if about all of it.
        kind: ``torn`` (files of several generations), ``incomplete`` (files missing), ``busy`` (too young).
        retry_after_s: when to look again; None: only the next change can help.
        tree: what was seen, to be passed as ``previous`` the next time.
    """

    reason: str
    path: str
    kind: Literal["torn", "incomplete", "busy"]
    retry_after_s: float | None
    tree: Tree | None


def examine(
    source: Source,
    *,
    writer: Writer,
    settle_s: float,
    now_ns: Callable[[], int],
    previous: Tree | None = None,
    unchanged_s: float | None = None,
) -> Settled | Unsettled:
    """Decide whether the checkpoint is settled; reads config.cfg, meta.json and cfg, stats all else.

    Args:
        source: the checkpoint.
        writer: ``spacy``: proven by the order of times. ``any``: by a quiet time of ``settle_s``. ``spool``:
            by the digests that the entry promises.
        settle_s: that quiet time, seconds; unused with others.
        now_ns: the wall clock that stamps files, `file_clock_ns`; a finer one would be ahead of the stamp of
            a write that is still to come, and prove nothing.
        previous: what the last look saw (`Unsettled.tree`), if there was one.
        unchanged_s: for how long, by a monotonic clock, every look has seen exactly ``previous``; if given,
            it decides about the quiet time, and how far apart two looks are, and the wall clock does not
            matter.

    Raises:
        Rejected: it is not a spaCy pipeline, or holds something that can't be published.
        Moved: it changed while it was examined.
        Vanished: it is gone.
    """
    # Before the scan: then a write after the scan can't carry a stamp from before this tick.
    now = now_ns()
    tree = source.scan()
    found = _incomplete(tree, (ENTRY_NAME, *_ALWAYS) if writer == "spool" else _ALWAYS)
    if found is None and writer == "spacy":
        found = _disorder(tree, [_present(tree, (path,)) for path in (*_BEFORE_PIPES, *_AFTER_PIPES)])
    if found is None and writer == "any":
        found = _restless(tree, now, settle_s, previous, unchanged_s)
    elif found is None:
        found = _young(tree, now, previous, unchanged_s)
    if found is not None:
        return found
    with _placed(source, tree):
        entry = read_entry(source, tree) if writer == "spool" else None
        if entry is not None:
            lacking = missing(entry, tree)
            if lacking is not None:
                return Unsettled(f"{lacking} is missing", lacking, "incomplete", None, tree)
            check_promises(entry, source, tree)
        outline = _outline(source, tree)
        found = _incomplete(tree, expected_files(outline))
        if found is None and writer == "spacy":
            found = _disorder(tree, _slots(tree, outline)) or _unfinished(source, tree, outline, now)
        if found is not None:
            return found
        layout = with_span_categorizers(outline, _cfgs(source, tree, outline))
    under_way = _under_way(tree) if entry is None else frozenset()
    proofs = {file.path: proof_for(file.path, layout) for file in tree.files if file.path not in under_way}
    if entry is not None:
        proofs = entry.proofs(proofs)
    newest_ns = max(file.stamp.mtime_ns for file in tree.files)
    return Settled(source=source, tree=tree, layout=layout, newest_ns=newest_ns, proofs=proofs)


def _incomplete(tree: Tree, expected: tuple[str, ...]) -> Unsettled | None:
    for path in expected:
        file = tree.by_path.get(path)
        if file is None:
            return Unsettled(f"{path} is missing", path, "incomplete", None, tree)
        # None of these files is ever empty: this one is just being written, or its writer died there.
        if not file.stamp.size:
            return Unsettled(f"{path} is empty", path, "incomplete", None, tree)
    return None


def _present(tree: Tree, paths: tuple[str, ...]) -> list[SourceFile]:
    return [tree.by_path[path] for path in paths if path in tree.by_path]


def _slots(tree: Tree, layout: Layout) -> list[list[SourceFile]]:
    """The files in spaCy's write order, those of one pipe together.

    Within a pipe's directory the order is the component's own affair; all of it comes after config.cfg and
    before the next pipe. The same holds for a tokenizer that is a directory, and for vectors that are not
    spaCy's, between the strings and the lookups. What else lies beside them (a README, a log, a folder of a
    pipe that is no more) was not written by `Language.to_disk`, so nothing is known about its time: it is
    copied and compared before and after like the rest, and can't make a checkpoint look torn for ever.
    """
    groups: dict[str, list[SourceFile]] = {}
    under_way = _under_way(tree)
    for file in tree.files:
        if file.path in under_way:
            continue
        groups.setdefault(file.path.partition("/")[0], []).append(file)
    vocab = groups.get("vocab", [])
    slots = [groups.get(name, []) for name in (*_BEFORE_PIPES, *layout.pipeline)]
    expected = expected_files(layout)
    ordered = tuple(path for path in _AFTER_PIPES if path in expected)
    others = [file for file in vocab if file.path not in ordered]
    slots.append(_present(tree, ordered[:1]))
    if others and len(ordered) == 2:  # vectors of another make
        slots.append(others)
    slots += [_present(tree, (path,)) for path in ordered[1:]]
    return slots


def _under_way(tree: Tree) -> frozenset[str]:
    """Files that will be renamed over another one, or never will, as their writer died: no part of anything.

    They are named after that one, as rsync and most who write a file whole do: ``.model.Xy12Za`` beside
    ``model``; or lie in a folder that rsync makes for them.
    """
    found = set()
    for file in tree.files:
        folder, slash, name = file.path.rpartition("/")
        named = _TEMPORARY.fullmatch(name)
        if (named and f"{folder}{slash}{named[1]}" in tree.by_path) or not _TEMPORARY_FOLDERS.isdisjoint(
            folder.split("/")
        ):
            found.add(file.path)
    return frozenset(found)


def _disorder(tree: Tree, slots: list[list[SourceFile]]) -> Unsettled | None:
    """The first file that is newer than one which spaCy writes after it."""
    for before, after in pairwise([slot for slot in slots if slot]):
        newest = max(before, key=_mtime)
        oldest = min(after, key=_mtime)
        if _mtime(newest) > _mtime(oldest):
            return Unsettled(
                f"{newest.path} is newer than {oldest.path}, which spaCy writes after it: a save is under "
                'way, was cut off, or this copy did not keep the times (writer = "any" is for those)',
                newest.path,
                "torn",
                None,
                tree,
            )
    return None


def _unfinished(source: Source, tree: Tree, layout: Layout, now: int) -> Unsettled | None:
    """A directory that got an entry after the last file was written, where files may be missing unseen.

    When spaCy saves in place, every directory has its entries before the lookups are written. `copytree`
    makes the entries anew, in any order, and takes over each directory's times once all is in it
    (`shutil.copystat`).
    """
    last = tree.by_path["vocab/lookups.bin"]
    for folder in open_folders(layout):
        if folder and folder not in tree.directories:
            continue
        changed_ns = source.directory_mtime_ns(folder)
        if changed_ns <= _mtime(last):
            continue
        if abs(now - changed_ns) < _COPYING_S * _NS:
            return Unsettled("may still be being copied", folder, "busy", _COPYING_LOOK_S, tree)
        return Unsettled(
            f"{folder or 'its directory'} got an entry after {last.path} was written, and what has to lie "
            "there is not known: a copy is under way, was cut off, or somebody put a file there "
            '(writer = "any" is for those)',
            folder,
            "incomplete",
            None,
            tree,
        )
    return None


def _mtime(file: SourceFile) -> int:
    return file.stamp.mtime_ns


def _young(tree: Tree, now: int, previous: Tree | None, unchanged_s: float | None) -> Unsettled | None:
    """Whether a file could be written once more without its stamp showing it.

    The kernel stamps with the time of its last tick, or a finer one, so two writes within one tick can look
    like one. Any write sets ctime, to no less than the clock of ticks then shows, and nobody can set it
    otherwise: a file is safe once that clock has passed its ctime. (mtime may lie in the future harmlessly,
    `copytree` and `touch` set it.) Where only whole seconds are kept, two looks so far apart stand for that.
    """
    newest = max(tree.files, key=lambda file: file.stamp.ctime_ns)
    if not any(file.stamp.ctime_ns % _NS for file in tree.files):
        # Its clock may be another machine's too, so it is not compared with ours.
        seen_s = (_COARSE_S if unchanged_s is None else unchanged_s) if previous == tree else 0.0
        if seen_s < _COARSE_S:
            return _busy("has a time of whole seconds", newest, _COARSE_S - seen_s, tree)
        return None
    ahead_s = (newest.stamp.ctime_ns - now) / _NS
    if ahead_s < 0:
        return None
    tick_s = time.clock_getres(CLOCK_REALTIME_COARSE)
    if ahead_s < _FOREIGN_CLOCK_S:
        rest_of_tick_s = tick_s - (time.time_ns() - now) / _NS
        left_s = rest_of_tick_s if ahead_s < tick_s else ahead_s
        return _busy("was written just now", newest, max(left_s, _SHORTEST_WAIT_S), tree)
    # Waiting for that clock could take hours. Two looks some ticks apart that saw the same will do.
    apart_s = _SECOND_LOOK_TICKS * tick_s
    if previous == tree and (unchanged_s is None or unchanged_s >= apart_s):
        return None
    return _busy("has a time in the future", newest, apart_s, tree)


def _restless(
    tree: Tree, now: int, settle_s: float, previous: Tree | None, unchanged_s: float | None
) -> Unsettled | None:
    """Whether the quiet time is not over yet; always takes two looks.

    ctime says when a file really changed (copies set mtime as they like), but by a clock that can be another
    machine's or be set: so stamps alone never suffice, and stamps in the future never block.
    """
    newest = max(tree.files, key=lambda file: file.stamp.ctime_ns)
    if previous != tree:
        return _busy("may still be written", newest, settle_s, tree)
    if unchanged_s is not None:
        left_s = settle_s - unchanged_s
    else:
        age_s = (now - newest.stamp.ctime_ns) / _NS
        left_s = settle_s - age_s if age_s >= 0 else 0.0
    if left_s <= 0:
        return None
    return _busy("may still be written", newest, left_s, tree)


def _busy(reason: str, file: SourceFile, retry_after_s: float, tree: Tree) -> Unsettled:
    return Unsettled(f"{file.path} {reason}", file.path, "busy", retry_after_s, tree)


def _outline(source: Source, tree: Tree) -> Layout:
    config_cfg = source.read_small(tree.by_path["config.cfg"])
    return read_outline(config_cfg, source.read_small(tree.by_path["meta.json"]))


def _cfgs(source: Source, tree: Tree, outline: Layout) -> dict[str, bytes]:
    names = [name for name in outline.pipeline if outline.components[name].factory in FACTORIES]
    return {name: source.read_small(tree.by_path[f"{name}/cfg"]) for name in names}


@contextmanager
def _placed(source: Source, tree: Tree) -> Iterator[None]:
    """Give what is wrong with a file's content its whole path, unless it only changed meanwhile."""
    try:
        yield
    except Rejected as error:
        # What was read may be half of a save that began since: then that is the truth, and it comes again.
        source.unchanged(tree)
        where = error.where if error.where.startswith("/") else f"{source.path}/{error.where}"
        raise Rejected(error.reason, where=where, hint=error.hint) from None
