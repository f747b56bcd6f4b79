"""The service's talk with systemd: readiness, reloads, watchdog, and whether the journal listens."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_SEND_TIMEOUT_S = 1.0


def notify(*, environ: Mapping[str, str] = os.environ, **fields: str | int) -> bool:
    """Sends ``FIELD=value`` lines to systemd, as sd_notify(3) does.

    Does nothing without ``$NOTIFY_SOCKET`` and raises nothing: no supervisor may stop the service.

    Returns:
        Whether systemd was told.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"} or not fields:
        return False
    lines = (f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
    target = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_SEND_TIMEOUT_S)
            channel.sendto("\n".join(lines).encode("utf-8", "replace"), os.fsencode(target))
    except (OSError, ValueError):
        return False
    return True


def notify_ready(status: str = "", *, environ: Mapping[str, str] = os.environ) -> bool:
    """The service is up, or up again after a reload."""
    return notify(environ=environ, READY=1, **({"STATUS": status} if status else {}))


def notify_reloading(*, environ: Mapping[str, str] = os.environ) -> bool:
    """A reload begins; ``notify_ready`` ends it."""
    # systemd counts from CLOCK_MONOTONIC, which is what time.monotonic_ns() reads on Linux.
    return notify(environ=environ, RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def notify_stopping(status: str = "", *, environ: Mapping[str, str] = os.environ) -> bool:
    """The service ends."""
    return notify(environ=environ, STOPPING=1, **({"STATUS": status} if status else {}))


def notify_status(status: str, *, environ: Mapping[str, str] = os.environ) -> bool:
    """One line for ``systemctl status``."""
    return notify(environ=environ, STATUS=status)


def notify_watchdog(*, environ: Mapping[str, str] = os.environ) -> bool:
    """The service is alive; due at least every ``watchdog_interval_s``."""
    return notify(environ=environ, WATCHDOG=1)


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How long systemd waits for ``notify_watchdog`` before it kills; None where it doesn't watch.

    Feed it at less than half of this.
    """
    try:
        interval_us = int(environ.get("WATCHDOG_USEC", ""))
        watched_pid = int(environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return interval_us / 1e6 if interval_us > 0 and watched_pid == os.getpid() else None


def is_journal_stream(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to the descriptor goes to the journal, which reads ``<N>`` as a priority.

    ``$JOURNAL_STREAM`` alone is no proof: it is inherited by children whose output goes elsewhere.
    """
    device, colon, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not colon:
        return False
    try:
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False
