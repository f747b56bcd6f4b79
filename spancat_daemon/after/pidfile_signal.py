"""Sending a signal to the process whose number stands in a pidfile: to that one or to none."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Final

from spancat_daemon.after.outcome import Outcome, failed, impossible
from spancat_daemon.after.small_file import read_small
from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from pathlib import Path

_NUMBER: Final = re.compile(rb"[0-9]{1,10}")
# A pidfile is written when its process runs already. A clock set meanwhile can make it seem otherwise.
_CLOCK_SLACK_S: Final = 10.0


def send_signal(pidfile: Path, name: str) -> Outcome:
    """Send the signal, such as ``HUP`` or ``SIGHUP``, to the process named in the pidfile now.

    A pidfile that outlived its process, or was never meant for one, is a failure: its number may be another
    process's by now, which the signal would end.
    """
    try:
        number = signal.Signals["SIG" + name.removeprefix("SIG")]
    except KeyError:
        return impossible(f"{name!r} is not a signal's name")
    try:
        pid, written = _read(pidfile)
    except SpancatDaemonError as error:
        return impossible(f"the pidfile {error.reason}")
    try:
        process = os.pidfd_open(pid)  # from here on the number can't pass on to another unnoticed
    except (OSError, OverflowError) as error:
        return impossible(_no_process(pid, error))
    try:
        if why_not := _stale(pid, written):
            return impossible(why_not)
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return impossible(f"process {pid}, as the pidfile says, has ended")
    except OSError as error:
        hint = "; it runs as another user" if error.errno == errno.EPERM else ""
        return failed(f"process {pid} can't be sent {number.name}: {error.strerror}{hint}")
    finally:
        os.close(process)
    return Outcome(ok=True)


def _read(pidfile: Path) -> tuple[int, float]:
    """The number in the pidfile, and when it was written; raises SpancatDaemonError if it is of no use."""
    try:
        content, status = read_small(pidfile)
    except SpancatDaemonError as error:
        raise SpancatDaemonError(f"is of no use: {error.reason}") from error
    found = _NUMBER.fullmatch(content.strip())
    if found is None:
        raise SpancatDaemonError("does not hold a number")
    pid = int(found[0])
    if pid <= 1:
        raise SpancatDaemonError(f"holds {pid}, which is nobody to be told of a swap")
    if pid == os.getpid():
        raise SpancatDaemonError(f"holds {pid}, which is this daemon itself")
    return pid, status.st_mtime


def _no_process(pid: int, error: OSError | OverflowError) -> str:
    if isinstance(error, OverflowError) or error.errno == errno.ESRCH:
        return f"there is no process {pid}, as the pidfile says"
    if error.errno in {errno.EINVAL, errno.ENOENT}:
        return f"{pid}, as the pidfile says, is no process of its own, but a thread of one"
    return f"process {pid} can't be reached: {error.strerror}"


def _stale(pid: int, written: float) -> str:
    """Why the process can't be the one that the pidfile was written for; empty if it can."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # a path of the kernel's
            # After the name, which can hold anything: state is the third field, starttime the 22nd; proc(5).
            fields = file.read().rpartition(b")")[2].split()
        state, start_ticks = fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return ""  # hidden from us; the signal is refused anyway, or the process has ended
    if state in {b"Z", b"X"}:
        return f"process {pid}, as the pidfile says, has ended"
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
    if time.time() - age_s > written + _CLOCK_SLACK_S:
        return f"process {pid} is younger than the pidfile, so it is not the one that was meant"
    return ""
