"""No release goes live unless it was seen to work: by the real daemon, the real loader, on real models."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import spacy
from spacy.tokens import DocBin

from tests.judgement import history, sound
from tests.pipelines import _examples, build
from tests.service import Daemon, configure, run, until

if TYPE_CHECKING:
    from pathlib import Path

GATES = """
[watch.verify]
gold = "gold.spacy"
probes = "probes.jsonl"
min_pass = 0.5
[watch.gate]
minimum = 0.5
max_drop = 0.1
labels = "same"
max_latency_ms = 10000
"""
PROBES = """\
{"text": "The office in New York belongs to Globex.", "spans": [[14, 22, "PLACE"]]}
{"text": "Nothing of note happened today.", "absent": [[0, 7, "ORG"]]}
"""


def replace_checkpoint(folder: Path, generation: int, *, name: str = "model-best", **shape: Any) -> Path:
    fresh = build("default", folder / f"fresh-{name}-{generation}", generation=generation, **shape)
    checkpoint = folder / "runs" / name
    if checkpoint.exists():
        checkpoint.rename(folder / f"before-{name}-{generation}")
    checkpoint.parent.mkdir(exist_ok=True)
    fresh.rename(checkpoint)
    return checkpoint


def rejected(folder: Path) -> list[Path]:
    kept = (folder / "models/products/.spancat-daemon/rejected").iterdir()
    return sorted(path for path in kept if path.is_dir())


def test_gates_keep_the_untrained_and_the_worse_out(tmp_path: Path) -> None:
    checkpoint = replace_checkpoint(tmp_path, 0, steps=1)  # as good as the first save of a training
    examples = _examples(spacy.load(checkpoint))
    DocBin(docs=[example.reference for example in examples], store_user_data=True).to_disk(
        tmp_path / "gold.spacy"
    )
    (tmp_path / "probes.jsonl").write_text(PROBES)
    with Daemon(configure(tmp_path, level=None, more=GATES)) as daemon:
        (refused,) = daemon.wait_for("snapshot.rejected")
        assert "minimum of spans_sc_f" in refused["reason"]
        figures = {figure["gate"]: figure for figure in refused["gates"]}
        assert not figures["minimum"]["passed"]
        assert figures["minimum"]["source"] == "gold"
        assert figures["labels"]["passed"]  # there is nothing to compare with yet
        # It is kept with all that was found out
        (kept,) = rejected(tmp_path)
        assert kept.name == refused["snapshot"]
        verification = json.loads((kept / "release.json").read_text())["verification"]
        assert (verification["passed"], verification["gates"]) == (False, refused["gates"])
        assert verification["evaluated"]["documents"] == len(examples)

        replace_checkpoint(tmp_path, 0)
        (first,) = daemon.wait_for("release.published")
        assert first["verified"] == "probes"
        assert all(figure["passed"] for figure in first["gates"])
        assert {figure["gate"] for figure in first["gates"]} == {
            *("minimum", "max_drop", "labels", "max_latency_ms", "min_pass")
        }
        # Worse than what is live, on the same documents, whatever its meta.json says
        worse = build("default", tmp_path / "worse", generation=0)
        nlp = spacy.load(worse)
        pipe: Any = nlp.get_pipe("spancat")
        output = [node for node in pipe.model.walk() if node.name == "linear"][-1]
        output.set_param("b", output.get_param("b") + np.float32(100.0))  # all is everything
        nlp.to_disk(worse)
        checkpoint.rename(tmp_path / "good")
        worse.rename(checkpoint)
        again = daemon.wait_for("snapshot.rejected", count=2)[1]
        drop = next(figure for figure in again["gates"] if figure["gate"] == "max_drop")
        assert not drop["passed"]
        assert drop["live"] == next(f["value"] for f in first["gates"] if f["gate"] == "minimum")

        # The same content is not tried again, until somebody says so
        asked = run("snapshot", "products", config=daemon.config)
        assert asked.returncode == 1
        assert "rejected" in asked.stderr
        assert len(rejected(tmp_path)) == 2
        assert sound(tmp_path / "models/products")["id"] == first["release"]

    _overrule(tmp_path, daemon.config, str(again["snapshot"]))


def _overrule(folder: Path, config: Path, snapshot: str) -> None:
    """After a restart it is still known what was rejected; somebody may overrule that."""
    with Daemon(config) as daemon:
        (refused,) = daemon.wait_for("snapshot.rejected")
        assert f"was rejected before, as {snapshot}" in refused["reason"]
        forced = run("snapshot", "products", "--force", config=config)
        assert forced.returncode == 1
        assert "max_drop" in forced.stderr
        promoted = run(
            *("promote", "products", snapshot, "--force", "--reason", "we need it"),
            config=config,
        )
        # It was verified anew by force, and what it was kept as took the other's place
        assert promoted.returncode != 0
        newest = rejected(folder)[-1].name
        promoted = run(*("promote", "products", newest, "--force", "--reason", "we need it"), config=config)
        assert promoted.returncode == 0, promoted.stderr
        (told,) = daemon.wait_for("release.promoted")
        assert told["reason"] == "we need it"
        assert "max_drop" in told["overruled"]
    manifest = sound(folder / "models/products")
    assert manifest["id"] == promoted.stdout.strip()
    assert manifest["verification"]["passed"] is False
    assert manifest["verification"]["promoted"]["snapshot"] == newest


def test_while_a_verification_hangs_all_else_goes_on(tmp_path: Path) -> None:
    """Other rules' snapshots, commands to them, commands to the same rule, and the end."""
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    others = "".join(
        f'[[watch]]\nname = "other{number}"\nsource = "runs/other"\ndeploy = "models/other{number}"\n'
        'verify = { level = "structure" }\n'
        for number in range(3)
    )
    replace_checkpoint(tmp_path, 0)
    replace_checkpoint(tmp_path, 0, name="other")
    config = configure(tmp_path, rules=others)
    deploy = tmp_path / "models/products"
    with Daemon(config) as daemon:
        daemon.wait_for("release.published", count=4)
        replace_checkpoint(tmp_path, 1)
        daemon.wait_for("release.overwrite")
        more = f'[watch.verify]\npython = "{hanging}"\ntimeout = "10m"\n'
        configure(tmp_path, rules=others, level=None, more=more)
        assert run("reload", config=config).returncode == 0
        daemon.wait_for("daemon.reloaded")
        since = len(daemon.events)
        replace_checkpoint(tmp_path, 2)
        daemon.wait(lambda event: event["event"] == "snapshot.started", since=since)
        until(lambda: _states(config)["products"] == "verifying")
        replace_checkpoint(tmp_path, 1, name="other")
        overwritten = daemon.wait(lambda event: event["event"] == "release.overwrite", since=since, count=3)
        assert {event["rule"] for event in overwritten} == {"other0", "other1", "other2"}
        before = os.readlink(deploy / "current")  # noqa: PTH115  # the text
        back = run("rollback", "products", config=config)
        assert back.returncode == 0, back.stderr
        assert run("pin", "products", "@0", config=config).returncode == 0
        assert os.readlink(deploy / "current") != before  # noqa: PTH115  # the text
        assert _states(config)["products"] == "verifying"
    # It was stopped in the midst of it, and nothing is left over
    sound(deploy)
    assert "concluded" not in {line["kind"] for line in history(deploy)}


