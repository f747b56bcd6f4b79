"""Rejected snapshots, as the commands show and promote them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.daemon.control import ControlServer
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.rejects import keep, let_go
from spancat_daemon.release.staging import seal
from spancat_daemon.release.swap import publish
from spancat_daemon.verify.verdict import Evaluated, Figure, LoadVerdict, Probed, Timed, Verification
from tests.integration.release.fakes import now
from tests.pipelines import build
from tests.service import Daemon, configure, run
from tests.unit.release.staging_scene import FILES, MODEL, Scene, manifest_of

if TYPE_CHECKING:
    import subprocess

FAILED = Verification(
    level="probes",
    passed=False,
    reason="max_drop of spans_sc_f: 0.41, limit 0.02, live 0.79",
    terms_sha256="7" * 64,
    figures=(
        Figure(gate="max_bytes", passed=True, value=1_480_000, limit=2_000_000, source="files"),
        Figure(
            gate="max_drop", passed=False, value=0.41, limit=0.02, live=0.79, of="spans_sc_f", source="gold",
            note="0.38 lower",
        ),
    ),
    verdict=LoadVerdict(
        ok=True,
        reason="",
        spacy="3.8.7",
        thinc="8.3.6",
        python="3.11.7",
        numpy="2.1.0",
        warnings=("[W095] Model 'en_pipeline' was trained with spaCy v3.7",),
        probed=Probed(8, 7, 12, ("line 3: 'Acme Corp' is no ORG",)),
        evaluated=Evaluated(
            40, {"spans_sc_f": 0.41, "spans_sc_per_type": {"ORG": {"p": 0.5, "r": 0.25, "f": 1 / 3}}}
        ),
        live_evaluated=Evaluated(40, {"spans_sc_f": 0.79}),
        timed=Timed(20, 1.25, 1.5),
        load_s=0.518,
        peak_rss_bytes=231_000_000,
        total_s=0.7,
    ),
)  # fmt: skip
PASSED = replace(FAILED, passed=True, reason="")


class Site:
    """A configuration, and a folder with one release and two newer snapshots that were rejected."""

    def __init__(self, root: Path) -> None:
        self.config = root / "daemon.toml"
        self.checkpoint = root / "run"
        self.folder = DeploymentFolder(root / "models")

    @classmethod
    def make(cls, root: Path) -> Site:
        site = cls(root)
        site.config.write_text(
            '[daemon]\ncontrol_socket = "control.sock"\nmin_free = "1MiB"\n'
            '[[watch]]\nname = "products"\nsource = "run/model-last"\ndeploy = "models"\n'
        )
        site.folder.prepare()
        for model in (b"good", b"bad", b"worse"):
            site.take(model, PASSED if model == b"good" else FAILED)
        return site

    def take(self, model: bytes, verification: Verification) -> str:
        """Stages a checkpoint with that model and publishes or rejects it, as it was verified."""
        scene = Scene(self.checkpoint, self.folder.staging_path, self.folder.releases_path)
        for path, raw in {**FILES, MODEL: model}.items():
            scene.write(path, raw)
        staged = scene.stage(previous=self.folder.live())
        assert verification.verdict is not None
        manifest = manifest_of(
            staged,
            self.folder.next_sequence(),
            verification=verification.document,
            verifier=verification.verdict.verifier,
        )
        if not verification.passed:
            keep(self.folder, staged, manifest, last=3)
            return manifest.id
        seal(staged, manifest)
        with History.open(self.folder.history_path, clock=now) as history:
            publish(
                self.folder, staged, manifest, kind="symlink", history=history, details={}, monotonic=float
            )
        return manifest.id

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command that must end with that exit code, without a traceback."""
        done = run(*arguments, config=self.config)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def rejecting(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Is not changed by any test."""
    return Site.make(tmp_path_factory.mktemp("rejecting"))


def test_list_tells_what_was_rejected_and_why(rejecting: Site) -> None:
    worse, bad = rejecting.json("list", "products", "--rejected")
    assert (bad["sequence"], worse["sequence"]) == (2, 3)
    assert worse["reason"] == FAILED.reason
    assert worse["gates"] == FAILED.gates
    assert Path(worse["path"]) == rejecting.folder.rejected_path / worse["id"]
    assert worse["bytes"] > 1 << 20 > worse["bytes_unique"], "shared with the release by hard links"
    assert set(worse) == {
        "id", "sequence", "created_at", "trigger", "content_sha256", "bytes", "bytes_unique", "reason",
        "gates", "path",
    }  # fmt: skip
    readable = rejecting.run("list", "products", "--rejected")
    heading, first, second = readable.stdout.splitlines()
    assert heading.split()[:2] == ["snapshot", "age"]
    assert first.startswith(worse["id"])
    assert second.startswith(bad["id"])
    assert first.endswith(FAILED.reason)


def test_list_of_releases_says_that_newer_ones_were_rejected(tmp_path: Path) -> None:
    site = Site.make(tmp_path)
    listed = site.run("list", "products")
    assert [line.split()[1] for line in listed.stdout.splitlines()[1:]] == [site.folder.releases()[0].id]
    assert "2 newer snapshots were rejected: `list products --rejected` says why" in listed.stderr
    site.take(b"better", PASSED)
    assert site.run("list", "products").stderr == ""
    let_go(site.folder, last=1)
    assert "'0000' fits several releases" in site.run("show", "products", "0000", code=2).stderr
    site.take(b"bad again", FAILED)
    assert "1 newer snapshot was rejected: " in site.run("list", "products").stderr
    assert [entry["sequence"] for entry in site.json("list", "products")] == [4, 1]
    site.folder.current.unlink()
    shutil.rmtree(site.folder.releases_path)
    nothing = site.run("list", "products")
    assert nothing.stdout == ""
    assert "no releases yet" in nothing.stderr
    assert "2 snapshots were rejected: " in nothing.stderr
    shutil.rmtree(site.folder.rejected_path)
    assert site.json("list", "products", "--rejected") == []
    assert "no rejected snapshots are kept" in site.run("list", "products", "--rejected").stderr


def test_show_finds_rejected_ones_and_shows_every_figure(rejecting: Site) -> None:
    worse, bad = rejecting.json("list", "products", "--rejected")
    raw = rejecting.run("show", "products", bad["id"], "--json").stdout
    assert raw == (rejecting.folder.rejected_path / bad["id"] / "release.json").read_text()
    shown = rejecting.run("show", "products", "3").stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for line in (
        f"snapshot {worse['id']} (rejected)",
        f"path {worse['path']}",
        "verified probes NOT passed (numpy 2.1.0, python 3.11.7, spacy 3.8.7, thinc 8.3.6)",
        f"reason {FAILED.reason}",
        "warning [W095] Model 'en_pipeline' was trained with spaCy v3.7",
        "loaded in 0.52 s, with 231.0 MB of memory",
        "probes 7 of 8 passed, 12 spans in all",
        "failed line 3: 'Acme Corp' is no ORG",
        "scores spans_sc_f 0.41 (40 gold documents)",
        "ORG: f 0.3333, p 0.5, r 0.25",
        "live scores spans_sc_f 0.79 (40 gold documents)",
        "latency 1.25 ms a document, live 1.5 ms (20 documents)",
        "gate of verdict figure limit live from note",
        "max_drop spans_sc_f NOT passed 0.41 0.02 0.79 gold 0.38 lower",
        "max_bytes passed 1.5 MB 2.0 MB - files",
    ):
        assert line in lines, shown
    failed, passed = (lines.index(line) for line in lines if line.startswith(("max_drop", "max_bytes")))
    assert failed < passed, "what failed comes first"


def test_show_prefers_releases_and_says_what_there_is(rejecting: Site) -> None:
    live = rejecting.folder.releases()[0].id
    assert f"{live} (live)" in rejecting.run("show", "products", "0000").stdout  # of the releases, only one
    assert f"the newest are {live}" in rejecting.run("show", "products", "nonsense", code=2).stderr
    assert "fits several rejected snapshots" not in rejecting.run("show", "products", "@7", code=2).stderr


def test_promote_asks_the_daemon_and_prints_what_is_live_then(tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text(
        '[daemon]\ncontrol_socket = "control.sock"\n'
        '[[watch]]\nname = "products"\nsource = "run"\ndeploy = "models"\n'
    )
    asked: list[tuple[str, str, dict[str, Any]]] = []

    def answer(method: str, path: str, body: dict[str, Any]) -> Any:
        asked.append((method, path, body))
        if not body["force"]:
            raise SpancatDaemonError("it does not pass now either", where="000003-x", hint="--force")
        return {"release": "000004-y", "previous_release": "000001-z"}

    server = ControlServer(tmp_path / "control.sock", answer)
    server.start()
    try:
        refused = run("promote", "products", "3", config=config)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "000003-x: it does not pass now either" in refused.stderr
        forced = run("promote", "products", "3", "--force", "--reason", "ok on prod", config=config)
        assert (forced.returncode, forced.stdout) == (0, "000004-y\n")
        assert "000001-z is no longer live" in forced.stderr
        told = run("promote", "products", "3", "--force", "--json", config=config)
        assert json.loads(told.stdout)["release"] == "000004-y"
    finally:
        server.close()
    request = {"rule": "products", "release": "3", "force": False, "reason": ""}
    assert asked == [
        ("POST", "/v1/promote", request),
        ("POST", "/v1/promote", request | {"force": True, "reason": "ok on prod"}),
        ("POST", "/v1/promote", request | {"force": True}),
    ]


TOO_LARGE = '[watch.gate]\nmax_bytes = "1KiB"\n'


def test_what_a_gate_rejects_is_promoted_by_force_or_once_it_passes(tmp_path: Path) -> None:
    config = configure(tmp_path, level="load")
    checkpoint = tmp_path / "runs" / "model-best"
    build("default", checkpoint)
    with Daemon(config) as daemon:
        (first,) = daemon.wait_for("release.published")
        configure(tmp_path, level="load", more=TOO_LARGE)
        assert run("reload", config=config).returncode == 0
        shutil.rmtree(checkpoint)
        build("default", checkpoint, generation=1)
        (event,) = daemon.wait_for("snapshot.rejected")
        assert [gate["gate"] for gate in event["gates"]] == ["max_bytes"]

        (kept,) = json.loads(run("list", "products", "--rejected", "--json", config=config).stdout)
        assert kept["id"] == event["snapshot"]
        assert kept["gates"] == event["gates"]

        still = run("promote", "products", kept["id"], config=config)
        assert (still.returncode, still.stdout) == (1, "")
        assert "max_bytes" in still.stderr

        why = "it is worth its size"
        forced = run("promote", "products", "2", "--force", "--reason", why, config=config)
        assert forced.returncode == 0, forced.stderr
        second = forced.stdout.strip()
        assert forced.stderr == f"spancat-daemon: {first['release']} is no longer live\n"
        (promoted,) = daemon.wait_for("release.promoted")
        assert (promoted["release"], promoted["snapshot"], promoted["reason"]) == (second, kept["id"], why)
        assert json.loads(run("list", "products", "--rejected", "--json", config=config).stdout) == []
        (live, _) = json.loads(run("list", "products", "--json", config=config).stdout)
        assert (live["id"], live["sequence"], live["live"], live["forced"]) == (second, 3, True, True)
        assert live["content_sha256"] == kept["content_sha256"]
        assert f"as {kept['id']}: {why}" in run("show", "products", second, config=config).stdout

        since = len(daemon.events)
        shutil.rmtree(checkpoint)
        build("default", checkpoint, generation=2)
        (event,) = daemon.wait_for("snapshot.rejected", since=since)
    configure(tmp_path, level="load")
    passing = run("promote", "products", event["snapshot"], "--json", config=config)
    assert passing.returncode == 0, passing.stderr
    payload = json.loads(passing.stdout)
    assert (payload["previous_release"], payload["forced"]) == (second, False)
    shown = run("show", "products", payload["release"], config=config).stdout
    assert "load passed" in " ".join(shown.split())
    assert run("history", "products", "--verify", config=config).returncode == 0
    assert run("promote", "products", event["snapshot"], config=config).returncode == 2
