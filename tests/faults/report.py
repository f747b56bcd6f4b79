"""What the fault suites tell of a run: what they tried, counted by themselves, and how each test ended.

`tests.faults.page` makes of it what is known of each suite, and the tables of docs/reliability.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

REPORT: Final = "SPANCAT_DAEMON_FAULT_REPORT"
"""Environment variable: the file that a run is told to, line by line."""

Outcome = Literal["passed", "failed", "skipped"]


def tally(fault: str, cases: int, promise: str) -> None:
    """Count cases of a fault that were tried and judged to be well; several calls for one fault add up.

    Args:
        fault: what was done to it, as a row of the table says it: "`kill -9` at a system call of a publish".
        cases: how often it was done.
        promise: what holds nevertheless, as the same row says it.
    """
    sys.stdout.write(f"{cases:,} cases: {fault}\n")
    _append([{"suite": _suite(), "fault": fault, "cases": cases, "promise": promise}])


def observed(what: str, number: int, of: int) -> None:
    """Note what is no case of ours and stands beside them: what others get, or what nobody promises.

    Args:
        what: that was counted, as a line below the table says it.
        number: how often it was so; several calls for the same add up.
        of: how often it could have been.
    """
    sys.stdout.write(f"{number:,} of {of:,}: {what}\n")
    _append([{"suite": _suite(), "observed": what, "number": number, "of": of}])


def collected(tests: Iterable[str], *, whole: bool) -> None:
    """Say which tests there are, chosen or not, by their node ids.

    Args:
        tests: those of whole files, or of what was chosen before they were looked for.
        whole: whether they are all that the files have.
    """
    _append({"suite": suite_of(test), "test": test, "whole": whole} for test in tests)


def ended(test: str, outcome: Outcome, reason: str = "") -> None:
    """Say how a test ended; of several outcomes a failure counts. With why, if it was skipped."""
    _append([{"suite": suite_of(test), "test": test, "outcome": outcome, "reason": reason}])


def suite_of(test: str) -> str:
    """The file that a test is in, relative to the project."""
    return test.partition("::")[0]


def _suite() -> str:
    return suite_of(os.environ.get("PYTEST_CURRENT_TEST", ""))


def _append(lines: Iterable[dict[str, Any]]) -> None:
    if path := os.environ.get(REPORT):
        with Path(path).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # tests run side by side
            file.write("".join(json.dumps(line) + "\n" for line in lines))
