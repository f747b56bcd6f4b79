"""What the README says, held against the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.config.load import load
from tests import documented
from tests.pipelines import build
from tests.service import ROOT, run

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (ROOT / "README.md").read_text(encoding="utf-8")
SUBJECTS = "daemon|watch|checkpoint|snapshot|release|schedule|disk|control|log|health|notification|scrub"
LOGGED = re.compile(rf'"((?:{SUBJECTS})\.[a-z_]+)"')
NO_EVENTS = {
    "control.sock", "daemon.control_socket", "daemon.jsonl", "daemon.state_dir", "daemon.toml", "log.file",
    "log.malformed", "release.json", "scrub.json",
}  # fmt: skip


def blocks(language: str) -> Iterator[str]:
    """The README's code blocks in a language."""
    yield from (block.code for block in documented.blocks(ROOT / "README.md", language))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first daemon.toml, deployed once."""
    folder = tmp_path_factory.mktemp("readme")
    config = folder / "daemon.toml"
    config.write_text(next(blocks("toml")))
    (source,) = (watch.source for watch in load(config).watch)
    build("default", Path(source))
    assert run("check", config=config).returncode == 0
    assert run("snapshot", "products", config=config).returncode == 0
    assert "release.published" in run("logs", config=config).stdout
    return folder


def test_the_first_daemon_toml_deploys_and_the_snippets_load_it(folder: Path) -> None:
    snippets = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", snippets],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_rule_with_conditions_is_a_configuration(tmp_path: Path) -> None:
    _, spool, conditions, aftermath = blocks("toml")
    config = tmp_path / "daemon.toml"
    config.write_text(spool)
    assert load(config).watch[0].writer == "spool"
    config.write_text(conditions + aftermath)
    (watch,) = load(config).watch
    assert (watch.gate.minimum, watch.gate.max_drop, watch.gate.min_step) == (0.7, 0.02, 1)
    assert watch.verify.effective_level == "probes"
    assert watch.health is not None
    assert len(watch.after) == 1


def test_a_release_can_be_checked_with_sha256sum(folder: Path) -> None:
    (block,) = (block for block in blocks("console") if "sha256sum" in block)
    script = "\n".join(line.removeprefix("$ ") for line in block.splitlines())
    # The oldest Python that is supported runs this test as well as the newest
    script = script.replace("python3 ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-ec", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.bin: OK" in done.stdout.splitlines()


def test_the_files_of_the_service_are_where_the_readme_copies_them_from() -> None:
    named = set(re.findall(r"(?:cp|-m 644) +(deploy/\S+)", README))
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "deploy").rglob("*") if path.is_file()}


def test_the_table_of_events_is_complete() -> None:
    logged = {
        event
        for file in (ROOT / "spancat_daemon").rglob("*.py")
        for event in LOGGED.findall(file.read_text(encoding="utf-8"))
    } - NO_EVENTS
    section = README.partition("## Events")[2].partition("\n## ")[0]
    rows = [row.partition("|")[2].partition("|")[0] for row in section.splitlines() if row.startswith("| `")]
    assert {event for row in rows for event in re.findall(r"`([^`]+)`", row)} == logged
