"""docs/training.md: its commands, and the configurations in docs/examples, with a real training."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import spacy

from spancat_daemon.config.load import load
from spancat_daemon.serving.listing import live, releases
from tests.documented import DOCS, EXAMPLES, blocks, commands
from tests.judgement import sound
from tests.service import Daemon
from tests.trainer import corpus

PAGE = DOCS / "training.md"
BRIEF = "--training.max_steps 24 --training.eval_frequency 8 --training.logger.every_steps 5"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("training.cfg", "daemon.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    for name in ("train.spacy", "dev.spacy"):
        shutil.copy(corpus(), tmp_path / name)
    return tmp_path


def do(command: str, here: Path) -> str:
    """Type a command into a shell, where this environment's programs are found first."""
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=here,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_training_and_the_daemon_fit_each_other(here: Path) -> None:
    run, train, *lists = commands(PAGE)[:4]
    assert run == "spancat-daemon run &"
    assert train.startswith("spacy train training.cfg ")
    with Daemon(here / "daemon.toml") as daemon:
        do(f"{train} {BRIEF}", here)
        best = (here / "runs/products/model-best/spancat/model").read_bytes()
        fresh = newest(here / "runs/products/spool/new") / "spancat/model"
        for folder, newest_one in (("products", best), ("products-fresh", fresh.read_bytes())):
            model = here / "models" / folder / "current/model.bin"
            daemon.wait(lambda _, model=model, one=newest_one: model.exists() and model.read_bytes() == one)  # type: ignore[misc]
        for line in lists:
            assert "*" in do(line, here)
    for folder in ("products", "products-fresh"):
        sound(here / "models" / folder)
        found = live(here / "models" / folder)
        assert found is not None
        doc = spacy.load(found.path)("Globex sells doors in Paris.")
        assert "sc" in doc.spans
    assert {release.manifest.trigger for release in releases(here / "models/products-fresh")} == {"signal"}
    assert "signal" in {event.get("trigger") for event in daemon.events}


def newest(spool: Path) -> Path:
    return max(spool.iterdir())


def test_the_logger_as_one_file(here: Path) -> None:
    copy, train = commands(PAGE)[4:]
    do(copy, here)
    assert (here / "snapshot_logger.py").exists()
    do(f"{train} {BRIEF}", here)
    assert (here / "runs/old/written.json").exists()
    assert list((here / "runs/old/spool/new").iterdir())


@pytest.mark.parametrize("number", range(2))
def test_the_loggers_of_the_page_are_loggers(here: Path, number: int) -> None:
    block = blocks(PAGE, "ini")[number]
    config = spacy.util.load_config_from_str(f"[training]\n\n{block.code}")
    made = spacy.util.registry.resolve(config["training"])
    assert callable(made["logger"])


def test_the_rules_of_the_page_are_rules(here: Path) -> None:
    (block,) = blocks(PAGE, "toml")
    (here / "of-the-page.toml").write_text(block.code)
    (rule,) = load(here / "of-the-page.toml").watch
    _, in_example = load(here / "daemon.toml").watch
    assert rule.writer == in_example.writer == "spool"


def test_the_page_and_the_example_name_the_same_logger() -> None:
    first = blocks(PAGE, "ini")[0].code
    assert first in (EXAMPLES / "training.cfg").read_text(encoding="utf-8")
