from __future__ import annotations

import errno
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.release import current
from spancat_daemon.release.durability import Durability
from spancat_daemon.release.history import History
from spancat_daemon.release.recovery import recover
from spancat_daemon.release.survey import names_in
from spancat_daemon.release.swap import CannotSwap, Kind, Swapped, make_live, publish, supports_exchange
from tests.integration.release.fakes import Bench, judge, now, stage

if TYPE_CHECKING:
    from spancat_daemon.release.folder import Release

KINDS: tuple[Kind, ...] = ("symlink", "exchange")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "models")


def back_to(bench: Bench, release: Release, kind: Kind, **details: Any) -> Swapped:
    return make_live(
        bench.folder,
        release,
        kind=kind,
        history=bench.history,
        details={"rule": "products", **details},
        monotonic=time.monotonic,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_release(bench: Bench, kind: Kind) -> None:
    swapped = bench.publish(kind=kind)
    assert bench.kinds() == ["intent", "commit"]
    assert swapped.previous is None
    assert swapped.record.data["previous_release"] is None
    live = bench.folder.live()
    assert live == swapped.release
    if kind == "symlink":
        assert str(bench.folder.current.readlink()) == f"releases/{live.id}"
    else:
        assert not bench.folder.current.is_symlink()
        assert names_in(bench.folder.releases_path) == []
    judge(bench.folder)


@pytest.mark.parametrize("sequence", list(itertools.product(KINDS, repeat=3)), ids=">".join)
def test_any_kind_of_swap_follows_any_other(bench: Bench, sequence: tuple[Kind, ...]) -> None:
    swaps = [bench.publish(kind=kind) for kind in sequence]
    for before, after in itertools.pairwise(swaps):
        assert after.previous is not None
        assert after.previous.id == before.release.id
        assert after.record.data["previous_content_sha256"] == before.release.manifest.content_sha256
    judge(bench.folder)
    for kind in KINDS:  # there and back again
        target = swaps[0].release if bench.history.live != swaps[0].release.id else swaps[1].release
        swapped = back_to(bench, target, kind)
        assert swapped.release.path.is_dir()
        assert swapped.previous is not None
        assert swapped.previous.path.is_dir()
        judge(bench.folder)
    assert len(bench.folder.releases()) == 3


def test_what_the_commit_says(bench: Bench) -> None:
    first = bench.publish()
    staged, manifest = stage(bench.folder, 2, b"two")
    clock = iter([10.0, 12.5])
    swapped = publish(
        bench.folder,
        staged,
        manifest,
        kind="symlink",
        history=bench.history,
        details={"rule": "products", "trigger": "schedule", "bytes": 5, "release": "not mine to say"},
        monotonic=lambda: next(clock),
        finish=lambda swap_s: {"swap_s": swap_s, "total_s": 99.0},
    )
    assert swapped.swap_s == 2.5
    assert swapped.record.data == {
        "rule": "products",
        "trigger": "schedule",
        "bytes": 5,
        "release": manifest.id,
        "previous_release": first.release.id,
        "content_sha256": manifest.content_sha256,
        "previous_content_sha256": first.release.manifest.content_sha256,
        "model_sha256": manifest.model_sha256,
        "previous_model_sha256": first.release.manifest.model_sha256,
        "swap_s": 2.5,
        "total_s": 99.0,
    }


class Recording(Durability):
    """Notes what is synced, and fails at the n-th time."""

    def __init__(self, fail_at: int = 0) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at

    def _note(self, fd: int) -> None:
        self.calls.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        if len(self.calls) == self.fail_at:
            raise OSError(errno.EIO, "Input/output error")

    def sync_data(self, fd: int) -> None:
        self._note(fd)
        super().sync_data(fd)

    def sync_directory(self, fd: int) -> None:
        self._note(fd)
        super().sync_directory(fd)


def with_durability(bench: Bench, durability: Durability) -> Bench:
    bench.history.close()
    history = History.open(bench.folder.history_path, clock=now)
    history._durability = durability
    return Bench(bench.folder, history)


@pytest.mark.parametrize(("kind", "swapped"), [("symlink", ["models"]), ("exchange", ["releases", "models"])])
def test_the_order_in_which_it_is_made_to_stay(bench: Bench, kind: Kind, swapped: list[str]) -> None:
    bench.publish(kind=kind)
    bench = with_durability(bench, durability := Recording())
    bench.publish(kind=kind, durability=durability)
    names = [os.path.basename(call) for call in durability.calls]  # noqa: PTH119  # of a str
    assert sorted(names[:2]) == ["releases", "staging"]  # both at once
    assert names[2:] == ["history.jsonl", *swapped, "history.jsonl"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fail_at", range(1, 7))
def test_a_failing_fsync_fails_the_publish_and_the_next_one_works(
    bench: Bench, kind: Kind, fail_at: int
) -> None:
    first = bench.publish(kind=kind)
    bench = with_durability(bench, durability := Recording(fail_at))
    failed = False
    try:
        bench.publish(kind=kind, durability=durability)
    except OSError:
        failed = True
    assert failed == (len(durability.calls) >= fail_at)
    durability.fail_at = 0  # it was a passing fault
    live = bench.folder.live()
    assert live is not None
    before_the_swap = fail_at <= 3
    if before_the_swap:
        assert live.id == first.release.id
        assert bench.history.pending_intent() is None
        assert [release.id for release in bench.folder.releases()] == [first.release.id]
    recover(bench.folder, history=bench.history)
    recovered = bench.folder.live()
    assert recovered is not None
    assert recovered.id == live.id
    second = bench.publish(kind=kind)
    assert bench.folder.live() == second.release
    assert len(judge(bench.folder)) == (2 if before_the_swap else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_swap_that_fails_is_taken_back_and_recorded(
    bench: Bench, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.publish(kind=kind)

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(current, "rename_exchange", broken)
        patch.setattr(current, "_temporary_link", broken)
        with pytest.raises(OSError, match="not permitted"):
            bench.publish(kind=kind)
    assert bench.kinds() == ["intent", "commit", "intent", "abort"]
    assert bench.folder.live() == first.release
    judge(bench.folder)
    bench.publish(kind=kind)
    judge(bench.folder)


def test_a_rollback_that_fails_keeps_the_release(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.publish(kind="exchange")
    second = bench.publish(kind="exchange")

    def broken(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(current, "rename_exchange", broken)
        with pytest.raises(OSError, match="not permitted"):
            back_to(bench, first.release, "exchange")
    assert bench.folder.live() == second.release
    assert bench.kinds()[-1] == "abort"
    judge(bench.folder)
    assert bench.folder.find("1").path.name == first.release.id


def test_nothing_is_swapped_before_an_earlier_swap_is_concluded(bench: Bench) -> None:
    first = bench.publish()
    bench.publish()
    bench.history.append("intent", {"release": first.release.id})
    with pytest.raises(CannotSwap, match="recover"):
        bench.publish()
    with pytest.raises(CannotSwap, match="recover"):
        back_to(bench, first.release, "symlink")
    recover(bench.folder, history=bench.history)
    bench.publish()
    judge(bench.folder)


def test_details_that_cant_be_recorded_stop_it_before_the_swap(bench: Bench) -> None:
    first = bench.publish()
    staged, manifest = stage(bench.folder, 2, b"two")
    with pytest.raises(TypeError):
        publish(
            bench.folder,
            staged,
            manifest,
            kind="symlink",
            history=bench.history,
            details={"source": object()},
            monotonic=time.monotonic,
        )
    assert bench.folder.live() == first.release
    judge(bench.folder)


def test_what_is_live_or_gone_is_not_made_live(bench: Bench) -> None:
    first, second = bench.publish(), bench.publish()
    with pytest.raises(CannotSwap, match="live already"):
        back_to(bench, second.release, "symlink")
    first.release.path.rename(bench.folder.path / "elsewhere")
    with pytest.raises(CannotSwap, match="gone"):
        back_to(bench, first.release, "symlink")
    assert bench.history.pending_intent() is None


def test_stale_temporary_links_block_nothing(bench: Bench) -> None:
    bench.publish()
    for name in (".current.1.0", f".current.{os.getpid()}.00000000"):
        (bench.folder.path / name).symlink_to("releases/nowhere")
    bench.publish()
    recover(bench.folder, history=bench.history)
    judge(bench.folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_manifest_of_the_live_release_does_not_stop_the_next(bench: Bench, kind: Kind) -> None:
    first = bench.publish(kind=kind)
    manifest = first.release.path / "release.json"
    manifest.unlink()
    manifest.write_text("{")
    recover(bench.folder, history=bench.history)
    assert bench.folder.live() is None
    second = bench.publish(kind=kind)
    assert second.record.data["previous_release"] == first.release.id
    assert bench.folder.live() == second.release
    assert [path.name for path, _ in bench.folder.broken()] == [first.release.id]


def test_exchange_is_tried_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supports_exchange(tmp_path / "not" / "there" / "yet")
    assert names_in(tmp_path) == []

    def cannot(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(current, "rename_exchange", cannot)
    assert not supports_exchange(tmp_path)
    assert names_in(tmp_path) == []
