"""What is taken out of a spool is its newest entry, exactly as it was promised, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.checkpoint import spool as module
from spancat_daemon.checkpoint.progress import Progress, progress
from spancat_daemon.checkpoint.settle import Unsettled, examine, file_clock_ns
from spancat_daemon.checkpoint.spool import open_checkpoint
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Moved, Rejected, Vanished
from tests.pipelines import build
from tests.spooling import Spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.checkpoint.settle import Settled
    from tests.trainer import Generation

NOBODY = 65534


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return build("default", tmp_path / "pipeline")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def looked_at(source: Source) -> Settled | Unsettled:
    """What is found once the tick of the last write is over."""
    deadline = time.monotonic() + 120
    previous = None
    while time.monotonic() < deadline:
        found = examine(source, writer="spool", settle_s=0, now_ns=file_clock_ns, previous=previous)
        if not isinstance(found, Unsettled) or found.kind != "busy":
            return found
        previous = found.tree
        time.sleep(found.retry_after_s or 0)
    raise AssertionError("it stays busy")


def taken(
    spool: Spool, *, meanwhile: Callable[[Path], object] = lambda _entry: None
) -> Generation | Unsettled:
    """The digests of the copy that is accepted, or why there is none."""
    with open_checkpoint(spool.path, writer="spool") as source:
        found = looked_at(source)
        if isinstance(found, Unsettled):
            return found
        meanwhile(source.path)
        copied = {}
        for file in found.tree.files:
            if file.path not in found.proofs:
                continue
            data, proof = source.read_small(file), found.proofs[file.path]()
            proof.feed(data)
            proof.finish()
            copied[file.path] = hashlib.sha256(data).hexdigest()
        source.unchanged(found.tree)
        return copied


def test_the_newest_is_taken_as_it_is_and_without_what_is_told_of_it(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 1)
    spool.put(pipeline, 2)
    assert taken(spool) == spool.written[1]
    assert "entry.json" not in spool.written[1]
    assert "vocab/lookups.bin" in spool.written[1]


def test_the_newest_by_time_counts_whatever_its_step(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 500)
    spool.put(pipeline, 0)  # a training that was started anew
    assert taken(spool) == spool.written[-1]
    spool.put(pipeline, 0)  # the same step once more
    assert taken(spool) == spool.written[-1]
    spool.put(pipeline, 900, at=datetime(2020, 1, 1, tzinfo=UTC))  # by a clock that was set back
    assert taken(spool) == spool.written[-2]


def test_what_is_no_entry_is_of_no_matter(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 1)
    for name in ("zzz", ".nfs", "99999999", "20991231T000000.000000Z-1-1", "20991231T000000Z-000000001-1"):
        (spool.new / name).mkdir()
    (spool.new / "20991231T000000.000000Z-000000001-1.gone").write_bytes(b"")
    os.mkfifo(spool.new / "fifo")
    (spool.path / "tmp" / "20991231T000000.000000Z-000000001-1").mkdir()
    assert taken(spool) == spool.written[0]


@pytest.mark.parametrize("made", ["nothing", "spool", "new", "foreign"])
def test_a_spool_without_entries_is_an_absent_checkpoint(spool: Spool, made: str) -> None:
    if made != "nothing":
        spool.path.mkdir()
    if made in {"new", "foreign"}:
        spool.new.mkdir()
    if made == "foreign":
        (spool.new / "model-best").mkdir()
    with pytest.raises(Vanished):
        taken(spool)


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def as_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


@pytest.mark.parametrize("become", [as_link, as_file])
def test_only_directories_are_opened(spool: Spool, pipeline: Path, become: Callable[[Path], None]) -> None:
    entry = spool.put(pipeline, 1)
    become(entry)
    with pytest.raises(Rejected, match="not a directory") as caught:
        taken(spool)
    assert caught.value.where == str(entry)
    become(spool.new)
    with pytest.raises(Rejected, match="not a directory") as caught:
        taken(spool)
    assert caught.value.where == str(spool.new)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("place", ["new", "entry", "file"])
def test_what_may_not_be_read_is_said(pipeline: Path, place: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are root's alone
        spool = Spool(Path(folder) / "spool")
        entry = spool.put(pipeline, 1)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)
        closed = {"new": spool.new, "entry": entry, "file": entry / "spancat/cfg"}[place]
        closed.chmod(0o700)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(Rejected, match="can't be read") as caught:
                taken(spool)
        finally:
            os.seteuid(0)
    assert caught.value.where == str(closed)
    assert "the right to read" in caught.value.hint


def flip(entry: Path, name: str) -> None:
    data = bytearray((entry / name).read_bytes())
    data[len(data) // 2] ^= 1
    (entry / name).write_bytes(data)


@pytest.mark.parametrize(
    "name", ["spancat/model", "tok2vec/model", "spancat/cfg", "config.cfg", "meta.json", "vocab/key2row"]
)
def test_other_bytes_than_promised_are_refused(spool: Spool, pipeline: Path, name: str) -> None:
    entry = spool.put(pipeline, 1, before=lambda begun: flip(begun, name))
    with pytest.raises(Rejected) as caught:
        taken(spool)
    # What is looked at while it is opened has a place; what is copied gets one by whoever copies it.
    assert caught.value.where in {"", f"{entry}/{name}"}
    assert "is not what entry.json says" in caught.value.reason or name == "vocab/key2row"


def test_a_plain_file_is_held_against_its_digest_too(spool: Spool, pipeline: Path) -> None:
    (pipeline / "README.md").write_text("about")
    spool.put(pipeline, 1, before=lambda begun: flip(begun, "README.md"))
    with pytest.raises(Rejected, match=r"is not what entry\.json says"):
        taken(spool)


def test_a_file_too_many_is_refused(spool: Spool, pipeline: Path) -> None:
    entry = spool.put(pipeline, 1, before=lambda begun: (begun / "extra").touch())
    with pytest.raises(Rejected, match=r"is not named in entry\.json") as caught:
        taken(spool)
    assert caught.value.where == f"{entry}/extra"


def test_another_size_is_refused_before_anything_is_copied(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 1, before=lambda begun: (begun / "spancat/model").write_bytes(b"x"))
    with pytest.raises(Rejected, match=r"has 1 bytes and not the [0-9,]+ that entry\.json says"):
        taken(spool)


@pytest.mark.parametrize("name", ["entry.json", "spancat/model", "vocab/lookups.bin", "config.cfg"])
def test_a_file_too_few_is_waited_for(spool: Spool, pipeline: Path, name: str) -> None:
    """As while an entry is being removed file by file: not worth an error."""
    spool.put(pipeline, 1, before=lambda begun: (begun / name).unlink())
    found = taken(spool)
    assert isinstance(found, Unsettled)
    assert (found.kind, found.path) == ("incomplete", name)


@pytest.mark.parametrize(
    "path", ["../pipeline/config.cfg", "/etc/passwd", "spancat/../config.cfg", "a\n\x1b[2J", ""]
)
def test_no_promise_leads_out_of_the_entry(spool: Spool, pipeline: Path, path: str) -> None:
    def told(entry: dict[str, Any]) -> dict[str, Any]:
        entry["files"][path] = entry["files"]["config.cfg"]
        return entry

    spool.put(pipeline, 1, told=told)
    found = taken(spool)
    assert isinstance(found, Unsettled)
    assert found.kind == "incomplete"
    assert found.reason.isprintable()


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda entry: {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    "told",
    [
        lambda _entry: b"{",
        lambda _entry: b"[]",
        lambda _entry: b"\xff\xfe",
        lambda _entry: b"[" * 5000,
        lambda entry: json.dumps(entry).encode()[:-20],
        lambda entry: entry | {"schema": 2},
        without("schema"),
        lambda entry: entry | {"step": -1},
        lambda entry: entry | {"step": True},
        lambda entry: entry | {"step": "4"},
        without("step"),
        lambda entry: entry | {"files": list(entry["files"])},
        without("files"),
        lambda entry: entry | {"files": dict.fromkeys(entry["files"])},
        lambda entry: entry | {"files": {"config.cfg": {"sha256": "A" * 64, "bytes": 1}}},
        lambda entry: entry | {"files": {"config.cfg": {"sha256": "a" * 64, "bytes": -1}}},
        lambda entry: entry | {"files": {"config.cfg": {"sha256": ["a"], "bytes": 1.5}}},
        lambda entry: entry | {"files": {"x" * 100_000: {}}},
    ],
)
def test_what_is_told_of_an_entry_must_make_sense(
    spool: Spool, pipeline: Path, told: Callable[[dict[str, Any]], Any]
) -> None:
    entry = spool.put(pipeline, 1, told=told)
    with pytest.raises(Rejected) as caught:
        taken(spool)
    assert caught.value.where == f"{entry}/entry.json"
    assert len(caught.value.reason) < 400


def test_a_million_promises_are_not_read(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 1, before=lambda begun: os.truncate(begun / "entry.json", 1 << 30))
    tracemalloc.start()
    with pytest.raises(Rejected, match=r"has 1,073,741,824 bytes, where at most [0-9,]+ make sense"):
        taken(spool)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("how", ["link", "fifo"])
def test_nothing_in_an_entry_is_followed(spool: Spool, pipeline: Path, how: str) -> None:
    def before(begun: Path) -> None:
        (begun / "spancat/model").unlink()
        if how == "link":
            (begun / "spancat/model").symlink_to(pipeline / "spancat/model")
        else:
            os.mkfifo(begun / "spancat/model")

    spool.put(pipeline, 1, before=before)
    with pytest.raises(Rejected, match="never followed or read"):
        taken(spool)


@pytest.mark.parametrize("how", ["files", "all", "renamed", "replaced", "byte"])
def test_an_entry_that_goes_while_it_is_copied_has_moved(spool: Spool, pipeline: Path, how: str) -> None:
    """It never counts as vanished, nor as broken: the next look finds its successor."""
    spool.put(pipeline, 1)
    spool.put(pipeline, 2)

    def meanwhile(entry: Path) -> None:
        if how == "files":
            (entry / "vocab/lookups.bin").unlink()
        elif how in {"all", "replaced"}:
            shutil.rmtree(entry)
        elif how == "renamed":
            gone = entry.rename(spool.path / "tmp/gone")
            shutil.rmtree(gone)
        else:
            os.utime(entry / "vocab/lookups.bin")
        if how == "replaced":
            shutil.copytree(pipeline, entry)

    with pytest.raises(Moved):
        taken(spool, meanwhile=meanwhile)
    if how in {"all", "renamed"}:
        assert taken(spool) == spool.written[0]


def test_an_entry_that_is_only_moved_away_is_copied_to_its_end(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 1)
    found = taken(spool, meanwhile=lambda entry: entry.rename(spool.path / "tmp/gone"))
    assert found == spool.written[0]


def test_one_that_is_gone_before_it_is_opened_gives_way_to_the_next(
    spool: Spool, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put(pipeline, 1)
    found = Source.last_name

    def slow(self: Source, pattern: Any) -> str | None:
        name = found(self, pattern)
        if len(spool.written) == 1:
            shutil.rmtree(spool.new / str(name))
            spool.put(pipeline, 2)
        return name

    monkeypatch.setattr(Source, "last_name", slow)
    assert taken(spool) == spool.written[1]


def test_entries_that_come_and_go_too_fast_are_looked_for_again(
    spool: Spool, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put(pipeline, 1)
    name = "20991231T000000.000000Z-000000001-1"
    monkeypatch.setattr(Source, "last_name", lambda _self, _pattern: name)
    with pytest.raises(Moved):
        taken(spool)


def test_a_spool_with_many_entries_is_no_matter_of_memory(spool: Spool, pipeline: Path) -> None:
    newest = spool.put(pipeline, 1)
    for number in range(10_000):
        (spool.new / f"20200101T000000.{number:06d}Z-000000001-1").touch()
    tracemalloc.start()
    with open_checkpoint(spool.path, writer="spool") as source:
        assert source.path == newest
    assert tracemalloc.get_traced_memory()[1] < 256 << 10
    tracemalloc.stop()


def test_a_file_with_a_time_in_the_future_is_looked_at_twice(spool: Spool, pipeline: Path) -> None:
    """As after the clock was set back: its entries are taken all the same."""
    spool.put(pipeline, 1)
    with open_checkpoint(spool.path, writer="spool") as source:
        now = file_clock_ns() - 3600 * 10**9
        first = examine(source, writer="spool", settle_s=0, now_ns=lambda: now)
        assert isinstance(first, Unsettled)
        assert first.kind == "busy"
        second = examine(source, writer="spool", settle_s=0, now_ns=lambda: now, previous=first.tree)
    assert not isinstance(second, Unsettled)


def test_its_step_is_the_one_it_tells(spool: Spool, pipeline: Path) -> None:
    spool.put(pipeline, 7, told=lambda entry: entry | {"step": 400})  # also where meta.json says otherwise
    with open_checkpoint(spool.path, writer="spool") as source:
        found = looked_at(source)
        assert not isinstance(found, Unsettled)
        assert progress(source, found.layout, writer="spool") == Progress(400, 400, "its entry.json says so")
        (source.path / module.ENTRY_NAME).unlink()
        with pytest.raises(Moved):
            progress(source, found.layout, writer="spool")
