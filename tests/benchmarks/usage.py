"""What processes use, told by the kernel."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.pairs import written_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all that came of it, since they began.

    Attributes:
        cpu_s: user and system time.
        written_bytes: given to the kernel to be written.
        wakeups: how often threads of those that still run came to sleep of their own will, and so to wake.
        resident_bytes: now, of those that still run.
    """

    cpu_s: float
    written_bytes: int
    wakeups: int
    resident_bytes: int


def usage(pid: int) -> Usage:
    """Add up a process, its descendants, and the ended ones that these have waited for."""
    cpu_s, written, wakeups, resident = 0.0, 0, 0, 0
    for one in _family(pid):
        with contextlib.suppress(OSError):  # it ends just now; its parent has it from then on
            cpu_s += _own_cpu_s(one) + _childrens_cpu_s(one)
            written += written_bytes(one)
            wakeups += sum(_voluntary_switches(task) for task in Path(f"/proc/{one}/task").iterdir())
            resident += _resident_bytes(one)
    return Usage(cpu_s, written, wakeups, resident)


def _family(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    todo = [pid]
    while todo:
        one = todo.pop()
        yield one
        todo += children.get(one, [])


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) after the name, which may hold anything: the state comes first."""
    return Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()


def _own_cpu_s(pid: int) -> float:
    """Of all threads, also of those that ended, to the nanosecond: see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def _childrens_cpu_s(pid: int) -> float:
    return sum(int(ticks) for ticks in _stat(pid)[13:15]) / _TICKS_A_SECOND


def _voluntary_switches(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS")), 0)
