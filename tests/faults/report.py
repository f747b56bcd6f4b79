"""What the fault suites tried, counted by themselves, and the tables that are made of it.

``python -m tests.faults.report FILE…`` prints them from what `tally` wrote; with ``--page PAGE`` they also
take the place of those between the two markers of that page.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

REPORT: Final = "SPANCAT_DAEMON_FAULT_REPORT"
"""Environment variable: the file that counts are appended to."""
_BEGIN, _END = "<!-- made by `make faults` -->", "<!-- until here -->"


def tally(fault: str, cases: int, promise: str) -> None:
    """Count cases of a fault that were tried and judged to be well; several calls for one fault add up.

    Args:
        fault: what was done to it, as a row of the table says it: "`kill -9` at a system call of a publish".
        cases: how often it was done.
        promise: what holds nevertheless, as the same row says it.
    """
    sys.stdout.write(f"{cases:,} cases: {fault}\n")
    _append({"fault": fault, "cases": cases, "promise": promise})


def observed(what: str, number: int, of: int) -> None:
    """Note what is no case of ours and stands beside them: what others get, or what nobody promises.

    Args:
        what: that was counted, as a line below the table says it.
        number: how often it was so; several calls for the same add up.
        of: how often it could have been.
    """
    sys.stdout.write(f"{number:,} of {of:,}: {what}\n")
    _append({"observed": what, "number": number, "of": of})


def not_tried(test: str, reason: str) -> None:
    """Say that a test was skipped, for want of what the reason says."""
    _append({"test": test, "reason": reason})


def _append(line: dict[str, Any]) -> None:
    if path := os.environ.get(REPORT):
        suite = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
        with Path(path).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # tests run side by side
            file.write(json.dumps({"suite": suite, **line}) + "\n")


def table(lines: Iterable[str]) -> str:
    """Return the tallies as a table in Markdown, one row a fault, sorted by it.

    Raises:
        ValueError: a line is no tally, or one fault has two promises.
    """
    cases: dict[str, int] = {}
    promises: dict[str, str] = {}
    for line in lines:
        tallied = json.loads(line)
        fault, promise = tallied["fault"], tallied["promise"]
        if promises.setdefault(fault, promise) != promise:
            raise ValueError(f"{fault!r} is promised twice: {promise!r} and {promises[fault]!r}")
        cases[fault] = cases.get(fault, 0) + tallied["cases"]
    rows = [f"| {_cell(fault)} | {cases[fault]:,} | {_cell(promises[fault])} |" for fault in sorted(cases)]
    total = f"| **all of them** | **{sum(cases.values()):,}** | |"
    return "\n".join(["| fault | cases | what holds |", "|---|--:|---|", *rows, total]) + "\n"


def tables(lines: Iterable[str]) -> str:
    """Return one table a suite, headed by what the suite says of itself, and what was not tried."""
    suites: dict[str, list[str]] = {}
    notes: dict[str, dict[str, tuple[int, int]]] = {}
    skipped: dict[str, int] = {}
    for line in lines:
        said = json.loads(line)
        if "reason" in said:
            skipped[said["reason"]] = skipped.get(said["reason"], 0) + 1
        elif "observed" in said:
            of_suite = notes.setdefault(said.get("suite", ""), {})
            number, of = of_suite.get(said["observed"], (0, 0))
            of_suite[said["observed"]] = (number + said["number"], of + said["of"])
        else:
            suites.setdefault(said.get("suite", ""), []).append(line)
    total = sum(json.loads(line)["cases"] for of_one in suites.values() for line in of_one)
    machine = f"Linux {platform.release()}, Python {platform.python_version()}"
    parts = [f"Made on {datetime.now(UTC):%Y-%m-%d}, {machine}: **{total:,}** cases.\n"]
    for suite in sorted(suites):
        parts.append(f"### {_heading(suite)}\n\n{table(suites[suite])}")
        if suite in notes:
            rows = [f"- {what}: {number:,} of {of:,}" for what, (number, of) in sorted(notes[suite].items())]
            parts.append("Beside these, and no part of any promise:\n\n" + "\n".join(rows) + "\n")
    if skipped:
        rows = [f"- {reason} ({count})" for reason, count in sorted(skipped.items())]
        parts.append("### Not tried on this machine\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def render(page: Path, made: str) -> None:
    """Put the tables between the two markers of a page; raises ValueError if it has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} has no {_BEGIN} with {_END} after it")
    page.write_text(f"{before}{begin}\n\n{made}\n{end}{after}", encoding="utf-8")


def _heading(suite: str) -> str:
    path = Path(__file__).resolve().parents[2] / suite
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
    return (told or suite or "Others").split("\n")[0].rstrip(".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args()
    lines = [line for path in chosen.files if path.exists() for line in path.read_text().splitlines()]
    if not lines:
        parser.error("nothing was counted yet: `make faults` does it")
    made = tables(lines)
    sys.stdout.write(made)
    if chosen.page:
        render(chosen.page, made)


if __name__ == "__main__":
    main()
