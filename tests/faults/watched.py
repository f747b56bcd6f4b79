"""A daemon whose watches are hurt, what it costs, and what has to hold after each fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.faults.beside import Feeder, at_rest, serves
from tests.faults.judge import judge
from tests.service import Daemon, configure, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.faults.judge import Generation
    from tests.service import Event

IDLE_CPU_S: Final = 0.05
"""Processor time in a second that is still idleness: a loop that is busy takes a second of it."""

IDLE_WAIT_S: Final = 0.3
"""How long it may stand in line for it in that second, as each of its few looks does on a busy machine."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a process holds."""

    descriptors: int
    threads: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> Costs:
        proc = Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        resident = int(status["VmRSS"].split()[0]) << 10
        return cls(len(os.listdir(proc / "fd")), int(status["Threads"]), resident)  # noqa: PTH208  # counts


@dataclass
class Scene:
    """A daemon, the checkpoints it is fed with, and what it has told."""

    feeder: Feeder
    deploy: Path
    daemon: Daemon
    before: Costs | None = None
    since: int = 0

    @property
    def runs(self) -> Path:
        """The directory around the checkpoint."""
        return self.feeder.checkpoint.parent

    def begin(self) -> None:
        """A first release, and rest."""
        self.put()
        self.rest()
        self.before = Costs.of(self.daemon.pid)

    def put(self) -> None:
        """The next whole checkpoint must go live, and not by the reconciling scan: that takes minutes."""
        self.live(self.feeder.put())

    def live(self, wanted: Generation) -> None:
        try:
            until(lambda: serves(self.deploy, wanted))
        except AssertionError:
            told = "\n".join(map(str, self.daemon.events[-10:]))
            raise AssertionError(f"the checkpoint was missed:\n{told}") from None

    def rest(self) -> None:
        """Waits until the daemon does next to nothing and has nothing to do; fails if that never comes."""
        until(lambda: is_idle(self.daemon.pid), what="it finds no rest")

    def watching(self, folder: Path) -> None:
        """Waits until the kernel tells the daemon of what happens in a directory."""
        until(
            lambda: folder.stat().st_ino in watched_inodes(self.daemon.pid), what=f"{folder} is not watched"
        )

    def well(self, *, more_bytes: int = 16 << 20) -> None:
        """After a fault: the next checkpoint goes live, then it is at rest and holds no more than before."""
        before = self.before
        assert before is not None
        self.put()
        self.rest()
        until(lambda: Costs.of(self.daemon.pid).descriptors <= before.descriptors, what="descriptors left")
        until(lambda: Costs.of(self.daemon.pid).threads <= before.threads, what="threads left")
        assert Costs.of(self.daemon.pid).resident_bytes <= before.resident_bytes + more_bytes
        self.judge()

    def judge(self) -> None:
        """All is as it may be, as soon as nothing is under way."""

        def violations() -> list[str]:
            return judge(self.deploy, self.feeder.generations, log=self.daemon.events)

        assert at_rest(self.daemon, violations) == []

    def mark(self) -> None:
        """Only what is told from now on is asked for."""
        self.since = len(self.daemon.events)

    def told(self, name: str) -> list[Event]:
        """Events of that name since the mark."""
        return [event for event in self.daemon.events[self.since :] if event["event"] == name]

    def wait_told(self, name: str) -> Event:
        return self.daemon.wait_for(name, since=self.since)[0]


def scene(
    folder: Path,
    *,
    feeder: Feeder | None = None,
    reconcile: str = "",
    within: Sequence[str] = (),
    environ: dict[str, str] | None = None,
    more: str = "",
    rules: str = "",
) -> Scene:
    """A daemon that is not started yet, on the rule ``products`` and a feeder of its checkpoint.

    Args:
        folder: of them all.
        feeder: one that is there already.
        reconcile: how often all is looked at regardless; "": as seldom as by default.
        within: a program that becomes the daemon.
        environ: its environment.
        more: keys of the rule.
        rules: tables after it.
    """
    config = configure(folder, more=more, rules=rules)
    if reconcile:
        text = config.read_text().replace("[daemon]", f'[daemon]\nreconcile_every = "{reconcile}"')
        config.write_text(text)
    daemon = Daemon(config, environ=environ, within=within)
    return Scene(feeder or Feeder(folder), folder / "models/products", daemon)


def is_idle(pid: int) -> bool:
    """Whether a process did next to nothing for a second, and had nothing to do either."""
    used_s, waited_s = _cpu_s(pid), _waits_s(pid)
    threading.Event().wait(1)  # the measured time itself
    # On a starved machine who has much to do takes no time as well, but stands in line for it all the while.
    return _cpu_s(pid) - used_s <= IDLE_CPU_S and _waits_s(pid) - waited_s <= IDLE_WAIT_S


def _waits_s(pid: int) -> float:
    """How long the threads of a process have been ready to run without running: its proc(5) schedstat."""
    waits_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended; or no such statistics
            waits_ns += int((task / "schedstat").read_text().split()[1])
    return waits_ns / 1e9


def watched_inodes(pid: int) -> set[int]:
    """Of the files and directories that the kernel tells a process of: its proc(5) fdinfo."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            lines = info.read_text().splitlines()
            found |= {int(line.split()[2][4:], 16) for line in lines if line.startswith("inotify ")}
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def namespaces(*sysctls: str) -> list[str]:
    """What makes a program the root of a user and a mount namespace of its own, with limits of its own.

    Args:
        sysctls: ``max_inotify_watches=5`` and the like, below ``/proc/sys/user``.
    """
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("user namespaces are not to be had here")
    return [*unshare, "sh", "-c", f'{_set(sysctls)}exec "$@"', "sh"]


def inside(pid: int, *command: str) -> None:
    """Runs a program in the namespaces of a process."""
    nsenter = ["nsenter", "-t", str(pid), "--user", "--mount", "--preserve-credentials"]
    done = subprocess.run([*nsenter, *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def set_limits(pid: int, *sysctls: str) -> None:
    """Sets limits of the user namespace of a process."""
    inside(pid, "sh", "-c", _set(sysctls) + "true")


def _set(sysctls: Iterable[str]) -> str:
    pairs = (sysctl.split("=") for sysctl in sysctls)
    return "".join(f"echo {value} > /proc/sys/user/{name}; " for name, value in pairs)
