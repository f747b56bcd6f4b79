"""The logger in a real ``spacy train``: by configuration alone, killed, interrupted, and in an old spaCy."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from tests import pythons
from tests.integration.training.running import entries, signal, whole
from tests.pipelines import predictions, texts
from tests.service import until
from tests.serving_python import find_or_install
from tests.trainer import Trainer

if TYPE_CHECKING:
    from tests.serving_python import ServingPython

ROOT = Path(__file__).parents[2]
LOGGER = """
[training.logger]
@loggers = "spancat_daemon.SnapshotLogger.v1"
every_steps = {every_steps}
"""
KILLS = int(os.environ.get("SPANCAT_DAEMON_KILLS", "1"))


def logged(every_steps: int) -> str:
    return LOGGER.format(every_steps=every_steps)


def step(checkpoint: Path) -> Any:
    return json.loads((checkpoint / "meta.json").read_bytes())["spancat_daemon"]["step"]


def test_the_configuration_alone_is_enough(tmp_path: Path) -> None:
    with Trainer(tmp_path, eval_frequency=5, max_steps=23, more=logged(3)) as trainer:
        trainer.wait()
    said = signal(trainer.output)
    assert said is not None
    assert (said["schema"], said["step"], said["checkpoints"], said["final"]) == (1, 23, ["model-last"], True)
    assert step(trainer.model_last) == 23
    assert step(trainer.model_best) % 5 == 0
    found = entries(trainer.output / "spool")
    assert [whole(entry)["step"] for entry in found][-1] == 21
    assert len(found) == 3
    for entry in found:
        predictions(entry, texts())
    assert "SCORE" in trainer.said()  # spaCy's own table
    counts = r"(\d+) written, 3 of them kept; (\d+) older ones removed, (\d+) dropped unwritten, 0 failed"
    ((written, removed, dropped),) = re.findall(counts, trainer.said())
    assert (int(written) + int(dropped), int(removed)) == (7, int(written) - 3)
    # A checkpoint is itself again where this logger is unknown
    code = (
        "import sys, spacy; sys.modules['spancat_daemon'] = None; print(spacy.load(sys.argv[1]).pipe_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, found[-1]], check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == "['tok2vec', 'spancat']", done.stderr


def test_ctrl_c_saves_as_ever(tmp_path: Path) -> None:
    with Trainer(tmp_path, eval_frequency=50, more=logged(1)) as trainer:
        trainer.wait_for_checkpoint(saves=1)
        until((trainer.output / "spool/new").exists)
        trainer.interrupt()
    said = signal(trainer.output)
    assert said is not None
    assert said["final"]
    assert step(trainer.model_last) == said["step"]
    spacy.load(trainer.model_last)
    newest = [whole(entry)["step"] for entry in entries(trainer.output / "spool")][-1]
    assert newest == said["step"] or newest == said["step"] - 1  # it ended between the step and its copy
    assert not list((trainer.output / "spool/tmp").iterdir())


def test_killed_at_any_time_it_leaves_whole_entries_and_what_the_next_one_removes(tmp_path: Path) -> None:
    chance, moment = random.Random(4), threading.Event()  # noqa: S311  # moments, not secrets
    spool, left = tmp_path / "output/spool", 0
    for _ in range(KILLS):
        with Trainer(tmp_path, eval_frequency=7, more=logged(1)) as trainer:
            pid = trainer._running().pid
            until(lambda pid=pid: any(e.name.endswith(f"-{pid}") for e in spool.glob("new/*")))  # type: ignore[misc]
            moment.wait(chance.uniform(0, 0.15))
            trainer.kill()
        assert entries(spool)  # each of them whole
        left += len(list((spool / "tmp").iterdir()))
        spacy.load(entries(spool)[-1])
        assert {path.name for path in trainer.output.iterdir()} <= {
            "model-last", "model-best", "spool", "written.json", ".written.json.tmp",
        }  # fmt: skip
    assert left
    with Trainer(tmp_path, eval_frequency=7, max_steps=3, more=logged(1)) as trainer:
        trainer.wait()
    assert len(entries(spool)) == 3
    assert not list((spool / "tmp").iterdir())
    assert {path.name for path in trainer.output.iterdir()} == {
        "model-last", "model-best", "spool", "written.json",
    }  # fmt: skip


def judge_old(trainer: Trainer, old: ServingPython) -> None:
    said = signal(trainer.output)
    assert said is not None
    assert (said["step"], said["final"]) == (11, True)
    assert step(trainer.model_last) == 11
    found = entries(trainer.output / "spool")
    assert [whole(entry)["step"] for entry in found][-1] == 9
    assert old.predictions(found[-1], texts())
    assert "SCORE" in trainer.said()


def test_in_an_old_environment_the_copied_file_is_enough(tmp_path: Path) -> None:
    """As with ``--code snapshot_logger.py``; what the trainer of the tests needs stands before it."""
    old_python = find_or_install("3.8")
    code = (ROOT / "spancat_daemon/training/snapshot_logger.py").read_text()
    with Trainer(
        tmp_path, eval_frequency=4, max_steps=11, more=logged(3), python=old_python.path, code=code
    ) as trainer:
        trainer.wait()
    judge_old(trainer, old_python)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_in_an_old_environment_the_package_installs_without_what_it_needs(
    tmp_path: Path, wheel: Path
) -> None:
    old_python = find_or_install("3.10")
    site = tmp_path / "site"  # not into the environment, which other tests share
    options = (
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--ignore-requires-python",
        "--no-index",
    )
    done = pythons.run(
        str(old_python.path), "-m", "pip", "install", *options, "--target", str(site), str(wheel)
    )
    assert done.returncode == 0, done.stderr
    with Trainer(
        tmp_path / "training",
        eval_frequency=4,
        max_steps=11,
        more=logged(3),
        python=old_python.path,
        environ={"PYTHONPATH": str(site)},
    ) as trainer:
        trainer.wait()
    judge_old(trainer, old_python)
