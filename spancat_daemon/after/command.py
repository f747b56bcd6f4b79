"""Telling a program of a swap, by its environment; see ``Swap.environment`` and ``run_program``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.after.program import run_program

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from spancat_daemon.after.outcome import Outcome
    from spancat_daemon.after.swap import Swap


def command_target(command: Sequence[str]) -> str:
    """The program for people; its arguments may hold secrets, so they are not shown."""
    return command[0] if len(command) == 1 else f"{command[0]} …"


def run_command(
    command: Sequence[str], swap: Swap, *, timeout_s: float, stopping: threading.Event
) -> Outcome:
    """Run the program, which must end with status 0."""
    return run_program(command, swap.environment(), timeout_s=timeout_s, stopping=stopping)
