from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from spancat_daemon.release.durability import Durability
from spancat_daemon.release.history import History, HistoryBroken
from spancat_daemon.release.records import GENESIS, Malformed, decode, encode, fold

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 11, 22, 11, 30, 45, 123456, tzinfo=UTC)
A, B, C = (f"00000{n}-20261122T113045Z-{'abc'[n - 1] * 8}" for n in (1, 2, 3))


def ticking(step: timedelta = timedelta(minutes=1)) -> Callable[[], datetime]:
    times = iter(START + n * step for n in range(10_000))
    return lambda: next(times)


def opened(path: Path, **settings: Any) -> History:
    return History.open(path, clock=settings.pop("clock", ticking()), **settings)


def swap(history: History, release: str, **data: Any) -> None:
    data = {"release": release, "previous_release": history.live, "content_sha256": release[-8:] * 8} | data
    history.append("intent", data)
    history.append("commit", data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def test_a_record_comes_back_as_it_was_written(path: Path) -> None:
    with opened(path) as history:
        record = history.append("pinned", {"release": A, "note": "ünïcode \n\t\x7f", "score": 0.1 + 0.2})
    assert list(History.reading(path).records()) == [record]
    assert (record.seq, record.prev, record.time) == (1, GENESIS, "2026-11-22T11:30:45.123456Z")


def test_every_line_is_canonical_json_with_its_digest_last(path: Path) -> None:
    with opened(path) as history:
        history.append("pinned", {"zebra": 1, "release": A, "ant": {"b": 1, "a": 2}})
    line = path.read_bytes()
    document = json.loads(line)
    digest = document.pop("sha256")
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert line == body[:-1] + b',"sha256":"' + digest.encode() + b'"}\n'


def test_standard_tools_confirm_the_chain(path: Path) -> None:
    with opened(path) as history:
        for number in range(3):
            history.append("pinned", {"release": A, "path": 'a "quoted" \\ path', "loss": 1e-7 * number})
    script = r"""
        before=$(printf '0%.0s' $(seq 64))
        while IFS= read -r line; do
          body=$(printf %s "$line" | sed 's/,"sha256":"[0-9a-f]*"}$/}/')
          prev=$(printf %s "$line" | grep -o '"prev":"[0-9a-f]*"' | head -n 1 | cut -d '"' -f 4)
          [ "$prev" = "$before" ] || exit 1
          before=$(printf %s%s "$prev" "$body" | sha256sum | cut -d ' ' -f 1)
          case $line in *",\"sha256\":\"$before\"}") ;; *) exit 2 ;; esac
        done < "$1"
    """
    subprocess.run(["bash", "-c", script, "check", path], check=True)


def test_what_was_appended_is_there_after_reopening_and_goes_on(path: Path) -> None:
    with opened(path) as history:
        swap(history, A)
    with opened(path) as history:
        assert (history.seq, history.live, history.committed) == (2, A, 2)
        swap(history, B)
    assert History.reading(path).verify() == []
    assert [record.seq for record in History.reading(path).records()] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 5, 40, 80, 150])
def test_a_torn_last_line_is_removed_and_nothing_else(path: Path, cut: int) -> None:
    with opened(path) as history:
        history.append("pinned", {"release": A})
        kept = path.read_bytes()
        history.append("pinned", {"release": B})
    path.write_bytes(path.read_bytes()[: -cut - 1])
    assert [finding.kind for finding in History.reading(path).verify()] == ["torn"]
    with opened(path) as history:
        assert path.read_bytes() == kept
        assert "unfinished" in history.repaired
        history.append("pinned", {"release": C})
    assert History.reading(path).verify() == []
    assert [record.data["release"] for record in History.reading(path).records()] == [A, C]


def test_a_last_line_that_lost_a_page_is_removed(path: Path) -> None:
    with opened(path) as history:
        history.append("pinned", {"release": A})
        kept = path.read_bytes()
        history.append("pinned", {"release": B})
    whole = path.read_bytes()
    path.write_bytes(kept + b"\0" * 60 + whole[len(kept) + 60 :])
    with opened(path) as history:
        assert history.seq == 1
    assert path.read_bytes() == kept


def test_a_whole_last_line_without_line_end_is_a_record(path: Path) -> None:
    with opened(path) as history:
        history.append("pinned", {"release": A})
        written = path.read_bytes()
    path.write_bytes(written[:-1])
    with opened(path) as history:
        assert history.seq == 1
    assert path.read_bytes() == written


def edited(lines: list[bytes], index: int, old: bytes, new: bytes) -> list[bytes]:
    assert old in lines[index]
    return [*lines[:index], lines[index].replace(old, new), *lines[index + 1 :]]


