"""`verify` on real releases, with the interpreter, probes, gold documents and gates of the rule."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import spacy
from spacy.tokens import DocBin

from tests.pipelines import build
from tests.service import ROOT, command, run

if TYPE_CHECKING:
    from pathlib import Path

RULE = """
[daemon]
min_free = "1MiB"
[[watch]]
name = "products"
source = "runs/model-best"
deploy = "models"
"""


class Site:
    """Two releases, the second live, that were published without a word on gates."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "daemon.toml"
        self.releases = sorted((root / "models" / "releases").glob("*"))

    def verify(self, *arguments: str, code: int = 0, more: str = "") -> subprocess.CompletedProcess[str]:
        self.config.write_text(RULE + more)
        done = run("verify", "products", *arguments, config=self.config)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0, more: str = "") -> Any:
        return json.loads(self.verify(*arguments, "--json", code=code, more=more).stdout)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    (root / "daemon.toml").write_text(RULE)
    for generation in (0, 1):
        subprocess.run(["rm", "-rf", str(root / "runs")], check=True)
        build("default", root / "runs" / "model-best", generation=generation)
        done = run("snapshot", "products", config=root / "daemon.toml")
        assert done.returncode == 0, done.stderr
    nlp = spacy.load(root / "models" / "current")
    docs = list(nlp.pipe(["Acme Corp opened an office in Berlin.", "They sell doors in Paris."]))
    DocBin(docs=docs, store_user_data=True).to_disk(root / "gold.spacy")
    return root


@pytest.fixture
def site(published: Path, tmp_path: Path) -> Site:
    subprocess.run(["cp", "-a", f"{published}/.", str(tmp_path)], check=True)
    return Site(tmp_path)


def flip(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_all_releases_are_seen_to_work_by_one_process_on_the_rules_own_terms(site: Site) -> None:
    interpreter = site.root / "python"
    interpreter.write_text(f'#!/bin/sh\necho started >> "{site.root}/starts"\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    probes = [{"text": "Acme Corp opened an office in Berlin."}, {"text": "They sell doors in Paris."}]
    (site.root / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    terms = f"""
[watch.verify]
python = "{interpreter}"
probes = "probes.jsonl"
gold = "gold.spacy"
[watch.gate]
minimum = 0.1
max_drop = 0.0
labels = "same"
"""
    newest, oldest = site.json("--all", more=terms)
    assert (site.root / "starts").read_text().splitlines() == ["started"]
    assert [newest["id"], oldest["id"]] == [site.releases[1].name, site.releases[0].name]
    assert (newest["live"], oldest["live"]) == (True, False)
    for result in (newest, oldest):
        assert (result["ok"], result["level"], result["digests"], result["reason"]) == (
            True,
            "probes",
            [],
            "",
        )
        assert result["load"]["spacy"] == importlib.metadata.version("spacy")
        assert result["load"]["probed"]["total"] == 2
        assert result["load"]["evaluated"]["documents"] == 2
        gates = {gate["gate"]: gate for gate in result["gates"]}
        assert {"minimum", "max_drop", "labels"} <= set(gates)
        assert gates["minimum"]["source"] == "gold"
        assert "live" not in gates["max_drop"], "an older release may be worse than the live one"
    assert newest["load"]["evaluated"]["scores"]["spans_sc_f"] == 1.0


def test_what_a_gate_would_not_let_through_is_a_finding(site: Site) -> None:
    probes = '{"text": "Acme Corp opened an office in Berlin.", "spans": [[0, 4, "PLACE"]]}\n'
    (site.root / "probes.jsonl").write_text(probes)
    more = '[watch.verify]\nprobes = "probes.jsonl"\n[watch.gate]\nmax_bytes = "1KiB"\n'
    done = site.verify(code=4, more=more)
    head, row, *complaints = done.stdout.splitlines()
    assert head.split() == ["release", "digests", "loads", "probes", "scores", "gates", "with"]
    assert row.split()[:2] == [site.releases[1].name, "ok"]
    assert "0 of 1" in row
    assert "NOT " in row
    assert "max_bytes" in row
    assert "min_pass" in row
    told = "\n".join(complaints)
    assert "max_bytes" in told
    assert "PLACE" in told
    assert "`rollback` makes another live" in done.stderr


def test_a_rule_that_verifies_nothing_still_has_releases_loaded(site: Site) -> None:
    (result,) = site.json("1", more='[watch.verify]\nlevel = "none"\n')
    assert (result["id"], result["level"], result["load"]["ok"]) == (site.releases[0].name, "load", True)


def test_rot_in_a_file_that_releases_share_is_told_of_each_and_seen_on_a_terminal(site: Site) -> None:
    shared = site.releases[0] / "vocab" / "strings.json"
    assert shared.samefile(site.releases[1] / "vocab" / "strings.json")
    flip(shared)
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command("-c", site.config, "verify", "products", "--all", "--json"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )
    os.close(theirs)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 4
    for result in json.loads(done.stdout):
        assert {finding["path"] for finding in result["digests"]} == {"vocab/strings.json"}
    places = [
        seen.index(f"verifying {n} of 2: {release.name}") for n, release in enumerate(site.releases[::-1], 1)
    ]
    assert places == sorted(places)
    assert seen.index("\r\x1b[Kspancat-daemon: 2 of 2 with findings") > places[1]


def test_a_live_release_with_a_damaged_manifest_is_told_as_live(site: Site) -> None:
    manifest = site.releases[1] / "release.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    done = site.verify("--all", code=4)
    assert f"{site.releases[1].name}  WRONG    not tried" in done.stdout
    assert "`rollback` makes another live" in done.stderr
    assert "verifying" not in done.stderr


def test_an_interpreter_that_can_not_be_had_is_no_finding(site: Site) -> None:
    interpreter = site.root / "python"
    interpreter.write_text("#!/bin/sh\nexit 7\n")
    interpreter.chmod(0o755)
    done = site.verify(code=1, more=f'[watch.verify]\npython = "{interpreter}"\n')
    assert done.stdout == ""
    assert f"{interpreter}: can't be verified" in done.stderr
