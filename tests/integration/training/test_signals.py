"""What a training says of its saves, and when."""

from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from tests.integration.training.running import Watcher, signal, trained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spacy.language import Language

Said = tuple[int, tuple[str, ...], bool]
LAST, BOTH = ("model-last",), ("model-last", "model-best")


def said(output: Path) -> Said | None:
    found = signal(output)
    return (found["step"], tuple(found["checkpoints"]), found["final"]) if found else None


def step_of(checkpoint: Path) -> int:
    step: int = json.loads((checkpoint / "meta.json").read_bytes())["spancat_daemon"]["step"]
    return step


def test_each_save_is_told_once_it_is_whole_and_the_last_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, watcher = tmp_path / "output", Watcher()
    best: list[bool] = []
    before: list[Said | None] = []
    between: list[Said | None] = []
    after: list[Said | None] = []

    def before_to_disk(nlp: Language) -> Language:
        before.append(said(output))
        nlp.to_disk(tmp_path / "elsewhere/../copy")  # as a callback may; no save of the training's
        assert said(output) == before[-1]
        return nlp

    def copytree_seen(*arguments: Any, **options: Any) -> Any:
        if arguments[0] == output / "model-last":  # not of the folders in it
            between.append(said(output))
        return real(*arguments, **options)

    def on_step(info: dict[str, Any] | None) -> None:
        if info:
            after.append(said(output))
            best.append(info["score"] == max(info["checkpoints"])[0])
            assert step_of(output / "model-last") == info["step"]

    def on_final() -> None:
        with watcher.nlp.use_params({}):  # as loggers that upload models do; no save either
            watcher.nlp.to_disk(tmp_path / "model-last")
        assert said(output) == after[-1]

    real = shutil.copytree
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(shutil, "copytree", copytree_seen)
    watcher.before_to_disk, watcher.on_step, watcher.on_final = before_to_disk, on_step, on_final
    done = trained(output, watcher, {})
    assert done.raised is None
    assert best[0]
    told = [(step, BOTH if is_best else LAST, False) for step, is_best in zip((0, 4, 8), best, strict=True)]
    assert after == told
    assert between == [(step, LAST, False) for step, is_best in zip((0, 4, 8), best, strict=True) if is_best]
    assert before == [None, *told]
    assert said(output) == (11, LAST, True)
    assert step_of(output / "model-last") == 11
    assert step_of(output / "model-best") in {0, 4, 8}
    assert {path.name for path in output.iterdir()} == {"model-last", "model-best", "written.json"}
    assert not (tmp_path / "written.json").exists()
    assert done.stderr == ""
    assert type(done.nlp) is type(spacy.blank("en"))  # nothing of it stays


