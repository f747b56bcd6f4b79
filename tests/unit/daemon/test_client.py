from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.daemon.control import ControlServer
from spancat_daemon.errors import ExitCode, NoDaemon, Rejected, SpancatDaemonError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A listener that answers one connection with fixed bytes."""

    def answer_one() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(65536)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20)
        listener.bind(os.fspath(path))
        listener.listen()
        thread = threading.Thread(target=answer_one)
        thread.start()
        yield
        thread.join(120)


@pytest.mark.parametrize("there", ["nothing", "stale socket", "no folder", "file instead of folder"])
def test_no_daemon(tmp_path: Path, there: str) -> None:
    path = tmp_path / "control.sock"
    if there == "stale socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
    elif there == "no folder":
        path = tmp_path / "missing" / ("x" * 120) / "control.sock"
    elif there == "file instead of folder":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "control.sock"
    with pytest.raises(NoDaemon, match="no daemon answers") as raised:
        ControlClient(path).call("GET", "/v1/status")
    assert raised.value.exit_code is ExitCode.NO_DAEMON
    assert raised.value.where == str(path)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("no such rule", where="daemon.toml", hint="did you mean x?"),
        SpancatDaemonError("the disk is full", where="/srv"),
        Rejected("no span categorizer"),
        NoDaemon("asked about another"),
    ],
)
def test_the_servers_errors_come_out_as_they_were(tmp_path: Path, error: SpancatDaemonError) -> None:
    def refuse(method: str, path: str, body: dict[str, Any]) -> Any:
        raise error

    server = ControlServer(tmp_path / "s", refuse)
    server.start()
    with pytest.raises(SpancatDaemonError) as raised:
        ControlClient(tmp_path / "s").call("POST", "/v1/snapshot", {"rule": "x"})
    server.close()
    assert type(raised.value) is type(error)
    assert (str(raised.value), raised.value.exit_code) == (str(error), error.exit_code)


def test_an_unknown_kind_of_error_keeps_its_exit_code(tmp_path: Path) -> None:
    class BadDigestsError(SpancatDaemonError):
        exit_code = ExitCode.FINDINGS

    def refuse(method: str, path: str, body: dict[str, Any]) -> Any:
        raise BadDigestsError("3 bad digests")

    server = ControlServer(tmp_path / "s", refuse)
    server.start()
    with pytest.raises(SpancatDaemonError, match="3 bad digests") as raised:
        ControlClient(tmp_path / "s").call("POST", "/v1/x")
    server.close()
    assert raised.value.exit_code is ExitCode.FINDINGS
    assert SpancatDaemonError("x").exit_code is ExitCode.FAILED  # the class itself is untouched


def test_a_large_result_and_body_come_through_whole(tmp_path: Path) -> None:
    server = ControlServer(
        tmp_path / "s", lambda _method, _path, body: {"got": body["x"], "more": "y" * 3_000_000}
    )
    server.start()
    result = ControlClient(tmp_path / "s").call("POST", "/v1/x", {"x": "é" * 100_000})
    server.close()
    assert result == {"got": "é" * 100_000, "more": "y" * 3_000_000}


def test_a_daemon_that_does_not_answer_in_time(tmp_path: Path) -> None:
    leave = threading.Event()
    server = ControlServer(tmp_path / "s", lambda *_: leave.wait(30))
    server.start()
    with pytest.raises(SpancatDaemonError, match=r"did not answer within 0\.2 s"):
        ControlClient(tmp_path / "s", timeout_s=0.2).call("GET", "/v1/status")
    leave.set()
    server.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "went away before it answered"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no spancat-daemon"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "no spancat-daemon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json!", "no spancat-daemon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{}", "no spancat-daemon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}", "no spancat-daemon"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 2\r\n\r\n[]", "answered 502 without saying why"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "answered 200 without saying why"),
    ],
)
def test_what_is_no_daemon_is_said_to_be_none(tmp_path: Path, answer: bytes, message: str) -> None:
    with answering(tmp_path / "s", answer), pytest.raises(SpancatDaemonError, match=message):
        ControlClient(tmp_path / "s").call("GET", "/v1/status")
