"""docs/serving.md and docs/examples/server.py: snippets, commands, and the server on a real uvicorn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import spacy

from spancat_daemon.config.load import load
from spancat_daemon.release import lease
from tests.documented import DOCS, blocks, commands
from tests.integration.serving.publishing import Publisher
from tests.pipelines import build
from tests.service import ROOT, Daemon, configure, run, until
from tests.web_server import Server

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "serving.md"
TEXT = "Globex ships windows to Berlin and Paris."


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = Publisher(tmp_path / "models/products")
    publisher.publish(build("default", tmp_path / "checkpoint", steps=60))
    return publisher


def ask(server: Server, text: str) -> Any:
    return httpx.post(f"{server.url}/spans", json={"text": text}).raise_for_status().json()


def test_the_snippets_run(publisher: Publisher, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(block.code for block in blocks(PAGE, "python"))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_server_answers_and_ends_cleanly(publisher: Publisher) -> None:
    with Server(publisher.path) as server:
        first = ask(server, TEXT)
        found = [(TEXT[span["start"] : span["end"]], span["label"]) for span in first["spans"]]
        doc = spacy.load(publisher.path / "current")(TEXT)
        assert found == [(span.text, span.label_) for span in doc.spans["sc"]]
        assert ("Globex", "ORG") in found
        assert all(0.3 <= span["score"] <= 1 for span in first["spans"])
        assert ask(server, "") == {"release": first["release"], "spans": []}
        health = httpx.get(f"{server.url}/healthz").raise_for_status().json()
        assert health["release"] == first["release"]
        assert health["labels"] == ["ORG", "PLACE", "GÜTER"]
        wrong = httpx.get(f"{server.url}/healthz", params={"release": "another"})
        assert wrong.status_code == 503
        assert wrong.json() == {"detail": f"{first['release']} serves, not another"}
        assert httpx.post(f"{server.url}/spans", json={"txt": ""}).status_code == 422
        assert lease.is_leased(publisher.path / "current")
        assert server.end() == -signal.SIGTERM  # as uvicorn ends when it was told to
    assert not lease.is_leased(publisher.path / "current")


def test_the_server_waits_for_a_first_release(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "models/products")
    server = Server(publisher.path)
    until(lambda: "INFO:     Waiting for application startup." in server.log, what=str(server.log))
    release = publisher.publish(build("default", tmp_path / "checkpoint", steps=60))
    with server:
        assert ask(server, TEXT)["release"] == release.id


def test_the_page_asks_what_the_server_answers(publisher: Publisher) -> None:
    asked = [line for line in commands(PAGE) if line.startswith("curl ")]
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    with Server(publisher.path) as server:
        spans, health = (
            subprocess.run(
                ["bash", "-ec", line.replace("http://127.0.0.1:8000", server.url)],
                capture_output=True,
                check=True,
                timeout=120,
            ).stdout
            for line in asked
        )
    assert json.loads(spans)["spans"][0]["label"] == "ORG"
    assert json.loads(health)["release"] == json.loads(spans)["release"]


def test_the_daemon_sees_whether_the_server_took_the_release(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    (block,) = blocks(PAGE, "toml")
    (tmp_path / "of-the-page.toml").write_text(block.code)
    (rule,) = load(tmp_path / "of-the-page.toml").watch
    assert rule.health is not None
    assert rule.health.command is not None
    build("default", tmp_path / "runs/model-best")
    config = configure(tmp_path)
    assert run("snapshot", "products", config=config).returncode == 0
    with Server(tmp_path / "models/products") as server:
        table = block.code[block.code.index("[watch.health]") :].replace("http://127.0.0.1:8000", server.url)
        configure(tmp_path, more=table)
        with Daemon(config) as daemon:
            shutil.rmtree(tmp_path / "runs/model-best")
            build("default", tmp_path / "runs/model-best", generation=1)
            (swapped,) = daemon.wait_for("release.overwrite")
            (passed,) = daemon.wait_for("health.passed")
        assert passed["release"] == swapped["release"] == ask(server, TEXT)["release"]
