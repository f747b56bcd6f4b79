"""What `check` looks at of what follows a swap: whether programs, units, processes and URLs can be had."""

from __future__ import annotations

import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, Final

from spancat_daemon.cli.finding import Finding
from spancat_daemon.config.model import PostWebhook, RunCommand, SendSignal, SystemdJob
from spancat_daemon.config.references import depends_on_match, unusable_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.cli.finding import Level
    from spancat_daemon.config.located import Located
    from spancat_daemon.config.model import After, Watch
    from spancat_daemon.config.places import Path as KeyPath

UNIT: Final = "spancat-daemon.service"
_SYSTEMCTL_S: Final = 10.0


def inspect_consequences(located: Located) -> Iterator[Finding]:
    """Looks at what ``[[watch.after]]`` and ``[watch.health]`` need; runs and asks none of it."""
    urls: list[tuple[Watch, KeyPath]] = []
    for index, watch in enumerate(located.configuration.watch):
        for number, step in enumerate(watch.after):
            at: KeyPath = ("watch", index, "after", number)
            yield from _step(located, watch, at, step)
            if isinstance(step, PostWebhook):
                urls.append((watch, (*at, "webhook", "url")))
        if watch.health is not None:
            at = ("watch", index, "health")
            if watch.health.command is not None:
                yield from _program(located, watch, (*at, "command"), watch.health.command[0])
            else:
                urls.append((watch, (*at, "url")))
    if urls and _unit_has_no_network():
        for watch, key in urls:
            problem = located.problem(key, f"{UNIT} has no network, not even to 127.0.0.1")
            hint = "give it one with a drop-in, as deploy/systemd/spancat-daemon.service.d/ shows"
            yield Finding.at("warning", watch.name, problem, hint)


def _step(located: Located, watch: Watch, at: KeyPath, step: After) -> Iterator[Finding]:
    def told(level: Level, key: KeyPath, text: str, hint: str) -> Finding:
        return Finding.at(level, watch.name, located.problem(key, text), hint)

    if isinstance(step, RunCommand):
        yield from _program(located, watch, (*at, "command"), step.command[0])
    elif isinstance(step, SystemdJob) and not shutil.which("systemctl"):
        yield told(
            "warning", (*at, "systemd"), "there is no systemctl on $PATH", "use command, signal or webhook"
        )
    elif isinstance(step, SendSignal):
        folder = step.signal.pidfile.parent
        if not depends_on_match(watch, step.signal.pidfile) and not folder.is_dir():
            yield told(
                "warning",
                (*at, "signal", "pidfile"),
                f"the pidfile's folder {folder} is not there",
                "whoever is told will make it; if this is a slip of the pen, correct pidfile",
            )
    elif isinstance(step, PostWebhook):
        secret = step.webhook.secret_file
        if secret is not None and _is_open_to_all(secret):
            yield told(
                "warning",
                (*at, "webhook", "secret_file"),
                f"everybody can read {secret}",
                f"chmod 640 {secret}",
            )


def _program(located: Located, watch: Watch, key: KeyPath, program: str) -> Iterator[Finding]:
    reason = unusable_program(program)
    if reason:
        yield Finding.at("error", watch.name, located.problem((*key, 0), reason))


def _is_open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:  # gone since it was looked at
        return False


def _unit_has_no_network() -> bool:
    """Whether the unit that is installed here runs without a network; False if that can't be told."""
    command = ["systemctl", "show", "--property=PrivateNetwork", UNIT]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SYSTEMCTL_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return "PrivateNetwork=yes" in done.stdout.split()
