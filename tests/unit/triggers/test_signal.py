"""Whose word is taken that a checkpoint was written, and what is no word at all."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.triggers.signal import LARGEST_BYTES, SIGNAL_NAME, Signals
from tests.spooling import signal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Scene:
    """A trainer's output folder, and somebody who looks out for signals on model-best."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.file = output / SIGNAL_NAME
        self.said: list[str] = []
        self.signals = Signals(lambda key, path, reason: self.said.append(f"{key} {path.name} {reason}"))
        self.attend()

    def attend(self, **more: Path) -> None:
        self.signals.attend({"best": self.output / "model-best", **more})

    def given(self) -> bool:
        return self.signals.given("best")

    def write(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        begun = self.output / "begun"
        begun.write_bytes(data)
        begun.replace(self.file)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_signal_is_given_once_for_each_time_it_is_written(scene: Scene) -> None:
    assert not scene.given()
    signal(scene.output, "model-last", "model-best")
    assert scene.given()
    assert not scene.given()
    signal(scene.output, "model-last", "model-best")
    assert scene.given()
    assert scene.said == []


def test_a_signal_of_another_checkpoint_is_none(scene: Scene) -> None:
    signal(scene.output, "model-last")
    assert not scene.given()
    signal(scene.output)
    assert not scene.given()
    signal(scene.output, "../elsewhere/model-best", str(scene.output / "model-best"))
    assert not scene.given()


def test_what_was_there_before_anybody_looked_is_old(tmp_path: Path) -> None:
    signal(tmp_path, "model-best")
    scene = Scene(tmp_path)
    assert not scene.given()
    scene.attend(other=tmp_path / "model-last")  # another one comes; the first stays as it is
    signal(tmp_path, "model-best")
    scene.attend(other=tmp_path / "model-last")
    assert scene.given()
    assert not scene.signals.given("other")
    scene.signals.attend({})
    signal(tmp_path, "model-best")
    assert not scene.given()


def test_a_signal_that_goes_and_comes_back(scene: Scene) -> None:
    signal(scene.output, "model-best")
    assert scene.given()
    scene.file.unlink()
    assert not scene.given()
    signal(scene.output, "model-best")
    assert scene.given()


def as_link(scene: Scene) -> None:
    signal(scene.output, "model-best")
    scene.file.rename(scene.output / "elsewhere")
    scene.file.symlink_to("elsewhere")


def as_huge(scene: Scene) -> None:
    signal(scene.output, "model-best")
    os.truncate(scene.file, 1 << 30)


GOOD: dict[str, Any] = {"schema": 1, "step": 1, "checkpoints": ["model-best"]}


@pytest.mark.parametrize(
    ("become", "reason"),
    [
        (as_link, "is a symbolic link, which is never followed"),
        (lambda scene: os.mkfifo(scene.file), "is not a regular file"),
        (lambda scene: scene.file.mkdir(), "is not a regular file"),
        (as_huge, f"has more than {LARGEST_BYTES:,} bytes"),
        (lambda scene: scene.write(""), "is not whole JSON"),
        (lambda scene: scene.write(b"\xff"), "is not whole JSON"),
        (lambda scene: scene.write("[" * 60_000), "is not whole JSON"),
        (lambda scene: scene.write(json.dumps(GOOD)[:-1]), "is not whole JSON"),
        (lambda scene: scene.write("[1]"), "is not of the schema 1"),
        (lambda scene: scene.write(json.dumps(GOOD | {"schema": 2})), "is not of the schema 1"),
        (lambda scene: scene.write('{"schema": 1}'), "does not name its checkpoints"),
        (lambda scene: scene.write(json.dumps(GOOD | {"checkpoints": "model-best"})), "does not name its"),
        (lambda scene: scene.write(json.dumps(GOOD | {"checkpoints": ["model-best", 1]})), "does not name"),
    ],
)
def test_what_is_no_signal_is_said_once_and_let_be(
    scene: Scene, become: Callable[[Scene], Any], reason: str
) -> None:
    become(scene)
    assert not scene.given()
    ((said),) = scene.said
    assert said.startswith(f"best {SIGNAL_NAME} {reason}")
    if scene.file.is_file() and not scene.file.is_symlink():
        os.utime(scene.file, (1, 1))  # touched: the same trouble is not said again
    assert not scene.given()
    assert len(scene.said) == 1
    (scene.file.rmdir if scene.file.is_dir() else scene.file.unlink)()
    signal(scene.output, "model-best")
    assert scene.given()
    scene.file.unlink()
    become(scene)
    assert not scene.given()
    assert len(scene.said) == 2


def test_a_file_that_may_not_be_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    signal(scene.output, "model-best")

    def refuse(*_arguments: Any, **_named: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert not scene.given()
    assert scene.said == [f"best {SIGNAL_NAME} Permission denied"]


def test_a_file_that_is_replaced_at_this_moment(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    signal(scene.output, "model-best")
    opened = os.open

    def gone(*arguments: Any, **named: Any) -> int:
        scene.file.unlink()
        return opened(*arguments, **named)

    monkeypatch.setattr(os, "open", gone)
    assert not scene.given()
    monkeypatch.setattr(os, "open", opened)
    signal(scene.output, "model-best")
    assert scene.given()
    assert scene.said == []


def test_of_a_checkpoint_that_is_a_link_both_sides_are_heard(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "model-best").mkdir(parents=True)
    output = tmp_path / "live"
    output.mkdir()
    link = output / "latest"
    link.symlink_to("../one/model-best")
    said: list[str] = []
    signals = Signals(lambda _key, _path, reason: said.append(reason))
    signals.attend({"latest": link})
    assert not signals.given("latest")
    signal(tmp_path / "one", "model-last", "model-best")  # by who trains there
    assert signals.given("latest")
    signal(tmp_path / "one", "model-last", "latest")
    assert not signals.given("latest")
    signal(output, "latest")  # by who sets the link
    assert signals.given("latest")
    signal(output, "model-best")
    signal(tmp_path / "two", "model-best")
    assert not signals.given("latest")
    link.unlink()
    link.symlink_to("../two/model-best")
    assert not signals.given("latest")  # what was said there before is old
    signal(tmp_path / "one", "model-best")
    assert not signals.given("latest")
    signal(tmp_path / "two", "model-best")
    assert signals.given("latest")
    link.unlink()
    link.symlink_to("latest")
    assert not signals.given("latest")
    link.unlink()
    assert not signals.given("latest")
    assert said == []
