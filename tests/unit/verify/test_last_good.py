"""Where to go back to, in folders with releases that really rotted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.release.swap import make_live
from spancat_daemon.verify.last_good import good_release
from tests.integration.release.fakes import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spancat_daemon.release.folder import Release
    from spancat_daemon.verify.digests import Finding


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "products")


def rot(release: Release, path: str = "spancat/model") -> None:
    (release.path / path).chmod(0o644)
    with (release.path / path).open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))


def go_back(bench: Bench, release: Release) -> None:
    make_live(
        bench.folder, release, kind="symlink", history=bench.history, details={}, monotonic=time.monotonic
    )


def target(bench: Bench, **settings: Any) -> str | None:
    found = good_release(bench.folder, bench.history, **{"not_content": ""} | settings)
    again = good_release(bench.folder, None, **{"not_content": ""} | settings)
    assert found == again
    return found.id if found else None


def test_the_one_before_and_past_what_has_rotted(bench: Bench) -> None:
    first, second, third, live = (bench.publish().release for _ in range(4))
    told: list[tuple[str, list[str]]] = []

    def passed_over(release: Release, findings: Sequence[Finding]) -> None:
        told.append((release.id, [finding.path for finding in findings]))

    assert target(bench) == third.id
    rot(third)
    assert target(bench) == second.id
    (second.path / "config.cfg").unlink()
    found = good_release(bench.folder, bench.history, not_content="", passed_over=passed_over)
    assert found == bench.folder.find(first.id)
    assert told == [(third.id, ["model.bin", "spancat/model"]), (second.id, ["config.cfg"])]
    rot(first)
    assert target(bench) is None
    assert bench.folder.live() == bench.folder.find(live.id), "nothing was changed"


def test_the_same_content_is_no_way_out_unless_only_its_bytes_are_bad(bench: Bench) -> None:
    first, second = bench.publish().release, bench.publish().release
    bench.publish()
    content = second.manifest.content_sha256
    assert target(bench, not_content=content) == first.id
    assert target(bench) == second.id


def test_what_was_gone_back_from_is_no_target_though_it_lies_below(bench: Bench) -> None:
    first, second = bench.publish().release, bench.publish().release
    go_back(bench, first)
    bench.publish()
    assert second.manifest.content_sha256 in bench.history.barred()
    assert target(bench) == first.id
    rot(first)
    assert target(bench) is None


def test_it_goes_on_below_what_the_history_knows(bench: Bench) -> None:
    releases = [bench.publish().release for _ in range(3)]
    bench.history.close()
    bench.folder.history_path.unlink()
    bench.reopen()
    go_back(bench, releases[1])
    go_back(bench, releases[2])
    rot(releases[1])
    assert target(bench) == releases[0].id


@pytest.mark.parametrize("kind", ["symlink", "exchange"])
def test_a_live_one_without_a_readable_manifest_has_one_before_it(bench: Bench, kind: Any) -> None:
    first, _, live = (bench.publish(kind=kind).release for _ in range(3))
    manifest = live.path / "release.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    assert bench.folder.live() is None
    rot(bench.folder.find("2"))
    assert target(bench) == first.id


def test_nothing_is_live_nothing_to_go_back_to(bench: Bench) -> None:
    assert target(bench) is None
    bench.publish()
    assert target(bench) is None


def test_what_one_would_rather_not_go_back_to_is_the_last_resort(bench: Bench) -> None:
    first, second, third, _ = (bench.publish().release for _ in range(4))
    assert target(bench, rather_not={third.id}) == second.id
    rot(first)
    rot(second)
    assert target(bench, rather_not={third.id}) == third.id


def test_reading_can_be_given_up(bench: Bench) -> None:
    bench.publish()
    bench.publish()

    def give_up(_bytes: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        good_release(bench.folder, bench.history, not_content="", pace=give_up)
