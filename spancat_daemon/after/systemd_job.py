"""Giving systemd a job after a swap: ``reload ner-api.service``.

systemd asks polkit whether the daemon's user may; ``deploy/systemd/polkit-1`` has a rule that says yes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.after.program import run_program

if TYPE_CHECKING:
    import threading

    from spancat_daemon.after.outcome import Outcome


def run_systemd_job(job: str, *, timeout_s: float, stopping: threading.Event) -> Outcome:
    """Run ``systemctl VERB UNIT…``, verb and units as the configuration checked them, and wait for the job.

    After the timeout nobody waits any more, but the job goes on: systemd has its own timeouts.
    """
    verb, *units = job.split()
    command = ("systemctl", "--no-ask-password", verb, "--", *units)
    return run_program(command, {}, timeout_s=timeout_s, stopping=stopping)