BREAKS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], list[tuple[int, str]]]] = {
    "a value": (lambda lines: edited(lines, 1, b"why not", b"because"), [(2, "hash")]),
    "the last": (lambda lines: edited(lines, 4, b"why not", b"because"), [(5, "hash")]),
    "a line out": (lambda lines: lines[:1] + lines[2:], [(2, "gap")]),
    "swapped": (
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        [(2, "gap"), (3, "gap"), (4, "gap")],
    ),
    "garbage": (lambda lines: [*lines[:2], b"what?\n", *lines[3:]], [(3, "malformed")]),
    "no record": (lambda lines: [*lines[:2], b'{"seq":3}\n', *lines[3:]], [(3, "malformed")]),
    "no seal": (lambda lines: [*lines[:4], b'{"seq":5}\n'], [(5, "malformed")]),
    "rewritten": (
        lambda lines: [
            *lines[:1],
            encode(seq=2, prev=decode(lines[0]).sha256, time="", kind="pinned", data={}),
            *lines[2:],
        ],
        [(3, "chain")],
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_every_break_is_reported_once_and_nothing_is_written(path: Path, name: str) -> None:
    change, expected = BREAKS[name]
    with opened(path) as history:
        for _ in range(5):
            history.append("pinned", {"release": A, "note": "why not"})
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    assert [(f.line, f.kind) for f in History.reading(path).verify()] == expected
    with pytest.raises(HistoryBroken, match=rf"history\.jsonl:{expected[0][0]}: .*--verify"):
        opened(path)
    assert path.read_bytes() == before


def chain(*records: tuple[str, dict[str, Any]]) -> bytes:
    lines, prev = [], GENESIS
    for seq, (kind, data) in enumerate(records, 1):
        lines.append(encode(seq=seq, prev=prev, time="2026-11-22T11:30:45.000000Z", kind=kind, data=data))
        prev = decode(lines[-1]).sha256
    return b"".join(lines)


@pytest.mark.parametrize(
    ("kinds", "findings"),
    [
        (["intent", "commit", "intent"], []),
        (["intent", "intent", "commit"], [(2, "intent")]),
        (["intent", "pruned", "commit"], [(2, "intent")]),
        (["commit"], [(1, "outcome")]),
        (["intent", "abort", "commit"], [(3, "outcome")]),
        (["intent", "recovered", "recovered"], []),
    ],
)
def test_intents_and_outcomes_must_pair(path: Path, kinds: list[str], findings: list[Any]) -> None:
    path.write_bytes(chain(*((kind, {"release": A}) for kind in kinds)))
    assert [(f.line, f.kind) for f in History.reading(path).verify()] == findings


def test_an_outcome_must_name_the_release_of_its_intent(path: Path) -> None:
    path.write_bytes(chain(("intent", {"release": A}), ("commit", {"release": B})))
    assert [f.kind for f in History.reading(path).verify()] == ["outcome"]
    with pytest.raises(HistoryBroken):
        opened(path)


def test_nothing_is_recorded_before_an_intent_is_concluded(path: Path) -> None:
    with opened(path) as history:
        history.append("intent", {"release": A})
        for kind in ("intent", "pruned", "pinned"):
            with pytest.raises(HistoryBroken, match="record 1"):
                history.append(kind, {"release": B})
        history.append("abort", {"release": A})
        with pytest.raises(HistoryBroken):
            history.append("commit", {"release": A})


class Failing(Durability):
    """Fails once at the n-th call of a kind."""

    def __init__(self, *, data: int = 0, directory: int = 0) -> None:
        self.left = {"data": data, "directory": directory}

    def _count(self, kind: str) -> None:
        self.left[kind] -= 1
        if self.left[kind] == 0:
            raise OSError(5, "Input/output error")

    def sync_data(self, fd: int) -> None:
        self._count("data")
        super().sync_data(fd)

    def sync_directory(self, fd: int) -> None:
        self._count("directory")
        super().sync_directory(fd)


def test_a_record_that_could_not_be_made_to_stay_is_no_record(path: Path) -> None:
    with opened(path, durability=Failing(data=2)) as history:
        history.append("pinned", {"release": A})
        kept = path.read_bytes()
        with pytest.raises(OSError, match="Input/output"):
            history.append("pinned", {"release": B})
        assert path.read_bytes() == kept
        assert history.append("pinned", {"release": C}).seq == 2
    assert History.reading(path).verify() == []
    assert [record.data["release"] for record in History.reading(path).records()] == [A, C]


def test_a_short_write_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with opened(path) as history:
        history.append("pinned", {"release": A})
        kept = path.read_bytes()
        full = iter([False, True])

        def writing(fd: int, data: bytes) -> int:
            if next(full, False):
                raise OSError(28, "No space left on device")
            return write(fd, data[:20])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", writing)
            patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "dead")))
            with pytest.raises(OSError, match="No space"):
                history.append("pinned", {"release": B})
        assert path.read_bytes() != kept  # even taking it back failed
        assert history.append("pinned", {"release": C}).seq == 2
    assert History.reading(path).verify() == []


