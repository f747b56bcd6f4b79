from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release.current import CannotSwap, lead_to, renew
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.survey import names_in
from tests.integration.release.fakes import Bench

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.swap import Kind


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "models")


def test_the_link_is_relative_so_that_the_folder_can_be_moved(bench: Bench, tmp_path: Path) -> None:
    live = bench.publish().release
    bench.folder.path.rename(tmp_path / "moved")
    assert (tmp_path / "moved/current/release.json").samefile(
        tmp_path / "moved/releases" / live.id / "release.json"
    )


def test_temporary_links_have_names_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = bench.publish().release, bench.publish()
    monkeypatch.setattr(secrets, "token_hex", lambda _: "same")
    (bench.folder.path / f".current.{os.getpid()}.same").symlink_to("x")
    with pytest.raises(FileExistsError):
        lead_to(bench.folder, first.id, kind="symlink", outgoing=None, durability=DURABLE)
    monkeypatch.undo()
    lead_to(bench.folder, first.id, kind="symlink", outgoing=None, durability=DURABLE)
    assert bench.folder.current_state().id == first.id


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_a_directory_is_not_replaced_without_a_name_to_give_it(bench: Bench, kind: Kind) -> None:
    first, second = bench.publish(kind="exchange").release, bench.publish(kind="exchange").release
    with pytest.raises(CannotSwap, match="name"):
        lead_to(bench.folder, first.id, kind=kind, outgoing=None, durability=DURABLE)
    assert bench.folder.live() == second


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_renewing_changes_nothing_but_writes(bench: Bench, kind: Kind) -> None:
    release = bench.publish(kind=kind).release
    before = bench.folder.path.stat().st_mtime_ns
    renew(bench.folder, bench.folder.current_state(), DURABLE)
    assert bench.folder.path.stat().st_mtime_ns > before
    assert bench.folder.live() == release
    assert names_in(bench.folder.path) == [".spancat-daemon", "current", "releases"]
