from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release import lease
from spancat_daemon.release.current import CannotSwap
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.history import History
from spancat_daemon.release.pruning import prune
from spancat_daemon.release.recovery import recover
from spancat_daemon.release.retention import Verdict
from tests.integration.release.fakes import VOCABULARY, Bench, judge, now

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.survey import Release
    from spancat_daemon.release.swap import Kind


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "models")


def nothing_wanted(bench: Bench) -> list[Verdict[Release]]:
    return [Verdict(release, ()) for release in bench.folder.releases()]


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_what_nothing_wants_goes_and_shared_files_stay(bench: Bench, kind: Kind) -> None:
    ids = [bench.publish(kind=kind).release.id for _ in range(4)]
    verdicts = [Verdict(r, ("last 2",) if r.id in ids[2:] else ()) for r in bench.folder.releases()]
    gone = prune(bench.folder, verdicts, history=bench.history)
    assert [release.id for release in gone] == ids[:2]
    assert [release.id for release in bench.folder.releases()] == [ids[3], ids[2]]
    live = bench.folder.live()
    assert live is not None
    assert (live.path / "vocab/strings.json").read_bytes() == VOCABULARY
    pruned = [record.data for record in bench.history.records() if record.kind == "pruned"]
    assert [data["release"] for data in pruned] == ids[:2]
    judge(bench.folder)


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_the_live_one_stays_whatever_the_verdict(bench: Bench, kind: Kind) -> None:
    first = bench.publish(kind=kind).release
    verdicts = nothing_wanted(bench)
    assert prune(bench.folder, verdicts, history=bench.history) == []
    second = bench.publish(kind=kind).release
    assert [r.id for r in prune(bench.folder, nothing_wanted(bench), history=bench.history)] == [first.id]
    assert bench.folder.live() == second
    judge(bench.folder)


def test_what_was_pinned_or_held_since_the_verdict_stays(bench: Bench) -> None:
    pinned, held, free, _ = (bench.publish().release for _ in range(4))
    verdicts = nothing_wanted(bench)
    bench.folder.pin(pinned.id)
    with lease.take(held.path):
        assert [r.id for r in prune(bench.folder, verdicts, history=bench.history)] == [free.id]
        assert held.path.is_dir()
    assert [r.id for r in prune(bench.folder, verdicts, history=bench.history)] == [held.id]
    judge(bench.folder)


def test_nothing_goes_while_a_swap_is_not_concluded(bench: Bench) -> None:
    first = bench.publish().release
    bench.publish()
    bench.history.append("intent", {"release": first.id})
    with pytest.raises(CannotSwap):
        prune(bench.folder, nothing_wanted(bench), history=bench.history)
    assert len(bench.folder.releases()) == 2


def test_a_full_disk_is_made_less_full_and_the_record_follows(bench: Bench) -> None:
    class Full(Durability):
        def sync_data(self, fd: int) -> None:  # noqa: ARG002  # Durability names it
            raise OSError(errno.ENOSPC, "No space left on device")

    first = bench.publish().release
    bench.publish()
    bench.history.close()
    history = History.open(bench.folder.history_path, clock=now)
    history._durability = Full()
    with pytest.raises(OSError, match="No space"):
        prune(bench.folder, nothing_wanted(bench), history=history)
    assert not first.path.exists()
    assert not list(bench.folder.trash_path.iterdir())
    history.close()
    bench.reopen()
    recovered = recover(bench.folder, history=bench.history)
    assert [record.kind for record in recovered.records] == ["pruned"]
    judge(bench.folder)


def test_one_that_fsync_fails_for_is_whole_or_in_the_trash(bench: Bench) -> None:
    class Dead(Durability):
        def sync_directory(self, fd: int) -> None:  # noqa: ARG002  # Durability names it
            raise OSError(errno.EIO, "Input/output error")

    bench.publish()
    bench.publish()
    with pytest.raises(OSError, match="Input/output"):
        prune(bench.folder, nothing_wanted(bench), history=bench.history, durability=Dead())
    recover(bench.folder, history=bench.history)
    judge(bench.folder)
