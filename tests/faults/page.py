"""The tables of docs/reliability.md: of each fault suite the newest run that was whole and green.

``begin RUN`` opens the record of a run, which `tests.faults.report` writes on. ``end RUN KEPT PAGE`` puts the
suites that ran whole and green in the place of what is kept of them, says why others do not count, and makes
the page. ``make KEPT PAGE`` makes it again.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.documented import put

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_ROOT: Final = Path(__file__).resolve().parents[2]
_MADE: Final = ("docs/reliability.md", "docs/reliability.jsonl")


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite (a file of tests) that ran whole and green.

    Attributes:
        path: of the file, relative to the project.
        date: the day on which the run began, UTC.
        commit: what was tried: a short hash, or that there were changes on top of it.
        machine: the kernel and the Python.
        counts: cases by fault, each with what holds nevertheless.
        notes: what was counted beside them: how often, of how many.
        not_tried: tests that were skipped, by reason.
    """

    path: str
    date: str
    commit: str
    machine: str
    counts: dict[str, tuple[int, str]]
    notes: dict[str, tuple[int, int]]
    not_tried: dict[str, int]

    @property
    def cases(self) -> int:
        """How many there were in all."""
        return sum(cases for cases, _ in self.counts.values())


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run: suites that count, and why the others that ran, by path, do not."""

    suites: tuple[Suite, ...]
    others: dict[str, str]


def opening(now: datetime) -> str:
    """Return the first line of a run's record: when, on what, and of what."""
    machine = f"Linux {platform.release()}, Python {platform.python_version()}"
    return json.dumps({"date": f"{now:%Y-%m-%d}", "commit": _commit(), "machine": machine}) + "\n"


def run_of(lines: Iterable[str]) -> Run:
    """Judge a run by its record, as `opening` and `tests.faults.report` wrote it.

    Raises:
        ValueError: there is no record, or one fault has two promises.
    """
    said = [json.loads(line) for line in lines]
    if not said or "commit" not in said[0]:
        raise ValueError("no run was begun")
    of_suite: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in said[1:]:
        of_suite[line["suite"]].append(line)
    suites: list[Suite] = []
    others: dict[str, str] = {}
    for path in sorted(of_suite):
        if not any("outcome" in line for line in of_suite[path]):
            continue  # collected, and nothing of it was chosen
        if lacking := _lacking(of_suite[path]):
            others[path] = lacking
        else:
            suites.append(Suite(path, **said[0], **_counted(of_suite[path])))
    return Run(tuple(suites), others)


def _lacking(lines: Collection[dict[str, Any]]) -> str:
    """Why what was told of a suite is no whole and green run of it; empty if it is one."""
    there = {line["test"] for line in lines if "whole" in line}
    ends = [(line["test"], line["outcome"]) for line in lines if "outcome" in line]
    failed = {test for test, outcome in ends if outcome == "failed"}
    missed = there - {test for test, _ in ends}
    if failed:
        return f"{len(failed)} of {len(there)} tests failed"
    if missed:
        return f"{len(missed)} of {len(there)} tests were not run"
    return "" if all(line.get("whole", True) for line in lines) else "it was run in part"


