"""The service on a machine of its own, installed by the very lines of the README."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.daemon.client import ControlClient
from tests.faults.booted import PROJECT, Machine
from tests.service import ROOT, Event, until

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = "spancat-daemon"
PREFIX: Final = Path("/opt/spancat-daemon")
CONFIG: Final = Path("/etc/spancat-daemon/daemon.toml")
DROP_INS: Final = Path(f"/etc/systemd/system/{NAME}.service.d")
CHECKPOINT: Final = Path("/srv/training/products/model-best")
DEPLOY: Final = Path("/var/lib/spancat-daemon/models/products")
SOCKET: Final = Path("/run/spancat-daemon/control.sock")
LOG: Final = Path("/var/log/spancat-daemon/daemon.log")

# What takes half a minute by the unit takes some seconds here; a stop of more than 10 s counts as failed.
_SHORTER: Final = "[Service]\nWatchdogSec=3s\nRestartSec=100ms\nTimeoutStopSec=10s\n"
# pip takes what it needs from the packages of the tests instead of the network.
_OFFLINE: Final = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}


def install_lines() -> list[str]:
    """The README's commands to install the service, without their prompt."""
    section = (ROOT / "README.md").read_text().partition("\n## As a service\n")[2]
    block = section.partition("```console\n")[2].partition("```")[0]
    lines = [line.removeprefix("# ") for line in block.splitlines()]
    assert lines[0].startswith("python3 -m venv")
    assert lines[-1].endswith("enable --now spancat-daemon")
    return lines


class Service:
    """The service as whoever runs the machine sees it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def install(self) -> None:
        """Follows the README; with shorter times, and packages that are there already."""
        drop_ins = self.machine.path(DROP_INS)
        drop_ins.mkdir(parents=True)
        (drop_ins / "shorter.conf").write_text(_SHORTER)
        environment, *rest = install_lines()
        made, _, filled = environment.partition(" && ")
        self.machine.shell(made)
        library = self.machine.path(PREFIX / "lib" / f"python{sysconfig.get_python_version()}")
        (library / "site-packages" / "packages.pth").write_text("/mnt/packages\n")
        offline = " ".join(f"{name}={value}" for name, value in _OFFLINE.items())
        self.machine.shell("\n".join([f"export {offline}", f"cd {PROJECT}", filled, *rest]))

    def control(self, *arguments: str, check: bool = True) -> str:
        """``systemctl`` with the service's name; what it said, on both outputs."""
        done = self.machine.run("systemctl", *arguments, NAME, check=check)
        return done.stdout + done.stderr

    def command(self, *arguments: str) -> str:
        """``spancat-daemon`` as installed; what it said on standard output."""
        return self.machine.run(PREFIX / "bin" / NAME, *arguments).stdout

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself, also while its configuration can't be read."""
        found: dict[str, Any] = ControlClient(self.machine.path(SOCKET)).call("GET", "/v1/status")
        return found

    def show(self, *properties: str) -> list[str]:
        """Properties of the unit."""
        found = self.machine.run("systemctl", "show", *(f"-p{name}" for name in properties), NAME).stdout
        values = dict(line.split("=", 1) for line in found.splitlines())
        return [values[name] for name in properties]

    @property
    def pid(self) -> int:
        """Of the main process, on the machine."""
        return int(self.show("MainPID")[0])

    def begin(self) -> None:
        """Starts it as if it had not been started for long."""
        self.machine.run("systemctl", "reset-failed", NAME, check=False)
        self.control("start")

    def signal(self, name: str) -> None:
        """Sends a signal to the main process alone."""
        self.control("kill", f"--signal={name}", "--kill-who=main")

    def journal(self) -> list[dict[str, Any]]:
        """What the journal has of it, oldest first."""
        self.machine.run("journalctl", "--sync")
        lines = self.machine.run("journalctl", f"--unit={NAME}", "--output=json", "--all").stdout
        return [json.loads(line) for line in lines.splitlines()]

    def logged(self) -> list[Event]:
        """What its log file has, older files of a rotation first."""
        events: list[Event] = []
        for path in (LOG.with_name(LOG.name + ".1"), LOG):
            text = self.machine.path(path)
            if text.exists():
                lines = text.read_text().splitlines(keepends=True)
                events += [json.loads(line) for line in lines if line.endswith("\n")]
        return events

    def wait(self, wanted: Callable[[Event], bool], *, since: int = 0) -> Event:
        """The first such event of the log file, from number `since` on."""
        found: list[Event] = []

        def there() -> bool:
            found[:] = [event for event in self.logged()[since:] if wanted(event)]
            return bool(found)

        until(there, what="\n".join(map(str, self.logged()[-8:])))
        return found[0]

    def live(self) -> str:
        """The id of the live release; empty without one."""
        path = self.machine.path(DEPLOY / "current")
        return os.path.basename(path.readlink()) if path.is_symlink() else ""  # noqa: PTH119  # a link's text


def exposure(said: str) -> float:
    """The figure in what ``systemd-analyze security`` said."""
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])