@pytest.mark.parametrize("lost", [1, 2])
def test_a_write_that_is_lost_is_found(path: Path, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """All of it, or its first half."""
    writing, calls = os.write, iter((True, False))

    def losing(fd: int, data: bytes) -> int:
        return len(data) // lost if next(calls) else writing(fd, data)

    with opened(path) as history:
        history.append("pinned", {"release": A})
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", losing)
            with pytest.raises(OSError, match="does not hold what was written") as failure:
                history.append("pinned", {"release": B})
        assert failure.value.filename == str(path)
        assert path.read_bytes() == before
        history.append("pinned", {"release": B})
        assert history.verify() == []


def test_the_files_name_is_made_to_stay_before_the_first_record(path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"):
        opened(path, durability=Failing(directory=1))
    # the file is there now, but nobody has made its name stay: the next one must do that
    with pytest.raises(OSError, match="Input/output"):
        opened(path, durability=Failing(directory=1))


def test_a_history_that_was_replaced_is_not_written_to(path: Path) -> None:
    with opened(path) as history:
        history.append("pinned", {"release": A})
        path.rename(path.with_suffix(".old"))
        with pytest.raises(HistoryBroken, match="something else"):
            history.append("pinned", {"release": B})
        assert history.append("pinned", {"release": C}).seq == 1  # a new file, read anew
    assert [record.data["release"] for record in History.reading(path).records()] == [C]


def test_reading_works_beside_a_writer_and_in_its_absence(path: Path) -> None:
    assert (History.reading(path).seq, History.reading(path).verify()) == (0, [])
    with opened(path) as history:
        swap(history, A)
        reader = History.reading(path)
        assert (reader.live, reader.seq) == (A, 2)
        with pytest.raises(HistoryBroken, match="reading only"):
            reader.append("pinned", {"release": A})


def test_at_tells_what_was_in_force(path: Path) -> None:
    with opened(path) as history:
        swap(history, A)  # committed at + 1 minute
        swap(history, B)  # + 3
        history.append("recovered", {"release": None, "previous_release": B})  # + 4
        swap(history, C)  # + 6
        for minutes, expected in ((0, None), (1, A), (2, A), (3, B), (4, None), (5, None), (6, C), (99, C)):
            record = history.at(START + timedelta(minutes=minutes))
            assert (record.data["release"] if record else None) == expected


def test_at_takes_the_later_record_where_the_clock_was_set_back(path: Path) -> None:
    with opened(path, clock=ticking(timedelta(minutes=-10))) as history:
        swap(history, A)
        swap(history, B)
        record = history.at(START)
    assert record is not None
    assert record.data["release"] == B


def test_a_rollback_bars_what_it_leaves_until_it_is_made_live_on_purpose(path: Path) -> None:
    with opened(path) as history:
        swap(history, A)
        swap(history, B)
        swap(history, A, trigger="rollback", previous_content_sha256=B[-8:] * 8)
        assert history.barred() == {B[-8:] * 8}
        swap(history, C)
        assert history.barred() == {B[-8:] * 8}
        swap(history, B, forced=True)
        assert history.barred() == frozenset()


def test_going_back_twice_goes_back_further(path: Path) -> None:
    with opened(path) as history:
        for release in (A, B, C):
            swap(history, release)
        swap(history, B, trigger="rollback")
        assert history.live_order() == (A, B)
        swap(history, A, trigger="rollback")
        assert history.live_order() == (A,)
        swap(history, C)
        assert history.live_order() == (A, C)
        assert history.released() == {A, B, C}
        history.append("pruned", {"release": B})
        assert history.released() == {A, C}


def test_the_fold_depends_on_the_records_alone(path: Path) -> None:
    with opened(path) as history:
        for release in (A, B, A, C):
            swap(history, release)
        history.append("pruned", {"release": B})
        history.append("intent", {"release": B})
        standing = fold(history.records())
        assert standing == history._standing
        assert standing == History.reading(path)._standing


def test_keys_of_every_record_and_unknown_kinds_are_refused(path: Path) -> None:
    with opened(path) as history:
        with pytest.raises(ValueError, match="sha256"):
            history.append("pinned", {"sha256": "mine"})
        with pytest.raises(ValueError, match="vanished"):
            history.append("vanished", {})
        with pytest.raises(TypeError):
            history.append("pinned", {"path": object()})
        assert history.append("pinned", {}).seq == 1


@pytest.mark.parametrize("line", [b"", b"\0", b"[]", b"{}", b'{"sha256":"x"}', b"\xff"])
def test_what_is_no_record_is_malformed(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode(line)


def test_records_with_wrong_types_are_malformed() -> None:
    good = {"seq": 1, "prev": GENESIS, "time": "t", "kind": "pinned"}
    for key, value in (
        ("seq", 0),
        ("seq", True),
        ("prev", "x"),
        ("time", 1),
        ("kind", "other"),
        ("kind", []),
    ):
        body = orjson.dumps(good | {key: value}, option=orjson.OPT_SORT_KEYS)
        with pytest.raises(Malformed):
            decode(body[:-1] + b',"sha256":"' + GENESIS.encode() + b'"}')


def test_a_whole_line_of_a_failed_append_is_taken_back_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path, durability=Failing(data=2)) as history:
        history.append("pinned", {"release": A})
        with monkeypatch.context() as patch:
            patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "dead")))
            with pytest.raises(OSError, match="Input/output"):
                history.append("pinned", {"release": B})
        assert path.read_bytes().count(b"\n") == 2
        assert history.append("pinned", {"release": C}).seq == 2
    assert [record.data["release"] for record in History.reading(path).records()] == [A, C]


