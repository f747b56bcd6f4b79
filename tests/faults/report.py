"""What the fault suites tried, counted by themselves, and the table that is made of it.

``python -m tests.faults.report FILE…`` prints the table of ``docs/reliability.md`` from what `tally` wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

REPORT = "SPANCAT_DAEMON_FAULT_REPORT"
"""Environment variable: the file that counts are appended to."""


def tally(fault: str, cases: int, promise: str) -> None:
    """Count cases of a fault that were tried and judged to be well; several calls for one fault add up.

    Args:
        fault: what was done to it, as a row of the table says it: "`kill -9` at a system call of a publish".
        cases: how often it was done.
        promise: what holds nevertheless, as the same row says it.
    """
    sys.stdout.write(f"{cases:,} cases: {fault}\n")
    if path := os.environ.get(REPORT):
        line = json.dumps({"fault": fault, "cases": cases, "promise": promise}) + "\n"
        with Path(path).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # tests run side by side
            file.write(line)


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


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(table(line for path in sys.argv[1:] for line in Path(path).read_text().splitlines()))
