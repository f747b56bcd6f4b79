"""Signals to real processes, and to nobody who isn't meant."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from spancat_daemon.after.pidfile_signal import send_signal
from spancat_daemon.after.steps import notify
from spancat_daemon.config.model import SendSignal
from tests.integration.after.peers import a_swap

LISTENS = 'trap "echo told; exit 0" USR1; echo ready; while :; do sleep 0.02; done'


def why_not(pidfile: Path) -> str:
    outcome = send_signal(pidfile, "HUP")
    assert (outcome.ok, outcome.tries) == (False, 0)
    return outcome.reason


def test_the_process_of_the_pidfile_gets_the_signal(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with subprocess.Popen(["sh", "-c", LISTENS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pidfile.write_text(f"  {process.pid}\n")
        after = SendSignal.model_validate({"signal": {"pidfile": pidfile, "name": "USR1"}})
        done = notify(after, a_swap(), stopping=threading.Event())
        assert (done.kind, done.target, done.ok, done.reason) == ("signal", f"USR1 to {pidfile}", True, "")
        assert process.stdout.read() == "told\n"
    # Its number is of no use from now on.
    assert why_not(pidfile) == f"there is no process {process.pid}, as the pidfile says"


def test_a_zombie_or_a_successor_gets_none(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with subprocess.Popen(["sleep", "60"]) as process:
        pidfile.write_text(str(process.pid))
        hour_ago = time.time() - 3600
        os.utime(pidfile, (hour_ago, hour_ago))
        assert why_not(pidfile) == (
            f"process {process.pid} is younger than the pidfile, so it is not the one that was meant"
        )
        assert process.poll() is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        pidfile.write_text(str(process.pid))
        assert why_not(pidfile) == f"process {process.pid}, as the pidfile says, has ended"


def test_what_holds_no_process_to_be_told_is_refused(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    assert why_not(pidfile) == "the pidfile is of no use: it can't be read: No such file or directory"
    os.mkfifo(pidfile)
    assert why_not(pidfile) == "the pidfile is of no use: it is no regular file"
    pidfile.unlink()
    pidfile.write_bytes(b"1" * (64 << 10) + b"1")
    assert why_not(pidfile) == "the pidfile is of no use: it is larger than 64 KiB"
    for content in ("", "-1", "12 13", "0x10", "²", "1" * 11):
        pidfile.write_text(content)
        assert why_not(pidfile) == "the pidfile does not hold a number"
    for content in ("0", "1", "0001"):
        pidfile.write_text(content)
        assert why_not(pidfile) == f"the pidfile holds {int(content)}, which is nobody to be told of a swap"
    pidfile.write_text(str(os.getpid()))
    assert why_not(pidfile) == f"the pidfile holds {os.getpid()}, which is this daemon itself"
    pidfile.write_text("9999999999")
    assert why_not(pidfile) == "there is no process 9999999999, as the pidfile says"
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        pidfile.write_text(str(thread.native_id))
        assert why_not(pidfile).endswith("is no process of its own, but a thread of one")
    finally:
        ended.set()
        thread.join()
    assert send_signal(pidfile, "HUB").reason == "'HUB' is not a signal's name"


@pytest.mark.root
def test_a_process_of_another_user_is_not_ours_to_signal() -> None:
    if os.geteuid() != 0:
        pytest.skip("root: a process of another user is needed")
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(["sleep", "60"], user=65534) as process:
        Path(folder).chmod(0o755)
        pidfile = Path(folder, "pid")
        pidfile.write_text(str(process.pid))
        os.seteuid(65533)
        try:
            outcome = send_signal(pidfile, "HUP")
        finally:
            os.seteuid(0)
        assert outcome.reason == (
            f"process {process.pid} can't be sent SIGHUP: Operation not permitted; it runs as another user"
        )
        process.send_signal(signal.SIGKILL)
