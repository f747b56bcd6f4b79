from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.observe import systemd

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_gets_what_is_said(tmp_path: Path, abstract: bool) -> None:
    name = f"spancat-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": f"@{name}" if abstract else name}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(10)
        assert systemd.notify_ready("3 rules\nand a line", environ=environ)
        assert manager.recv(4096) == b"READY=1\nSTATUS=3 rules and a line"
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert systemd.notify_reloading(environ=environ)
        reloading, _, moment = manager.recv(4096).partition(b"\nMONOTONIC_USEC=")
        assert reloading == b"RELOADING=1"
        assert before <= int(moment) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert systemd.notify_watchdog(environ=environ)
        assert manager.recv(4096) == b"WATCHDOG=1"
        assert systemd.notify_stopping(environ=environ)
        assert manager.recv(4096) == b"STOPPING=1"
        assert systemd.notify_status("caf\udce9", environ=environ)
        assert manager.recv(4096) == b"STATUS=caf?"


@pytest.mark.parametrize(
    "address", ["", "relative", "vsock:2:1", "/nowhere/at/all", "@nobody-listens", "/" + "x" * 300]
)
def test_nobody_to_tell_is_no_fault(address: str) -> None:
    assert not systemd.notify_ready(environ={"NOTIFY_SOCKET": address})
    assert not systemd.notify_ready(environ={})


def test_a_manager_that_does_not_read_can_not_stop_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_SEND_TIMEOUT_S", 0.001)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        told = [
            systemd.notify_watchdog(environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) for _ in range(530)
        ]
        assert told[0]  # net.unix.max_dgram_qlen is some ten to 512 messages
        assert not told[-1]


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_watchdog_interval(environ: dict[str, str], interval_s: float | None) -> None:
    assert systemd.watchdog_interval_s(environ) == interval_s


def test_the_journal_is_told_from_what_merely_inherited_its_variable(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        status = os.fstat(out.fileno())
        descriptor = out.fileno()
        assert systemd.is_journal_stream(descriptor, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not systemd.is_journal_stream(
            descriptor, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"}
        )
        for wrong in ("", "1", "a:b", ":"):
            assert not systemd.is_journal_stream(descriptor, {"JOURNAL_STREAM": wrong})
    assert not systemd.is_journal_stream(descriptor, {"JOURNAL_STREAM": "1:2"})
