"""Programs that are run for the administrator: what they get, what is left of them, and for how long."""

from __future__ import annotations

import os
import select
import signal
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.after import program
from spancat_daemon.after.outcome import Outcome, stopped
from spancat_daemon.after.program import run_program
from spancat_daemon.after.steps import notify
from spancat_daemon.config.model import RunCommand, SystemdJob
from tests.integration.after.peers import BEFORE, ID, a_swap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run(command: Sequence[str], timeout_s: float = 60.0, stopping: threading.Event | None = None) -> Outcome:
    return run_program(command, {}, timeout_s=timeout_s, stopping=stopping or threading.Event())


def test_a_command_is_told_of_the_swap_and_of_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_TOKEN", "hunter2")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    script = tmp_path / "tell; me $HOME"  # as it stands: no shell reads it
    script.write_text('#!/bin/sh\nenv > "$1"; pwd >> "$1"; cat >> "$1"\n')
    script.chmod(0o755)
    after = RunCommand(command=(str(script), str(tmp_path / "told")), required=True)
    done = notify(after, a_swap(), stopping=threading.Event())
    assert (done.ok, done.kind, done.tries, done.required, done.reason) == (True, "command", 1, True, "")
    assert done.target == f"{script} …"
    told = (tmp_path / "told").read_text().splitlines()
    assert told[-1] == "/"
    found = dict(line.split("=", 1) for line in told[:-1])
    assert found["SPANCAT_RULE"] == "products"
    assert (found["SPANCAT_RELEASE"], found["SPANCAT_PREVIOUS"]) == (ID, BEFORE)
    assert found["SPANCAT_PATH"] == f"/srv/models/products/releases/{ID}"
    assert found["SPANCAT_CURRENT"] == "/srv/models/products/current"
    assert (found["SPANCAT_TRIGGER"], found["SPANCAT_FORCED"]) == ("change", "0")
    assert (found["PATH"], found["LANG"]) == (os.environ["PATH"], "de_DE.UTF-8")
    assert not {"WEBHOOK_TOKEN", "NOTIFY_SOCKET"} & set(found)


def test_a_failure_is_told_by_its_last_words_whatever_came_before_them() -> None:
    words = r'head -c 50000000 /dev/zero; printf "one\n\033[31mtwo\n\nthree\n"; echo four >&2; exit 3'
    tracemalloc.start()
    try:
        outcome = run(["sh", "-c", words])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome == Outcome(ok=False, reason="ended with status 3: [31mtwo / three / four")
    assert peak_bytes < 4 << 20


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        (
            ["/nowhere/tell"],
            Outcome(ok=False, reason="can't run /nowhere/tell: No such file or directory", tries=0),
        ),
        (["/etc/passwd"], Outcome(ok=False, reason="can't run /etc/passwd: Permission denied", tries=0)),
        (["sh", "-c", "kill -SEGV $$"], Outcome(ok=False, reason="was ended by SIGSEGV")),
        (["sh", "-c", "exec sleep 60"], Outcome(ok=False, reason="did not end within 0.2 s")),
        (["yes"], Outcome(ok=False, reason="did not end within 0.2 s: y / y / y")),
        # What it leaves in the background holds its output open; its own end counts.
        (["sh", "-c", "sleep 60 & exit 0"], Outcome(ok=True)),
    ],
)
def test_every_end_of_a_program_is_an_outcome(command: list[str], outcome: Outcome) -> None:
    assert run(command, timeout_s=0.2 if "within" in outcome.reason else 30.0) == outcome


class Grandchild:
    """Held by a grandchild of the command as long as it lives: a FIFO that it says x into."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.command = ["sh", "-c", f"(echo x; exec sleep 100) > {path} & wait"]

    def began(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll()
        assert os.read(self.fd, 1) == b"x"

    def ended(self) -> bool:
        os.set_blocking(self.fd, True)
        said = b""
        while chunk := os.read(self.fd, 10):
            said += chunk
        os.close(self.fd)
        return said in {b"x\n", b"\n"}


@pytest.mark.timeout(60)  # a grandchild that isn't killed lives for longer
def test_at_the_timeout_the_whole_group_is_killed(tmp_path: Path) -> None:
    grandchild = Grandchild(tmp_path / "fifo")
    assert run(grandchild.command, timeout_s=1.5).reason == "did not end within 1.5 s"
    assert grandchild.ended()


@pytest.mark.timeout(60)
def test_when_the_daemon_stops_the_whole_group_is_killed(tmp_path: Path) -> None:
    grandchild, stopping, outcomes = Grandchild(tmp_path / "fifo"), threading.Event(), list[Outcome]()
    thread = threading.Thread(target=lambda: outcomes.append(run(grandchild.command, 3600.0, stopping)))
    thread.start()
    grandchild.began()
    stopping.set()
    thread.join()
    assert outcomes == [stopped()]
    assert grandchild.ended()
    assert run(["touch", str(tmp_path / "ran")], stopping=stopping) == stopped(0)
    assert not (tmp_path / "ran").exists()


def test_a_program_that_can_not_be_killed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []

    def refuse(group: int, _: int) -> None:
        groups.append(group)
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(program, "_KILL_GRACE_S", 0.05)
        patched.setattr(os, "killpg", refuse)
        outcome = run(["sleep", "60"], timeout_s=0.05)
    assert outcome.reason == "did not end within 0.05 s, and can't be ended"
    reaper = next(thread for thread in threading.enumerate() if thread.name == "reaper")
    os.killpg(groups[0], signal.SIGKILL)
    reaper.join()
    with pytest.raises(ProcessLookupError):
        os.kill(groups[0], 0)


@pytest.mark.parametrize("status", [0, 1])
def test_systemd_gets_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    # No systemd runs here: a systemctl of ours shows what the real one would be told.
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/told\n'
        f'[ {status} = 0 ] || echo "Failed to reload ner-api.service: Access denied" >&2\nexit {status}\n'
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = "reload ner-api.service ner-batch@1.service"
    done = notify(SystemdJob(systemd=job), a_swap(), stopping=threading.Event())
    assert (tmp_path / "told").read_text().split() == [
        "--no-ask-password",
        "reload",
        "--",
        "ner-api.service",
        "ner-batch@1.service",
    ]
    why = "ended with status 1: Failed to reload ner-api.service: Access denied"
    assert (done.kind, done.target, done.ok, done.reason) == (
        "systemd",
        job,
        not status,
        why if status else "",
    )
