"""How far a training was when it saved a checkpoint: spaCy writes no step, the times of its files tell.

``spacy train`` removes both its folders once, at its start. The first save, at step 0, makes ``model-last``
anew, and every later one opens the same files again and overwrites them. So ``model-last/vocab`` has for its
own time, for good, the moment at which the first save made ``lookups.bin``, the last file of all. In the
first save meta.json and config.cfg, written long before that file, are no newer than this time; in every
later save they are. ``copytree`` to model-best, ``cp -a`` and ``rsync -a`` keep the times of directories as
they keep those of files, so a copy tells the same as what it was made of, also after its original is gone.

Whoever makes or removes a file in it moves the directory's time, but only ahead: that can hide a later save
until the next one, and never makes one of the first. File systems that do not maintain it, or by another
clock than the files', could leave it behind: there nothing is told. A clock that is set back during a
training makes later saves look like the first until it has caught up.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spancat_daemon.checkpoint.configuration import resolve
from spancat_daemon.checkpoint.settle import file_clock_ns
from spancat_daemon.checkpoint.spool import ENTRY_NAME, read_entry
from spancat_daemon.errors import Moved

if TYPE_CHECKING:
    from spancat_daemon.checkpoint.layout import Layout
    from spancat_daemon.checkpoint.settle import Writer
    from spancat_daemon.checkpoint.tree import Source

META_KEY: Final = "spancat_daemon"
"""Under this key a training may write into ``nlp.meta`` what times can't tell: ``{"step": 400}``."""

# The names spaCy gives (spacy/training/loop.py). What was saved to another folder was not saved by its loop.
_LAST: Final = "model-last"
_BEST: Final = "model-best"

# Local file systems: their directories' times are kept, by the kernel's one clock that stamps files too.
_ONE_CLOCK: Final = frozenset({"bcachefs", "btrfs", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})

# copytree gives a directory its times right after the last file in it got its own.
_COPYING_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of the step that a checkpoint was saved at.

    Attributes:
        step: the step; None if it is not known exactly.
        at_least: no fewer than so many; 0 if nothing is known.
        how: what tells that, or why nothing does, for people.
    """

    step: int | None
    at_least: int
    how: str


def progress(source: Source, layout: Layout, *, writer: Writer = "spacy") -> Progress:
    """Tell how far the training was when it saved the checkpoint.

    An entry of a spool says so, and a step in meta.json is believed. Else times tell whether it is the first
    save of its training, which is step 0; if not, a model-best is at least as far as the second evaluation,
    and a model-last, which an interrupted training saves once more at any moment, at least at step 1.

    To be called on a settled checkpoint before ``source.unchanged`` proves that its files stayed as they
    were.

    Args:
        source: the checkpoint.
        layout: what its configuration says.
        writer: who writes it; unless it is spaCy, times tell nothing.

    Raises:
        Rejected: what an entry of a spool says can't be understood.
        Moved: its files are gone, or it is a copy that is just being finished.
    """
    if writer == "spool":
        step = read_entry(source, source.scan()).step
        return Progress(step, step, f"its {ENTRY_NAME} says so")
    written = layout.meta.get(META_KEY)
    if isinstance(written, dict) and "step" in written:
        return _written(written["step"])
    if writer != "spacy":
        return _unknown('with writer = "any" times do not tell')
    vocab = _status(source, "vocab")
    name = Path(f"/proc/self/fd/{source.fd}").readlink().name
    if name not in {_LAST, _BEST}:
        return _unknown(f"its folder is neither {_LAST} nor {_BEST}, so nothing is known of its writer")
    file_system = _file_system(source.fd)
    if file_system not in _ONE_CLOCK:
        return _unknown(f"times on {file_system or 'this file system'} do not tell")
    return _by_times(source, layout, name, vocab)


def _written(step: object) -> Progress:
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return Progress(step, step, "its meta.json says so")
    return _unknown(f"{META_KEY}.step in its meta.json is not a number of steps")


def _by_times(source: Source, layout: Layout, name: str, vocab: os.stat_result) -> Progress:
    last_file = _status(source, "vocab/lookups.bin")
    early = min(_status(source, file).st_mtime_ns for file in ("meta.json", "config.cfg"))
    # lookups.bin is written after it is made. A directory that is newer got its entries otherwise: from a
    # copy whose times are still to be set, or won't be, or from somebody who put a file there.
    disturbed = vocab.st_mtime_ns > last_file.st_mtime_ns
    # Setting its times sets the directory's ctime: as long as that is its mtime, nobody has.
    unfinished = name == _BEST and vocab.st_ctime_ns == vocab.st_mtime_ns
    # A stamp can be finer than the clock of ticks, and so be ahead of it.
    if (disturbed or unfinished) and abs(file_clock_ns() - vocab.st_mtime_ns) < _COPYING_NS:
        raise Moved("may still be being copied", where=f"{source.path}/vocab")
    if disturbed:
        return _unknown("its vocab folder was changed after it was saved, or its times were not kept")
    if early <= vocab.st_mtime_ns:
        return Progress(0, 0, "it is the first save of its training")
    if name == _LAST:
        return Progress(None, 1, "its training had saved before")
    if unfinished:  # not copytree's: a copy over a copy, of which each may be of another training
        return _unknown("its times are not those of the training's own copy")
    return Progress(None, _eval_frequency(layout), "its training had been evaluated before")


def _eval_frequency(layout: Layout) -> int:
    training = resolve(layout.config, layout.config.get("training"))
    every = resolve(layout.config, training.get("eval_frequency")) if isinstance(training, dict) else None
    return every if isinstance(every, int) and every >= 1 else 1


def _status(source: Source, path: str) -> os.stat_result:
    try:
        status = os.stat(path, dir_fd=source.fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise Moved("was replaced while it was looked at", where=f"{source.path}/{path}") from None
    if stat.S_ISLNK(status.st_mode):
        raise Moved("was replaced while it was looked at", where=f"{source.path}/{path}")
    return status


def _file_system(fd: int) -> str:
    """The type of the file system that an open directory lies on; empty if /proc doesn't say."""
    try:
        with Path(f"/proc/self/fdinfo/{fd}").open(encoding="ascii") as lines:
            mount = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
        with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                if before.split(" ", 1)[0] == mount:
                    return after.split(" ", 1)[0]
    except OSError:
        pass
    return ""


def _unknown(why: str) -> Progress:
    return Progress(None, 0, why)
