"""Only what ran whole and green counts as tried, and the page says of what, when and on what."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.documented import put
from tests.faults.page import Suite, keep, kept_in, opening, run_of, suites_of, table, tables
from tests.faults.report import REPORT
from tests.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DISKS = Suite(
    path="tests/faults/test_disks.py",
    date="2026-11-29",
    commit="at 1a2b3c4",
    machine="Linux 6, Python 3.11",
    counts={"b": (2400, "p"), "a|c": (1, "q")},
    notes={"others tear it": (3, 4)},
    not_tried={"mkfs.xfs is not installed": 2},
)
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take longer to import than all of it
HEADING = "Disks that fail"
SUITE = '''"""{what}."""
import pytest
from tests.faults.report import tally

def test_one():
    tally("a fault", {cases}, "it holds")

@pytest.mark.parametrize("number", range(2))
def test_two(number):
    tally("a fault", 1, "it holds")

def test_three():
    {last}
'''


class Project:
    """A project of its own with the suites of a fault each, and the real hooks that tell of a run."""

    def __init__(self, root: Path) -> None:
        self.faults = root / "tests/faults"
        self.faults.mkdir(parents=True)
        for name in ("conftest.py", "report.py"):
            shutil.copy(ROOT / "tests/faults" / name, self.faults)
        (root / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\npythonpath = .\n")
        self.root = root
        self.write("test_here.py", cases=5)
        self.write("test_other.py", cases=7)

    def write(self, name: str, *, cases: int = 1, last: str = "pass") -> None:
        (self.faults / name).write_text(SUITE.format(what=name, cases=cases, last=last))

    def run(self, *arguments: str) -> tuple[dict[str, int], dict[str, str]]:
        """Cases by suite that counts, and why others do not."""
        record = self.root / "record"
        record.write_text(opening(datetime.now(UTC)))
        self.go_on(*arguments)
        run = run_of(record.read_text().splitlines())
        return {suite.path.rpartition("/")[2]: suite.cases for suite in run.suites}, {
            path.rpartition("/")[2]: why for path, why in run.others.items()
        }

    def go_on(self, *arguments: str) -> None:
        """One more call of pytest for the same run."""
        environ = {**os.environ, REPORT: str(self.root / "record"), "COVERAGE_PROCESS_CONFIG": "", **ALONE}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=environ, check=False, capture_output=True, text=True
        )
        assert done.returncode in {0, 1, 5}, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_suites_that_ran_whole_count_each_for_itself(project: Project) -> None:
    assert project.run() == ({"test_here.py": 7, "test_other.py": 9}, {})
    assert project.run("tests/faults/test_other.py") == ({"test_other.py": 9}, {})
    assert project.run("-k", "other") == ({"test_other.py": 9}, {})
    assert project.run("-n", "2") == ({"test_here.py": 7, "test_other.py": 9}, {})


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["-k", "one and here"], "3 of 4 tests were not run"),
        (["--deselect=tests/faults/test_here.py::test_one", "-k", "here"], "1 of 4 tests were not run"),
        (["tests/faults/test_here.py::test_two"], "it was run in part"),
    ],
)
def test_a_suite_that_ran_in_part_does_not_count(project: Project, arguments: list[str], why: str) -> None:
    assert project.run(*arguments) == ({}, {"test_here.py": why})


def test_a_run_of_two_calls_is_one(project: Project) -> None:
    record = project.root / "record"
    counts, others = project.run("tests/faults/test_here.py", "-k", "not three")
    assert (counts, others) == ({}, {"test_here.py": "1 of 4 tests were not run"})
    project.go_on("tests/faults/test_here.py", "-k", "three")
    (suite,) = run_of(record.read_text().splitlines()).suites
    assert suite.counts == {"a fault": (7, "it holds")}


def test_a_suite_that_failed_does_not_count(project: Project) -> None:
    project.write("test_here.py", last="assert False")
    assert project.run() == ({"test_other.py": 9}, {"test_here.py": "1 of 4 tests failed"})
    project.write("test_here.py", last="import os; os._exit(1)")
    died = project.run("tests/faults/test_here.py", "-n", "1", "--max-worker-restart=0")
    assert died == ({}, {"test_here.py": "1 of 4 tests were not run"})


def test_what_was_skipped_is_named(project: Project) -> None:
    project.write("test_here.py", cases=5, last='pytest.skip("no such disk")')
    assert project.run("tests/faults/test_here.py")[0] == {"test_here.py": 7}
    (suite,) = run_of((project.root / "record").read_text().splitlines()).suites
    assert suite.not_tried == {"no such disk": 1}


def test_a_later_run_replaces_what_was_counted_before(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    other = replace(DISKS, path="tests/faults/test_readers.py")
    keep(kept, [DISKS, other])
    keep(kept, [])
    assert kept_in(kept) == {suite.path: suite for suite in (DISKS, other)}
    later = replace(DISKS, date="2026-11-30", counts={"b": (7, "p")}, notes={}, not_tried={})
    keep(kept, [later])
    assert kept_in(kept) == {suite.path: suite for suite in (later, other)}


def test_one_fault_has_one_promise() -> None:
    def tallied(promise: str) -> dict[str, Any]:
        return {"suite": "s", "fault": "b", "cases": 1, "promise": promise}

    ended = {"suite": "s", "test": "s::t", "outcome": "passed", "reason": ""}
    lines = [{"date": "d", "commit": "c", "machine": "m"}, tallied("p"), tallied("p"), ended]
    (suite,) = run_of(map(json.dumps, lines)).suites
    assert suite.counts == {"b": (2, "p")}
    with pytest.raises(ValueError, match="promised twice"):
        run_of(map(json.dumps, [*lines, tallied("q")]))
    with pytest.raises(ValueError, match="no run was begun"):
        run_of(map(json.dumps, lines[1:]))


def test_the_page_says_what_was_tried_and_what_was_not(tmp_path: Path) -> None:
    there = {DISKS.path: HEADING, "tests/faults/test_readers.py": "Readers"}
    gone = replace(DISKS, path="tests/faults/test_gone.py")
    made = tables({suite.path: suite for suite in (DISKS, gone)}, there)
    assert "**2,401** cases in 1 of 2 suites" in made
    assert f"### {HEADING}\n\n`{DISKS.path}`, 2026-11-29, at 1a2b3c4, " in made
    assert table(DISKS).splitlines()[2:] == ["| a\\|c | 1 | q |", "| b | 2,400 | p |"]
    assert table(DISKS) in made
    assert "- others tear it: 3 of 4" in made
    assert "- mkfs.xfs is not installed (2)" in made
    assert made.endswith("### Never run whole\n\n- Readers (`tests/faults/test_readers.py`)\n")
    page = tmp_path / "page.md"
    shutil.copy(ROOT / "docs/reliability.md", page)
    put(page, made, by="make faults")
    once = page.read_text()
    put(page, made, by="make faults")
    assert page.read_text() == once
    assert once.count("| b | 2,400 | p |") == 1
    with pytest.raises(ValueError, match="no place for what `make nothing` makes"):
        put(page, made, by="make nothing")


def test_the_suites_are_those_that_count() -> None:
    suites = suites_of()
    assert suites["tests/faults/test_soak.py"].startswith("Everything at once")
    assert "tests/faults/test_judge.py" not in suites


def test_what_was_tried_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def tried() -> str:
        told: str = json.loads(opening(datetime.now(UTC)))["commit"]
        return told

    monkeypatch.setattr("tests.faults.page._ROOT", tmp_path)
    assert tried() == "of no known commit"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/reliability.md").write_text("page")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert tried().startswith("at ")
    (tmp_path / "docs/reliability.md").write_text("the same page with other counts")
    assert tried().startswith("at ")
    (tmp_path / "code.py").write_text("")
    assert tried().startswith("with changes on ")
