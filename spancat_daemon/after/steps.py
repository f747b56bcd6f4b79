"""Telling one of those who are to be told of a swap."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spancat_daemon.after.command import command_target, run_command
from spancat_daemon.after.outcome import Outcome, stopped
from spancat_daemon.after.pidfile_signal import send_signal
from spancat_daemon.after.systemd_job import run_systemd_job
from spancat_daemon.after.webhook import post_webhook, webhook_target
from spancat_daemon.config.model import PostWebhook, RunCommand, SendSignal, SystemdJob

if TYPE_CHECKING:
    import threading

    from spancat_daemon.after.swap import Swap
    from spancat_daemon.config.model import After


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of telling one of them.

    Attributes:
        kind: ``command``, ``systemd``, ``signal`` or ``webhook``.
        target: whom, for people; never a secret.
        ok: it went well.
        reason: why not, in one line without secrets; empty if ok.
        required: whether its failure takes the release back.
        seconds: how long it took.
        tries: how often it was tried; 0 if something was missing that is needed to try.
        stopped: it was given up because nobody waits for it any more, and is no failure.
    """

    kind: str
    target: str
    ok: bool
    reason: str
    required: bool
    seconds: float
    tries: int
    stopped: bool = False


def notify(after: After, swap: Swap, *, stopping: threading.Event) -> Done:
    """Tell it, within its timeout; given up soon when ``stopping`` is set.

    Never raises for what the other side does.
    """
    begun = time.monotonic()
    outcome = stopped(0) if stopping.is_set() else _tell(after, swap, stopping)
    kind, target = _whom(after)
    return Done(
        kind=kind,
        target=target,
        ok=outcome.ok,
        reason=outcome.reason,
        required=after.required,
        seconds=time.monotonic() - begun,
        tries=outcome.tries,
        stopped=outcome.stopped,
    )


def _tell(after: After, swap: Swap, stopping: threading.Event) -> Outcome:
    match after:
        case RunCommand():
            return run_command(after.command, swap, timeout_s=after.timeout, stopping=stopping)
        case SystemdJob():
            return run_systemd_job(after.systemd, timeout_s=after.timeout, stopping=stopping)
        case SendSignal():
            return send_signal(after.signal.pidfile, after.signal.name)
        case PostWebhook():
            url, secret_file = after.webhook.url, after.webhook.secret_file
            return post_webhook(url, secret_file, swap, timeout_s=after.timeout, stopping=stopping)


def _whom(after: After) -> tuple[str, str]:
    match after:
        case RunCommand():
            return "command", command_target(after.command)
        case SystemdJob():
            return "systemd", after.systemd
        case SendSignal():
            return "signal", f"{after.signal.name} to {after.signal.pidfile}"
        case PostWebhook():
            return "webhook", webhook_target(after.webhook.url)