def _counted(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    counts: dict[str, tuple[int, str]] = {}
    notes: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    for line in lines:
        if "fault" in line:
            fault, promise = line["fault"], line["promise"]
            cases, before = counts.get(fault, (0, promise))
            if before != promise:
                raise ValueError(f"{fault!r} is promised twice: {promise!r} and {before!r}")
            counts[fault] = (cases + line["cases"], promise)
        elif "observed" in line:
            number, of = notes.get(line["observed"], (0, 0))
            notes[line["observed"]] = (number + line["number"], of + line["of"])
        elif line.get("outcome") == "skipped":
            skipped[line["test"]] = line["reason"]
    return {"counts": counts, "notes": notes, "not_tried": dict(Counter(skipped.values()))}


def kept_in(path: Path) -> dict[str, Suite]:
    """Return the suites that are kept, by path; none if nothing was kept yet."""
    if not path.exists():
        return {}
    suites = [_suite(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {suite.path: suite for suite in suites}


def keep(path: Path, suites: Iterable[Suite]) -> None:
    """Put suites in the place of what was kept of them; all others stay."""
    kept = {**kept_in(path), **{suite.path: suite for suite in suites}}
    lines = [json.dumps(asdict(kept[name]), sort_keys=True) + "\n" for name in sorted(kept)]
    path.write_text("".join(lines), encoding="utf-8")


def _suite(said: dict[str, Any]) -> Suite:
    counts = {fault: (cases, promise) for fault, (cases, promise) in said["counts"].items()}
    notes = {what: (number, of) for what, (number, of) in said["notes"].items()}
    return Suite(**{**said, "counts": counts, "notes": notes})


def suites_of(root: Path = _ROOT) -> dict[str, str]:
    """Return the suites that count what they try, by path, with what each says of itself."""
    found = {}
    for file in sorted((root / "tests/faults").glob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.Name) and node.id == "tally" for node in ast.walk(tree)):
            told = ast.get_docstring(tree) or file.name
            found[file.relative_to(root).as_posix()] = told.split("\n")[0].rstrip(".")
    return found


def tables(kept: dict[str, Suite], there: dict[str, str]) -> str:
    """Return one table a suite that there is, headed by what it says of itself, and what was not tried."""
    known = {path: kept[path] for path in there if path in kept}
    cases = sum(suite.cases for suite in known.values())
    of_suites = f"{len(known)} of {len(there)} suites"
    parts = [f"**{cases:,}** cases in {of_suites}, each as of its newest run that was whole and green.\n"]
    for path, suite in known.items():
        when = f"`{path}`, {suite.date}, {suite.commit}, {suite.machine}: {suite.cases:,} cases."
        parts.append(f"### {there[path]}\n\n{when}\n\n{table(suite)}")
        if suite.notes:
            rows = [f"- {what}: {number:,} of {of:,}" for what, (number, of) in sorted(suite.notes.items())]
            parts.append("Beside these, and no part of any promise:\n\n" + "\n".join(rows) + "\n")
        if suite.not_tried:
            rows = [f"- {reason} ({tests})" for reason, tests in sorted(suite.not_tried.items())]
            parts.append("Not tried on that machine:\n\n" + "\n".join(rows) + "\n")
    if never := [f"- {there[path]} (`{path}`)" for path in there if path not in kept]:
        parts.append("### Never run whole\n\n" + "\n".join(never) + "\n")
    return "\n".join(parts)


def table(suite: Suite) -> str:
    """Return the counts as a table in Markdown, one row a fault, sorted by it."""
    rows = [
        f"| {_cell(fault)} | {suite.counts[fault][0]:,} | {_cell(suite.counts[fault][1])} |"
        for fault in sorted(suite.counts)
    ]
    return "\n".join(["| fault | cases | what holds |", "|---|--:|---|", *rows]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _commit() -> str:
    """What is tried; the page itself and what is kept for it are no changes."""
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return "of no known commit"
    changes = _git("status", "--porcelain", "--", ".", *(f":!{name}" for name in _MADE))
    return f"with changes on {head}" if changes else f"at {head}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["begin", "end", "make"])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    chosen = parser.parse_args()
    if chosen.step == "begin":
        (record,) = chosen.files
        record.write_text(opening(datetime.now(UTC)), encoding="utf-8")
        return
    *records, kept, page = chosen.files
    for record in records:
        run = run_of(record.read_text(encoding="utf-8").splitlines())
        keep(kept, run.suites)
        for suite in run.suites:
            sys.stdout.write(f"{suite.path}: {suite.cases:,} cases\n{table(suite)}\n")
        for path, why in run.others.items():
            sys.stdout.write(f"{path}: does not count: {why}\n")
    put(page, tables(kept_in(kept), suites_of()), by="make faults")


if __name__ == "__main__":
    main()
