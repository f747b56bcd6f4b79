"""Directories with parts of two generations, or part of one, as writers leave them that are cut off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.checkpoint.settle import Settled, Unsettled, examine, file_clock_ns
from spancat_daemon.checkpoint.tree import Source, Stamp, Tree
from spancat_daemon.errors import Moved, Rejected, Vanished
from tests.pipelines import build

if TYPE_CHECKING:
    from spancat_daemon.checkpoint.settle import Writer

# As Language.to_disk writes them (test_write_order proves it).
_ORDER = (
    *("tokenizer", "meta.json", "config.cfg"),
    *("tok2vec/cfg", "tok2vec/model", "spancat/cfg", "spancat/model"),
    *("vocab/strings.json", "vocab/vectors", "vocab/key2row", "vocab/vectors.cfg", "vocab/lookups.bin"),
)


@pytest.fixture
def generations(tmp_path: Path) -> tuple[Path, Path]:
    return build("default", tmp_path / "a"), build("default", tmp_path / "b", generation=1)


def _verdict(checkpoint: Path, writer: Writer = "spacy") -> str:
    """What becomes of it when looked at until it is no more too young: "accepted" or why not."""
    previous: Tree | None = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with Source.open(checkpoint) as source:
            try:
                found = examine(source, writer=writer, settle_s=0, now_ns=file_clock_ns, previous=previous)
                if isinstance(found, Settled):
                    _prove(found)
                    return "accepted"
            except Rejected:
                return "rejected"
        if found.retry_after_s is None:
            return found.kind
        previous = found.tree
        time.sleep(found.retry_after_s)
    raise AssertionError("it stays busy")


def _prove(settled: Settled) -> None:
    for file in settled.tree.files:
        proof = settled.proofs[file.path]()
        proof.feed(settled.source.read_small(file))
        proof.finish()
    settled.source.unchanged(settled.tree)


def _overwrite(path: Path, data: bytes) -> None:
    """As spaCy: truncate in place, write."""
    with path.open("wb") as file:
        file.write(data)


def test_a_save_cut_off_between_two_files_is_torn(generations: tuple[Path, Path]) -> None:
    a, b = generations
    assert _verdict(a) == "accepted"
    for path in _ORDER[:-1]:
        _overwrite(a / path, (b / path).read_bytes())
        assert _verdict(a) == "torn", path
    _overwrite(a / _ORDER[-1], (b / _ORDER[-1]).read_bytes())
    assert _verdict(a) == "accepted"


def test_a_save_cut_off_within_a_file_is_never_accepted(generations: tuple[Path, Path]) -> None:
    a, b = generations
    for path in _ORDER:
        data = (b / path).read_bytes()
        for length in sorted({0, 1, len(data) // 2, len(data) - 1} - {len(data)}):
            _overwrite(a / path, data[:length])
            assert _verdict(a) in {"torn", "incomplete", "rejected"}, (path, length)
        _overwrite(a / path, data)
    assert _verdict(a) == "accepted"


@pytest.mark.parametrize("writer", ["spacy", "any"])
def test_every_beginning_of_a_copy_is_incomplete(
    generations: tuple[Path, Path], tmp_path: Path, writer: Writer
) -> None:
    # model-best: an empty directory that copytree fills in the order of the directory's entries.
    copy = tmp_path / "best"
    copy.mkdir()
    files = [Path(root, name) for root, _, names in os.walk(generations[0]) for name in names]
    for file in files:
        assert _verdict(copy, writer) == "incomplete", file
        target = copy / file.relative_to(generations[0])
        target.parent.mkdir(exist_ok=True)
        data = file.read_bytes()
        _overwrite(target, data[:-1])
        assert _verdict(copy, writer) in {"incomplete", "torn", "rejected"}, file
        shutil.copy2(file, target)
    assert _verdict(copy, writer) == "accepted"


def test_first_save_of_all_is_incomplete_until_its_last_file(
    generations: tuple[Path, Path], tmp_path: Path
) -> None:
    new = tmp_path / "new"
    for path in _ORDER:
        if new.exists():
            assert _verdict(new) == "incomplete", path
        (new / path).parent.mkdir(exist_ok=True, parents=True)
        _overwrite(new / path, (generations[1] / path).read_bytes())
    assert _verdict(new) == "accepted"


def test_a_directory_renamed_into_place_is_accepted(generations: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = generations
    a.rename(tmp_path / "old")
    with pytest.raises(Vanished):
        _verdict(a)
    b.rename(a)
    assert _verdict(a) == "accepted"


def test_a_removed_directory_is_vanished_for_who_holds_it_open(generations: tuple[Path, Path]) -> None:
    with Source.open(generations[0]) as source:
        shutil.rmtree(generations[0])
        shutil.copytree(generations[1], generations[0])
        with pytest.raises(Vanished):
            examine(source, writer="spacy", settle_s=0, now_ns=file_clock_ns)


@pytest.mark.parametrize("kept", [("--preserve=timestamps",), ()])
def test_a_copy_made_by_another_program(
    generations: tuple[Path, Path], tmp_path: Path, kept: tuple[str, ...]
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", *kept, generations[0], copy], check=True)
    if not kept:
        # cp takes the order of the directory's entries; a network copy any: here the worst for us.
        os.utime(copy / "tokenizer")
        assert _verdict(copy, "spacy") == "torn"
    assert _verdict(copy, "any") == "accepted"


def test_a_file_of_another_generation_that_kept_its_time_is_torn(generations: tuple[Path, Path]) -> None:
    # All files whole, nothing moves, it loads: only the order of times tells.
    a, b = generations
    shutil.copy2(b / "tok2vec/model", a / "tok2vec/model")
    assert _verdict(a) == "torn"


@pytest.mark.parametrize("writer", ["spacy", "any"])
def test_labels_of_another_generation_are_rejected(generations: tuple[Path, Path], writer: Writer) -> None:
    a, _ = generations
    path = a / "spancat/cfg"
    before = path.stat()
    cfg = json.loads(path.read_bytes())
    labels = cfg["labels"]
    for changed in ([*reversed(labels)], labels[:-1], []):
        _overwrite(path, json.dumps({**cfg, "labels": changed}).encode())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert _verdict(a, writer) == "rejected", changed


@pytest.mark.parametrize("writer", ["spacy", "any"])
def test_an_output_of_another_width_is_rejected(generations: tuple[Path, Path], writer: Writer) -> None:
    a, _ = generations
    for path in (a / "spancat/cfg", a / "meta.json"):
        before = path.stat()
        data = json.loads(path.read_bytes())
        labels = data["labels"] if path.name == "cfg" else data["labels"]["spancat"]
        labels.append("ONE MORE")
        _overwrite(path, json.dumps(data).encode())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _verdict(a, writer) == "rejected"


def test_any_needs_two_looks_and_the_quiet_time(generations: tuple[Path, Path]) -> None:
    a, _ = generations

    def look(
        now_ns: int, previous: Tree | None = None, unchanged_s: float | None = None
    ) -> Settled | Unsettled:
        with Source.open(a) as source:
            return examine(
                source,
                writer="any",
                settle_s=2.0,
                now_ns=lambda: now_ns,
                previous=previous,
                unchanged_s=unchanged_s,
            )

    changed = max(file.stat().st_ctime_ns for file in a.rglob("*"))
    hour = 3600 * 10**9
    for now_ns in (changed, changed + hour, changed - hour):  # a clock may have been set, either way
        first = look(now_ns)
        assert isinstance(first, Unsettled)
        assert (first.kind, first.retry_after_s) == ("busy", 2.0)
        # With a monotonic clock of the caller the wall clock does not matter.
        early = look(now_ns, first.tree, 1.5)
        assert isinstance(early, Unsettled)
        assert early.retry_after_s == 0.5
        assert isinstance(look(now_ns, first.tree, 2.0), Settled)
    # Without one the stamps must be old as well, or plainly of another clock.
    first = look(changed)
    assert isinstance(first, Unsettled)
    young = look(changed + 10**9, first.tree)
    assert isinstance(young, Unsettled)
    assert young.retry_after_s == 1.0
    assert isinstance(look(changed + 2 * 10**9, first.tree), Settled)
    assert isinstance(look(changed - hour, first.tree), Settled)
    # Anything that changes between the looks begins the time anew.
    os.utime(a / "meta.json")
    assert isinstance(look(changed + hour, first.tree, 10.0), Unsettled)


def test_a_write_within_the_same_tick_is_waited_out(generations: tuple[Path, Path]) -> None:
    a, _ = generations
    changed = max(file.stat().st_ctime_ns for file in a.rglob("*") if file.is_file())

    def look(
        now_ns: int, previous: Tree | None = None, unchanged_s: float | None = None
    ) -> Settled | Unsettled:
        with Source.open(a) as source:
            return examine(
                source,
                writer="spacy",
                settle_s=0,
                now_ns=lambda: now_ns,
                previous=previous,
                unchanged_s=unchanged_s,
            )

    for now_ns in (changed, changed - 10**5):  # stamped with the tick's time, or with a finer one within it
        found = look(now_ns)
        assert isinstance(found, Unsettled)
        assert found.kind == "busy"
        assert found.retry_after_s is not None
        assert 0 < found.retry_after_s <= 0.02
    assert isinstance(look(changed + 1), Settled)
    # Another machine's clock an hour ahead: no waiting for an hour, but for a second look.
    ahead = look(changed - 3600 * 10**9)
    assert isinstance(ahead, Unsettled)
    assert ahead.retry_after_s is not None
    assert ahead.retry_after_s < 1
    # Not for one in the same tick, which an event can bring about.
    assert isinstance(look(changed - 3600 * 10**9, ahead.tree, 0.0001), Unsettled)
    assert isinstance(look(changed - 3600 * 10**9, ahead.tree, ahead.retry_after_s), Settled)
    assert isinstance(look(changed - 3600 * 10**9, ahead.tree), Settled)


def test_a_file_system_of_whole_seconds_takes_two_looks(
    generations: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = generations
    exact = Stamp.of

    def of_whole_seconds(status: os.stat_result) -> Stamp:
        stamp = exact(status)
        whole = {name: getattr(stamp, name) // 10**9 * 10**9 for name in ("mtime_ns", "ctime_ns")}
        return replace(stamp, **whole)

    monkeypatch.setattr(Stamp, "of", of_whole_seconds)

    def look(previous: Tree | None, unchanged_s: float | None) -> Settled | Unsettled:
        with Source.open(a) as source:
            return examine(
                source,
                writer="spacy",
                settle_s=0,
                now_ns=file_clock_ns,
                previous=previous,
                unchanged_s=unchanged_s,
            )

    first = look(None, None)
    assert isinstance(first, Unsettled)
    assert (first.kind, first.retry_after_s) == ("busy", 2.0)
    early = look(first.tree, 0.5)
    assert isinstance(early, Unsettled)
    assert early.retry_after_s == 1.5
    assert isinstance(look(first.tree, 2.0), Settled)
    _overwrite(a / "spancat/cfg", (b / "spancat/cfg").read_bytes() + b" ")
    assert isinstance(look(first.tree, 9.0), Unsettled)


def test_a_change_during_the_copy_is_moved(generations: tuple[Path, Path]) -> None:
    a, b = generations
    with Source.open(a) as source:
        time.sleep(0.03)
        settled = examine(source, writer="spacy", settle_s=0, now_ns=file_clock_ns)
        assert isinstance(settled, Settled)
        _overwrite(a / "spancat/model", (b / "spancat/model").read_bytes())  # same length
        with pytest.raises(Moved, match="spancat/model"):
            source.open_file(settled.tree.by_path["spancat/model"])
        with pytest.raises(Moved, match="spancat/model"):
            source.unchanged(settled.tree)