def test_what_is_saved_is_what_is_saved_without_it(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", Watcher())
    ours = trained(tmp_path / "ours", Watcher(), {"every_steps": 2})
    assert ours.result() == plain.result()
    assert ours.nlp is not None
    assert plain.nlp is not None
    assert ours.nlp.to_bytes(exclude=["meta", "config"]) == plain.nlp.to_bytes(exclude=["meta", "config"])


COPIES: dict[str, Callable[[Language], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
def test_a_copy_that_before_to_disk_returns_is_what_is_saved_and_told(tmp_path: Path, how: str) -> None:
    def before_to_disk(nlp: Language) -> Language:
        changed: Language = COPIES[how](nlp)
        assert type(changed).__mro__[1:] == type(spacy.blank("en")).__mro__[1:]
        changed.meta = {**changed.meta, "description": "a copy"}
        return changed

    def run(output: Path, settings: dict[str, Any] | None) -> Any:
        watcher = Watcher()
        watcher.before_to_disk = before_to_disk
        return trained(output, watcher, settings)

    plain, ours = run(tmp_path / "plain", None), run(tmp_path / "ours", {})
    assert ours.result() == plain.result()
    assert ours.raised is None
    meta = json.loads((ours.output / "model-last/meta.json").read_bytes())
    assert (meta["description"], meta["spancat_daemon"]) == ("a copy", {"step": 11})
    assert said(ours.output) == (11, LAST, True)
    assert ours.stderr == ""


def test_copies_of_a_pipeline_in_training_are_plain(tmp_path: Path) -> None:
    watcher, plain = Watcher(), type(spacy.blank("en"))
    seen: list[type] = []

    def on_step(info: dict[str, Any] | None) -> None:
        if not info:
            return
        assert type(watcher.nlp) is not plain
        assert type(watcher.nlp).__name__ == plain.__name__
        assert isinstance(watcher.nlp, plain)
        seen.extend(type(COPIES[how](watcher.nlp)) for how in ("copy", "deepcopy"))
        blank = spacy.blank("en")
        blank.__class__ = type(watcher.nlp)
        seen.append(type(pickle.loads(pickle.dumps(blank))))  # noqa: S301  # our own

    watcher.on_step = on_step
    assert trained(tmp_path / "output", watcher, {}).raised is None
    assert set(seen) == {plain}


@pytest.mark.parametrize("when", ["setup", "step", "final"])
def test_what_the_wrapped_logger_raises_goes_through_as_without_us(tmp_path: Path, when: str) -> None:
    def run(output: Path, settings: dict[str, Any] | None) -> Any:
        watcher = Watcher()

        def fail(*_: object) -> None:
            if when != "step" or len(watcher.steps) == 7:
                raise ZeroDivisionError("a bug of the logger's")

        setattr(watcher, f"on_{when}", fail)
        return trained(output, watcher, settings)

    plain, ours = run(tmp_path / "plain", None), run(tmp_path / "ours", {"every_steps": 2})
    assert isinstance(ours.raised, ZeroDivisionError)
    assert (type(ours.raised), str(ours.raised)) == (type(plain.raised), str(plain.raised))
    assert ours.result() == plain.result()
    found = said(ours.output)
    if when == "setup":
        assert found is None
    elif when == "step":
        assert found == (6, LAST, True)
    else:
        assert found is not None
        assert (found[0], found[2]) == (8, False)  # spaCy saves no more


@pytest.mark.parametrize("at", ["step", "save"])
def test_ctrl_c_saves_once_more_and_tells(tmp_path: Path, at: str) -> None:
    def run(output: Path, settings: dict[str, Any] | None) -> Any:
        watcher = Watcher()
        interrupted: list[bool] = []

        def interrupt(value: Any = None) -> Any:
            if len(watcher.steps) == 4 and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt
            return value

        if at == "step":
            watcher.on_step = interrupt
        else:
            watcher.before_to_disk = interrupt
        return trained(output, watcher, settings)

    plain, ours = run(tmp_path / "plain", None), run(tmp_path / "ours", {"every_steps": 1})
    assert isinstance(ours.raised, KeyboardInterrupt)
    assert ours.result() == plain.result()
    assert said(ours.output) == (3, LAST, True)


def test_no_output_folder(tmp_path: Path) -> None:
    done = trained(None, Watcher(), {"every_steps": 2})
    assert done.raised is None
    assert done.stderr.count("the training has no output folder") == 2  # once, and how often at the end
    plain = trained(None, Watcher())
    assert done.nlp is not None
    assert plain.nlp is not None
    assert done.nlp.to_bytes(exclude=["meta", "config"]) == plain.nlp.to_bytes(exclude=["meta", "config"])


def test_a_closed_standard_error(tmp_path: Path) -> None:
    closed = io.StringIO()
    closed.close()
    (tmp_path / "output/spool").mkdir(parents=True)
    (tmp_path / "output/spool/new").write_text("in the way")
    done = trained(tmp_path / "output", Watcher(), {"every_steps": 2}, stderr=closed)
    assert done.raised is None
    assert said(done.output) == (11, LAST, True)
