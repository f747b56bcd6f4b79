"""One look at whether all is well: a program's status, or an address's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.after.command import command_target, run_command
from spancat_daemon.after.http_exchange import exchange, shown

if TYPE_CHECKING:
    import threading

    from spancat_daemon.after.swap import Swap
    from spancat_daemon.config.model import Health


def check(health: Health, swap: Swap, *, stopping: threading.Event, timeout_s: float | None = None) -> str:
    """Empty if all is well, else why not, in one line without secrets.

    A program must end with status 0; it is told of the swap by its environment. An address must answer with
    a 2xx status; redirects are not followed. Given up soon when ``stopping`` is set, and then not well.

    Args:
        health: whom to ask.
        swap: what it is about.
        stopping: set when the daemon stops.
        timeout_s: how long it may take; None: as long as ``health`` says.
    """
    timeout_s = health.timeout if timeout_s is None else timeout_s
    if health.command is not None:
        done = run_command(health.command, swap, timeout_s=timeout_s, stopping=stopping)
        return "" if done.ok else f"{command_target(health.command)}: {done.reason}"
    if health.url is not None:
        answer = exchange("GET", health.url, timeout_s=timeout_s, stopping=stopping)
        return "" if answer.ok else f"{shown(health.url, with_path=True)}: {answer.why_not}"
    return ""
