"""A daemon on the current spaCy, and a server on spaCy 3.2.2, whose interpreter is the one that judges."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import spacy

from tests.judgement import sound
from tests.pipelines import build, texts
from tests.service import Daemon, Event, configure
from tests.serving_python import SPACY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving_python import ServingPython

# Both take the same checkpoints, one to be loaded with the current spaCy.
OWN = """
[[watch]]
name = "own"
source = "runs/model-best"
deploy = "models/own"
"""


def of(event: Event, rule: str, *names: str) -> bool:
    return event["event"] in names and event["rule"] == rule


def manifest(deploy: Path) -> dict[str, Any]:
    release: dict[str, Any] = json.loads((deploy / "current/release.json").read_bytes())
    return release


def test_what_goes_live_is_what_the_serving_interpreter_loads(
    tmp_path: Path, serving_python: ServingPython
) -> None:
    checkpoint = serving_python.train(tmp_path / "runs/model-best")
    text = "Acme Corp opened an office in Berlin."
    probe = {"text": text, "spans": [[0, 9, "ORG"], [30, 36, "PLACE"]]}
    (tmp_path / "probes.jsonl").write_text(json.dumps(probe) + "\n")
    verify = f'verify = {{ python = "{serving_python.path}", probes = "probes.jsonl" }}'
    served, own = tmp_path / "models/products", tmp_path / "models/own"
    with Daemon(configure(tmp_path, more=verify, rules=OWN, level=None)) as daemon:
        # What it trained itself goes live, and predicts there exactly what the checkpoint does
        daemon.wait(lambda event: of(event, "products", "release.published"))
        found = manifest(served)
        assert found["verifier"]["spacy"] == SPACY
        assert found["verifier"]["python"].startswith("3.10.")
        assert found["verification"]["probed"] == {"total": 1, "passed": 1, "spans": 2, "failures": []}
        predicted = serving_python.predictions(served / "current", [text, *texts()])
        assert predicted == serving_python.predictions(checkpoint, [text, *texts()])
        assert {span[:3] for span in predicted[0]} == {(0, 2, "ORG"), (6, 7, "PLACE")}

        # The daemon's own interpreter loads it, too, and says what it was trained with
        daemon.wait(lambda event: of(event, "own", "release.published"))
        found = manifest(own)
        assert found["verifier"]["spacy"] == spacy.about.__version__
        (warning,) = found["verification"]["warnings"]
        assert warning.startswith("[W095]")
        assert f"v{SPACY}" in warning

        # What was trained with the current spaCy is for the one, and not for the other
        live = manifest(served)["id"]
        shutil.rmtree(checkpoint)
        build("own", checkpoint)
        (rejected,) = daemon.wait(lambda event: of(event, "products", "snapshot.rejected"))
        wanted = json.loads((checkpoint / "meta.json").read_bytes())["spacy_version"]
        assert f"the checkpoint needs spaCy {wanted}" in rejected["reason"]
        assert f"{serving_python.path} has {SPACY}" in rejected["reason"]
        daemon.wait(lambda event: of(event, "own", "release.overwrite"))
        assert manifest(own)["verification"]["passed"]
    assert sound(served)["id"] == live
    assert [event["event"] for event in daemon.events if of(event, "products", "release.overwrite")] == []