def _states(config: Path) -> dict[str, str]:
    status = json.loads(run("status", "--json", config=config).stdout)
    return {rule["rule"]: rule["state"] for rule in status["rules"]}


def test_what_goes_live_while_another_is_verified_makes_it_be_verified_again(tmp_path: Path) -> None:
    """Else it would have been compared with something that is not live any more."""
    replace_checkpoint(tmp_path, 0)
    config = configure(tmp_path)
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        replace_checkpoint(tmp_path, 1)
        daemon.wait_for("release.overwrite")
        gate, wrapper = tmp_path / "gate", tmp_path / "python"
        os.mkfifo(gate)
        # The interpreter waits at the gate before it begins
        wrapper.write_text(f'#!/bin/sh\nread -r _ < "{gate}"\nexec "{sys.executable}" "$@"\n')
        wrapper.chmod(0o755)
        configure(tmp_path, level=None, more=f'[watch.verify]\npython = "{wrapper}"\n')
        assert run("reload", config=config).returncode == 0
        replace_checkpoint(tmp_path, 2)
        until(lambda: _states(config)["products"] == "verifying")
        back = run("rollback", "products", config=config)
        assert back.returncode == 0, back.stderr
        since = len(daemon.events)
        gate.write_text("go\n")
        (third,) = daemon.wait(
            lambda event: event["event"] == "release.overwrite" and event["trigger"] == "change", since=since
        )
        assert third["previous_release"] == back.stdout.strip()
        # It was staged once more, after what it had been compared with was gone
        assert [event for event in daemon.events[since:] if event["event"] == "snapshot.started"]
    sound(tmp_path / "models/products")
