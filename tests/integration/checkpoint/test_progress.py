"""Whether a checkpoint is the first save of its training: real trainings, copies, and what looks like one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.checkpoint import progress as module
from spancat_daemon.checkpoint.layout import read_outline
from spancat_daemon.checkpoint.progress import Progress, progress
from spancat_daemon.checkpoint.settle import Settled, examine, file_clock_ns
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Moved
from tests import trainer as trainers
from tests.pipelines import build
from tests.service import PATIENCE_S
from tests.trainer import Trainer

if TYPE_CHECKING:
    from spancat_daemon.checkpoint.settle import Writer

EVERY = 40
FIRST = Progress(0, 0, "it is the first save of its training")
SAVED_BEFORE = Progress(None, 1, "its training had saved before")
EVALUATED_BEFORE = Progress(None, EVERY, "its training had been evaluated before")

_TELL_STEP = """
@spacy.registry.callbacks("step.v1")
def tell_step():
    def before_update(nlp, args):
        nlp.meta["spancat_daemon"] = {"step": args["step"]}
    return before_update
"""

# After step 0, and after each step that ends with a save.
_STOP_AFTER_SAVES = """
@spacy.registry.callbacks("stop.v1")
def stop(every: int):
    def before_update(nlp, args):
        if args["step"] % every == 1:
            os.kill(os.getpid(), 19)  # SIGSTOP
    return before_update
"""


def _settled(checkpoint: Path) -> Progress:
    """What is told of a checkpoint that stands still, as soon as it counts as settled."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with Source.open(checkpoint) as source:
            found = examine(source, writer="spacy", settle_s=0, now_ns=file_clock_ns)
            if isinstance(found, Settled):
                try:
                    return progress(source, found.layout)
                except Moved:  # made and copied within one tick: it may be half a copy
                    wait_s = 0.05
            else:
                assert found.retry_after_s is not None, found.reason
                wait_s = found.retry_after_s
        time.sleep(wait_s)
    raise AssertionError("it stays busy")


def _told(checkpoint: Path, writer: Writer = "spacy", **config: Any) -> Progress:
    """What is told of a checkpoint whether or not it is settled, and with another configuration."""
    outline = read_outline((checkpoint / "config.cfg").read_bytes(), (checkpoint / "meta.json").read_bytes())
    with Source.open(checkpoint) as source:
        return progress(source, replace(outline, config={**outline.config, **config}), writer=writer)


def _train(folder: Path, every: int) -> Trainer:
    """A training that stops itself after each save, before the next step: both its folders are whole then."""
    section = f'\n[training.before_update]\n@callbacks = "stop.v1"\nevery = {every}\n'
    return Trainer(folder, eval_frequency=every, code=_STOP_AFTER_SAVES, more=section)


def _mtime(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_a_training_and_another_one_in_the_same_folder(tmp_path: Path) -> None:
    with _train(tmp_path, EVERY) as training:
        training.wait_until_stopped()
        assert len(training.generations()) == 1
        assert _settled(training.model_last) == FIRST
        assert _settled(training.model_best) == FIRST
        first = _mtime(training.model_best / "meta.json")
        subprocess.run(["cp", "-a", training.output, tmp_path / "first"], check=True)

        while _mtime(training.model_best / "meta.json") == first:
            training.resume()
            training.wait_until_stopped()
        assert _settled(training.model_last) == SAVED_BEFORE
        assert _settled(training.model_best) == EVALUATED_BEFORE

        # Copies that keep times tell the same, without what they were copied from; others tell nothing.
        subprocess.run(["cp", "-a", training.output, tmp_path / "later"], check=True)
        for name, told in (("model-last", SAVED_BEFORE), ("model-best", EVALUATED_BEFORE)):
            assert _settled(tmp_path / "first" / name) == FIRST
            assert _settled(tmp_path / "later" / name) == told
            shutil.rmtree(tmp_path / "first" / name)
            shutil.move(tmp_path / "later" / name, tmp_path / f"{name}-of-today")
            assert _settled(tmp_path / f"{name}-of-today").at_least == 0

        training.interrupt()
        assert _settled(training.model_last) == SAVED_BEFORE

    with _train(tmp_path, 1000) as again:
        saved = len(again.generations())
        again.wait_until_stopped()
        assert len(again.generations()) == saved + 1
        assert _settled(again.model_last) == FIRST
        assert _settled(again.model_best) == FIRST


def test_a_training_that_tells_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "_CALLBACKS", trainers._CALLBACKS + _TELL_STEP)
    section = '\n[training.before_update]\n@callbacks = "step.v1"\n'
    monkeypatch.setattr(trainers, "_CONFIG", trainers._CONFIG + section)
    with Trainer(tmp_path, eval_frequency=2, max_steps=3) as training:
        training.wait()
        assert _settled(training.model_last) == Progress(3, 3, "its meta.json says so")
        best = _settled(training.model_best)
        assert best.step == best.at_least
        assert best.step in {0, 2}
        # It is believed wherever and by whomever it was copied.
        shutil.copytree(training.model_last, tmp_path / "elsewhere", copy_function=shutil.copyfile)
        assert _told(tmp_path / "elsewhere", "any").step == 3