def test_a_record_of_someone_else_is_read_before_anything_is_added(path: Path) -> None:
    with opened(path) as history:
        history.append("pinned", {"release": A})
        with opened(path) as other:
            other.append("pinned", {"release": B})
        with pytest.raises(HistoryBroken, match="something else"):
            history.append("pinned", {"release": C})
        assert history.append("pinned", {"release": C}).seq == 3
    assert History.reading(path).verify() == []


def test_what_is_to_follow_a_swap_is_remembered_until_it_is_or_another_goes_live(path: Path) -> None:
    with opened(path) as history:
        swap(history, A, follow_up=True)
        history.append("recovered", {"release": A, "adopted": [B]})  # the same is live
        unconcluded = [history.unconcluded]
        history.append("concluded", {"release": A, "of": history.committed})
        unconcluded.append(history.unconcluded)
        swap(history, B, follow_up=True)
        unconcluded.append(history.unconcluded)
        history.append("recovered", {"release": A})
        unconcluded.append(history.unconcluded)
    assert [record and record.data["release"] for record in unconcluded] == [A, None, B, None]


def test_what_was_not_seen_to_do_well_is_remembered(path: Path) -> None:
    with opened(path) as history:
        swap(history, A, follow_up=True, probation=True)
        history.append("concluded", {"release": A, "of": history.committed})
        swap(history, B, follow_up=True, probation=True)
        assert history.doubtful() == set()
        swap(history, C, follow_up=True)
        assert history.doubtful() == {B}
        swap(history, A)
        assert history.doubtful() == {B}, "nobody asked how C does"
        swap(history, B, follow_up=True)
        assert history.doubtful() == set(), "somebody wanted it all the same"
        swap(history, C, follow_up=True, probation=True)
        history.append("concluded", {"release": C, "of": history.committed, "unwell": True})
        assert history.doubtful() == {C}
    assert History.reading(path).doubtful() == {C}
    with opened(path) as history:
        swap(history, A)
        history.append("pruned", {"release": C})
        assert history.doubtful() == set()


def test_what_is_no_file_is_refused_without_waiting_and_leaves_no_descriptor(path: Path) -> None:
    os.mkfifo(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(HistoryBroken, match="not a regular file"):
            opened(path)
        with pytest.raises(HistoryBroken, match="not a regular file"):
            History.reading(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("long", [0, 20_000, 70_000])
@pytest.mark.parametrize("torn", [b"", b'{"kind":"commit","release"', b"\n", b"no record\n"])
def test_the_last_change_is_read_from_the_end(long: int, torn: bytes, path: Path) -> None:
    assert History.last_change(path) is None
    with opened(path) as history:
        swap(history, A)
        swap(history, B, why="x" * long)
        history.append("pinned", {"release": A, "why": "y" * long})
        history.append("intent", {"release": C})
        history.append("abort", {"release": C})
        (_, _, _, commit, *_) = history.records()
    with path.open("ab") as file:
        file.write(torn)
    assert History.last_change(path) == commit
    path.write_bytes(torn)
    assert History.last_change(path) is None
