"""The main job: a real `spacy train` runs, and everything that goes live is whole and really existed."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import spacy

from tests.judgement import history, sound
from tests.service import Daemon, Event, configure, run
from tests.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

LAST = """
[[watch]]
name = "last"
source = "training/output/model-last"
deploy = "models/last"
swap = "exchange"
[watch.keep]
[[watch]]
name = "component"
source = "training/output/model-last"
deploy = "models/component"
contents = "component"
[watch.keep]
last = 3
"""
RULES = ("products", "last", "component")


def made_live(event: Event, rule: str) -> bool:
    return event["event"] in {"release.published", "release.overwrite"} and event["rule"] == rule


def test_every_release_loads_and_is_a_state_that_the_trainer_wrote(tmp_path: Path) -> None:
    config = configure(tmp_path, source="training/output/model-best", more="[watch.keep]", rules=LAST)
    chance = random.Random(20261122)  # noqa: S311  # moments, not secrets
    moment = threading.Event()
    with Trainer(tmp_path / "training") as trainer, Daemon(config) as daemon:
        # The daemon watches before the training's first file; the trainer is stopped wherever it is
        trainer.wait_for_checkpoint("model-best")
        for _ in range(12):
            moment.wait(chance.uniform(0.0, 0.4))
            trainer.pause()
            moment.wait(chance.uniform(0.0, 0.3))
            trainer.resume()
        for rule in RULES:
            daemon.wait(lambda event, rule=rule: made_live(event, rule), count=8)  # type: ignore[misc]
        trainer.kill()
        generations = trainer.generations()
        assert run("rollback", "products", config=config).returncode == 0
    states = {frozenset(generation.items()) for generation in generations}
    assert len(states) > 8
    for rule, deploy in (("products", "products"), ("last", "last")):
        folder = tmp_path / "models" / deploy
        sound(folder)
        releases = [*(folder / "releases").iterdir()]
        if rule == "last":
            releases.append(folder / "current")
        assert len(releases) >= 8
        for release in releases:
            files = {
                path.relative_to(release).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in release.rglob("*")
                if path.is_file() and path.name not in {"release.json", "model.bin"}
            }
            assert frozenset(files.items()) in states, release
    for release in [
        *(tmp_path / "models/products/releases").iterdir(),
        *(tmp_path / "models/last/releases").iterdir(),
        tmp_path / "models/last/current",
        *(tmp_path / "models/component/releases").iterdir(),
    ]:
        nlp = spacy.load(release)
        model = nlp.get_pipe("spancat").model.to_bytes()  # type: ignore[attr-defined]
        assert (release / "model.bin").read_bytes() == model
        nlp("Globex sells doors in Paris.")
    commits = [line for line in history(tmp_path / "models/products") if line["kind"] == "commit"]
    logged = [event for event in daemon.events if made_live(event, "products")]
    assert [event["history_sha256"] for event in logged] == [line["sha256"] for line in commits]


def test_the_daemon_never_imports_what_it_must_not(tmp_path: Path) -> None:
    code = (
        "import sys, spancat_daemon.daemon.service; "
        "bad = {'spacy', 'thinc', 'srsly', 'confection', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_training_that_is_interrupted_leaves_its_last_save_live(tmp_path: Path) -> None:
    config = configure(tmp_path, source="training/output/model-last")
    with Daemon(config) as daemon, Trainer(tmp_path / "training") as trainer:
        trainer.wait_for_checkpoint("model-last", saves=3)
        trainer.interrupt()
        last = trainer.generations()[-1]
        (event,) = daemon.wait(
            lambda event: (
                event.get("model_sha256") == last["spancat/model"]
                and event["event"] in {"release.published", "release.overwrite"}
            )
        )
        live = tmp_path / "models/products/current"

        def is_the_last() -> bool:
            return hashlib.sha256((live / "tok2vec/model").read_bytes()).hexdigest() == last["tok2vec/model"]

        assert is_the_last()
    assert event["rule"] == "products"


def test_a_directory_left_by_a_killed_trainer_is_not_published(tmp_path: Path) -> None:
    """Kills the trainer in mid-save, again and again, and looks at what the daemon makes of what it left."""
    config = configure(tmp_path, source="training/output/model-last", more="[watch.keep]")
    chance = random.Random(7)  # noqa: S311  # as above
    moment = threading.Event()
    states: set[frozenset[tuple[str, str]]] = set()
    with Daemon(config) as daemon:
        for _ in range(3):
            shutil.rmtree(tmp_path / "training/journal", ignore_errors=True)
            since = len(daemon.events)
            with Trainer(tmp_path / "training") as trainer:
                trainer.wait_for_checkpoint("model-last", saves=2)
                # The first save can be what is live already, and nothing of a later one may remain.
                daemon.wait(lambda event: made_live(event, "products"), since=since)
                moment.wait(chance.uniform(0.0, 0.2))
                trainer.kill()
                states |= {frozenset(generation.items()) for generation in trainer.generations()}
    sound(tmp_path / "models/products")
    for release in (tmp_path / "models/products/releases").iterdir():
        files = {
            path.relative_to(release).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in release.rglob("*")
            if path.is_file() and path.name not in {"release.json", "model.bin"}
        }
        assert frozenset(files.items()) in states
