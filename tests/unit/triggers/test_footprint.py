from __future__ import annotations

import os
from pathlib import Path

import pytest

from spancat_daemon.triggers.directories import CONTENT_BITS, ENTRY_BITS, SELF_BITS, Interest
from spancat_daemon.triggers.footprint import Footprint, Look, route
from spancat_daemon.triggers.polling import signature


def look(
    path: Path, pattern: str | None = None, *, missing: bool = False
) -> tuple[Footprint, dict[str, Interest]]:
    claimed: dict[str, Interest] = {}

    def claim(fd: int, interest: Interest) -> None:
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        claimed[name] = claimed.get(name, Interest()) | interest

    return Look(claim, missing=missing).take(route(path, pattern)), claimed


def test_an_interest_asks_the_kernel_for_no_more_than_it_needs() -> None:
    assert Interest().mask == SELF_BITS
    assert Interest(names=frozenset({"a"})).mask == SELF_BITS | ENTRY_BITS
    assert Interest(patterns=frozenset({"*"})).mask == SELF_BITS | ENTRY_BITS
    assert Interest(contents=True).mask == SELF_BITS | CONTENT_BITS


def test_interests_add_up() -> None:
    both = Interest(names=frozenset({"a"})) | Interest(patterns=frozenset({"b*"}))
    assert both.matches("a")
    assert both.matches("bc")
    assert not both.matches("c")
    assert not both.contents
    assert (both | Interest(contents=True)).contents


def test_only_the_last_folder_is_asked_for_its_entries(tmp_path: Path) -> None:
    best = tmp_path / "runs" / "model-best"
    (best / "vocab").mkdir(parents=True)
    found, claimed = look(best)
    assert claimed[str(best)].contents
    assert claimed[str(best / "vocab")].contents
    assert claimed[str(best.parent)].names == {"model-best"}
    for ancestor in best.parent.parents:
        assert claimed[str(ancestor)] == Interest()
    assert found.directories == len(claimed)
    assert found.checkpoints == [(best.stat().st_dev, best.stat().st_ino)]
    assert found.root == (best.parent.stat().st_dev, best.parent.stat().st_ino)


def test_what_is_missing_is_awaited_where_it_would_appear(tmp_path: Path) -> None:
    found, claimed = look(tmp_path / "a" / "b" / "c")
    assert claimed[str(tmp_path)].names == {"a"}
    assert found.root is None
    _found, claimed = look(tmp_path / "a" / "b" / "c", missing=True)
    assert claimed[str(tmp_path.parent)].names == {tmp_path.name}


def test_what_is_beside_a_checkpoint_is_awaited_where_it_is_whether_or_not_there_is_one(
    tmp_path: Path,
) -> None:
    best = tmp_path / "runs" / "best"
    best.parent.mkdir()
    for there in (False, True):
        claimed: dict[str, Interest] = {}

        def claim(fd: int, interest: Interest, claimed: dict[str, Interest] = claimed) -> None:
            name = str(Path(f"/proc/self/fd/{fd}").readlink())
            claimed[name] = claimed.get(name, Interest()) | interest

        Look(claim, beside=frozenset({"told"})).take(route(best, None))
        assert claimed[str(best.parent)] == Interest(names=frozenset({"best", "told"}))
        assert "told" not in claimed[str(tmp_path)].names
        if not there:
            best.mkdir()


def test_links_inside_a_checkpoint_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    best = tmp_path / "best"
    best.mkdir()
    (best / "link").symlink_to(tmp_path / "elsewhere")
    _found, claimed = look(best)
    assert str(tmp_path / "elsewhere") not in claimed


def test_the_literal_names_of_a_path_are_not_wildcards(tmp_path: Path) -> None:
    odd = tmp_path / "run[1]*" / "best"
    odd.mkdir(parents=True)
    found, _claimed = look(odd)
    assert len(found.checkpoints) == 1
    found, _claimed = look(tmp_path, f"{tmp_path}/run[[]1][*]/be?t")
    assert len(found.checkpoints) == 1


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*/best", 2),
        ("r*/best", 1),
        ("*/*", 3),
        ("[rs]un/best", 2),
        (".*/best", 1),
        ("*/no", 0),
        ("link/b*", 1),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, matched: int) -> None:
    for name in ("run/best", "sun/best", "sun/last", ".hidden/best"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "runs" / "file").write_bytes(b"")
    if pattern.startswith("link"):
        (tmp_path / "runs" / "link").symlink_to("run")
    found, _claimed = look(tmp_path / "runs", f"{tmp_path}/runs/{pattern}")
    assert len(found.checkpoints) == matched


def test_names_that_are_no_text(tmp_path: Path) -> None:
    best = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (best / "vocab").mkdir(parents=True)
    found, _claimed = look(best)
    assert len(found.checkpoints) == 1


@pytest.mark.parametrize("how", ["content", "times", "new", "gone", "renamed", "replaced"])
def test_a_signature_differs_as_soon_as_anything_does(tmp_path: Path, how: str) -> None:
    best = tmp_path / "best"
    (best / "vocab").mkdir(parents=True)
    file = best / "vocab" / "strings.json"
    file.write_bytes(b"[]")
    way = route(best, None)
    before = signature(way)[0]
    assert signature(way)[0] == before
    if how == "content":
        file.write_bytes(b"[1]")
    elif how == "times":
        os.utime(file, (1, 1))
    elif how == "new":
        (best / "empty").mkdir()
    elif how == "gone":
        file.unlink()
    elif how == "renamed":
        file.rename(file.with_name("strings"))
    else:
        best.rename(tmp_path / "old")
        (best / "vocab").mkdir(parents=True)
        file.write_bytes(b"[]")
    assert signature(way)[0] != before


@pytest.mark.parametrize("how", ["comes", "is replaced", "goes"])
def test_a_signature_differs_as_soon_as_something_beside_does(tmp_path: Path, how: str) -> None:
    best = tmp_path / "best"
    best.mkdir()
    told, other = tmp_path / "told", tmp_path / "other"
    way, beside = route(best, None), frozenset({"told"})
    if how != "comes":
        told.write_bytes(b"1")
    before = signature(way, beside=beside)[0]
    other.write_bytes(b"2")
    assert signature(way, beside=beside)[0] == before
    if how == "goes":
        told.unlink()
    else:
        other.replace(told)
    assert signature(way, beside=beside)[0] != before
    assert signature(way)[0] == signature(way)[0]