@pytest.mark.parametrize("step", [-1, True, 2.0, "2", None])
def test_a_step_that_is_none_is_not_replaced_by_a_guess(tmp_path: Path, step: object) -> None:
    checkpoint = _saved_again(tmp_path / "model-last")
    meta = json.loads((checkpoint / "meta.json").read_text())
    (checkpoint / "meta.json").write_text(json.dumps({**meta, "spancat_daemon": {"step": step}}))
    told = _told(checkpoint)
    assert (told.step, told.at_least) == (None, 0)
    assert "not a number of steps" in told.how
    (checkpoint / "meta.json").write_text(json.dumps({**meta, "spancat_daemon": ["step"]}))
    assert _told(checkpoint) == SAVED_BEFORE


def test_only_folders_that_the_training_names_are_told_of(tmp_path: Path) -> None:
    exported = build("default", tmp_path / "exported")
    shutil.copytree(exported, tmp_path / "model-best")
    assert _told(tmp_path / "model-best") == FIRST
    (tmp_path / "latest").symlink_to("model-best")
    assert _told(tmp_path / "latest") == FIRST
    _save_again(exported)
    (tmp_path / "model-last").symlink_to("exported")
    for path in (exported, tmp_path / "model-last"):
        told = _told(path)
        assert (told.step, told.at_least) == (None, 0)
        assert "neither model-last nor model-best" in told.how


def test_foreign_writers_and_file_systems_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = _saved_again(tmp_path / "model-last")
    assert _told(checkpoint) == SAVED_BEFORE
    assert _told(checkpoint, "any").at_least == 0
    found = subprocess.run(["df", "--output=fstype", tmp_path], capture_output=True, text=True, check=True)
    file_system = found.stdout.split()[-1]
    with Source.open(tmp_path) as source, Source.open(Path("/proc/self")) as processes:
        assert module._file_system(source.fd) == file_system
        assert module._file_system(processes.fd) == "proc"
    monkeypatch.setattr(module, "_ONE_CLOCK", module._ONE_CLOCK - {file_system})
    assert _told(checkpoint) == Progress(None, 0, f"times on {file_system} do not tell")


def test_a_copy_that_is_being_finished_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = _saved_again(tmp_path / "model-last")
    copy = shutil.copytree(saved, tmp_path / "copy" / "model-best")
    assert _told(copy) == replace(EVALUATED_BEFORE, at_least=200)  # spaCy's default
    # copytree gives a directory its times after those of its files.
    (copy / "vocab/more").touch()
    (copy / "vocab/more").unlink()
    made = (copy / "vocab").stat().st_mtime_ns
    for moment in (made - 4_000_000, made, made + 900_000_000):
        monkeypatch.setattr(module, "file_clock_ns", lambda moment=moment: moment)
        with pytest.raises(Moved):
            _told(copy)
    # If it never does, nothing is told: the directory is no older than the copy.
    monkeypatch.setattr(module, "file_clock_ns", lambda: made + 10**9)
    assert _told(copy).at_least == 0
    assert "its times were not kept" in _told(copy).how


def test_a_folder_that_was_written_twice_is_no_copy_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `cp -r` does it, again and again, where directories list in the order of making.
    checkpoint = _saved_again(tmp_path / "model-best")
    later = time.time_ns() + 10**10
    monkeypatch.setattr(module, "file_clock_ns", lambda: later)
    told = _told(checkpoint)
    assert (told.step, told.at_least) == (None, 0)
    assert "not those of the training's own copy" in told.how


def test_files_that_go_meanwhile(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "model-last")
    for gone in ("vocab/lookups.bin", "vocab", "."):
        with Source.open(checkpoint) as source:
            outline = read_outline(
                (checkpoint / "config.cfg").read_bytes(), (checkpoint / "meta.json").read_bytes()
            )
            (shutil.rmtree if (checkpoint / gone).is_dir() else os.unlink)(checkpoint / gone)
            with pytest.raises(Moved):
                progress(source, outline)


@pytest.mark.parametrize(
    ("every", "at_least"),
    [(50, 50), ("${system.every}", 7), (0, 1), ("often", 1), (None, 1)],
)
def test_a_later_best_is_at_least_at_the_second_evaluation(
    tmp_path: Path, every: object, at_least: int
) -> None:
    saved = _saved_again(tmp_path / "model-last")
    best = shutil.copytree(saved, tmp_path / "model-best")
    told = _told(best, training={"eval_frequency": every}, system={"every": 7})
    assert (told.step, told.at_least) == (None, at_least)
    assert _told(best, training="nothing").at_least == 1


def _saved_again(folder: Path) -> Path:
    """A pipeline that was saved to the same folder twice, as a trainer does it with model-last."""
    shutil.copytree(build("default", folder.parent / "made"), folder, copy_function=shutil.copyfile)
    shutil.rmtree(folder / "vocab")  # its time is that of the copying from now on
    (folder / "vocab").mkdir()
    for file in sorted((folder.parent / "made/vocab").iterdir()):
        shutil.copyfile(file, folder / "vocab" / file.name)
    return _save_again(folder)


def _save_again(folder: Path) -> Path:
    """Write each file once more, in place and in spaCy's order, after the clock of files has moved on."""
    made = file_clock_ns()
    while file_clock_ns() <= made:
        time.sleep(0.001)
    pipes = [f"{pipe}/{file}" for pipe in ("tok2vec", "spancat") for file in ("cfg", "model")]
    vocab = [f"vocab/{name}" for name in ("strings.json", "vectors", "key2row", "vectors.cfg", "lookups.bin")]
    for name in ("tokenizer", "meta.json", "config.cfg", *pipes, *vocab):
        (folder / name).write_bytes((folder / name).read_bytes())
    return folder
