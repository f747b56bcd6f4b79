from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from spancat_daemon.daemon import control
from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.daemon.control import ControlServer, NoSuchRoute
from spancat_daemon.errors import NoDaemon, SpancatDaemonError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def handle(method: str, path: str, body: dict[str, Any]) -> Any:
    if path == "/v1/fault":
        raise RuntimeError("inside")
    if path == "/v1/unknown":
        raise NoSuchRoute("there is nothing here")
    return {"method": method, "path": path, "body": body}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    server = ControlServer(path, handle, request_timeout_s=5)
    server.start()
    yield server
    server.close()


def exchange(path: Path, request: bytes, *, finish: bool = True) -> tuple[int, Any]:
    """Sends raw bytes; the status and the parsed body of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.fspath(path))
        try:
            connection.sendall(request)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    if not answer:
        return 0, None
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/echo HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_is_real_http_for_curl(server: ControlServer, path: Path) -> None:
    curl = ["curl", "--silent", "--show-error", "--unix-socket", str(path), "http://localhost/v1/echo?x=1"]
    done = subprocess.run(
        [*curl, "--data", '{"rule": "products"}'], capture_output=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["result"] == {
        "method": "POST",
        "path": "/v1/echo",
        "body": {"rule": "products"},
    }
    large = [*curl, "--header", "Expect: 100-continue", "--data", json.dumps({"x": "y" * 500_000})]
    done = subprocess.run(
        [*large[:-1], "@-"], input=large[-1].encode(), capture_output=True, check=True, timeout=120
    )
    assert len(json.loads(done.stdout)["result"]["body"]["x"]) == 500_000


@pytest.mark.parametrize("umask", [0, 0o077])
def test_mode_is_0600_from_its_first_instant(path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real_listen = socket.socket.listen

    def listen(self: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(path.lstat().st_mode))  # bound, but nobody can connect yet
        real_listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    old = os.umask(umask)
    try:
        server = ControlServer(path, handle)
        server.start()
    finally:
        os.umask(old)
    server.close()
    assert modes == [0o600]


def test_close_removes_its_socket_and_may_be_repeated(path: Path) -> None:
    server = ControlServer(path, handle)
    server.start()
    assert ControlClient(path).call("GET", "/v1/status")["method"] == "GET"
    server.close()
    server.close()
    assert not path.exists()


def test_close_leaves_a_successors_socket(path: Path) -> None:
    first, second = ControlServer(path, handle), ControlServer(path, handle)
    first.start()
    path.unlink()  # what an administrator does who believes it is stale
    second.start()
    first.close()
    assert ControlClient(path).call("GET", "/v1/status")["path"] == "/v1/status"
    second.close()


def test_replaces_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()
    assert path.is_socket()
    server = ControlServer(path, handle)
    server.start()
    assert ControlClient(path).call("GET", "/v1/status")
    server.close()


def test_refuses_beside_another_daemon_and_says_which(server: ControlServer, path: Path) -> None:
    with pytest.raises(SpancatDaemonError, match=f"another daemon listens.*process {os.getpid()}"):
        ControlServer(path, handle).start()
    assert ControlClient(path).call("GET", "/v1/status")


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link to a file", "dangling link"])
def test_never_deletes_what_is_no_socket(path: Path, kind: str) -> None:
    target = path.with_name("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "link to a file":
            target.write_text("precious")
        path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(SpancatDaemonError, match="something else where the control socket should be"):
        ControlServer(path, handle).start()
    assert path.lstat() == before


def test_of_two_that_start_at_once_over_a_stale_socket_one_wins(path: Path) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(path))
        servers = [ControlServer(path, handle) for _ in range(4)]
        begin = threading.Barrier(len(servers))
        failures: list[SpancatDaemonError] = []

        def start(
            server: ControlServer,
            begin: threading.Barrier = begin,
            failures: list[SpancatDaemonError] = failures,
        ) -> None:
            begin.wait(120)
            try:
                server.start()
            except SpancatDaemonError as error:
                failures.append(error)

        threads = [threading.Thread(target=start, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(failures) == len(servers) - 1
        assert ControlClient(path).call("GET", "/v1/status")
        for server in servers:
            server.close()
        assert not path.exists()


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "control.sock"
    server = ControlServer(path, handle)
    server.start()
    assert ControlClient(path).call("GET", "/v1/status")
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    server.close()
    assert not path.exists()


def test_a_name_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpancatDaemonError, match="too long for a unix socket"):
        ControlServer(tmp_path / ("x" * 120), handle).start()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\xff\x16\x03garbage\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /v1/status HTTP/2.0\r\n\r\n", 505),
        (b"GET /v1/\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nA : space before colon\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nHost: x", 400),
        (b"GET /v1/status HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 100_000, 431),
        (b"DELETE /v1/status HTTP/1.1\r\n\r\n", 405),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: 50\r\n\r\n{}", 400),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: 1\r\n\r\n{}", 400),
        (b"POST /v1/echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST /v1/echo HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n" + b"x" * 1048577, 413),
        (post(b"\xff\xfe{}"), 400),
        (post(b'{"rule": "\xed\xa0\x80"}'), 400),
        (post(b"[1, 2]"), 400),
        (post(b"null"), 400),
        (post(b"{"), 400),
        (post(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 400),
        (b"GET /v1/unknown HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/fault HTTP/1.1\r\n\r\n", 500),
        (b"GET /v1/status HTTP/1.0\r\n\r\n", 200),
        (b"\r\nGET /v1/status HTTP/1.1\r\n\r\n", 200),
        (post(b""), 200),
        (post(b"{}", "Connection: keep-alive"), 200),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else str(value),
)
def test_whatever_comes_is_answered(
    server: ControlServer, path: Path, request_bytes: bytes, status: int
) -> None:
    answered, body = exchange(path, request_bytes)
    assert answered == status, body
    if status == 200:
        assert "result" in body
    else:
        assert body["error"]["reason"]
    assert ControlClient(path).call("GET", "/v1/status")


def test_a_fault_inside_is_logged_and_answered(server: ControlServer, path: Path) -> None:
    with (
        structlog.testing.capture_logs() as events,
        pytest.raises(SpancatDaemonError, match="RuntimeError: inside"),
    ):
        ControlClient(path).call("POST", "/v1/fault", {})
    assert [event["event"] for event in events] == ["control.failed"]


def test_a_client_that_says_nothing_or_drips_is_dropped(path: Path) -> None:
    server = ControlServer(path, handle, request_timeout_s=0.3)
    server.start()
    assert exchange(path, b"GET /v1/status HTTP/1.1\r\n", finish=False)[0] == 408
    assert exchange(path, b"", finish=False)[0] == 408
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.fspath(path))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012  # each byte restarts a naive timeout
            for _ in range(1_000_000):
                connection.sendall(b"x")
                threading.Event().wait(0.01)
    server.close()


def test_no_more_connections_than_there_are_places(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MOST_CONNECTIONS", 2)
    entered, leave = threading.Semaphore(0), threading.Event()

    def slow(method: str, path: str, body: dict[str, Any]) -> Any:
        entered.release()
        leave.wait(30)
        return "done"

    server = ControlServer(path, slow)
    server.start()
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(ControlClient(path).call("GET", "/v1/status")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert all(entered.acquire(timeout=120) for _ in threads)
    with pytest.raises(SpancatDaemonError, match="too many requests"):
        ControlClient(path).call("GET", "/v1/status")
    leave.set()
    for thread in threads:
        thread.join(120)
    assert results == ["done", "done"]
    server.close()


def test_close_waits_for_answers_under_way_and_a_handler_may_close(path: Path) -> None:
    entered, leave, answers = threading.Event(), threading.Event(), []

    def slow(method: str, path: str, body: dict[str, Any]) -> Any:
        entered.set()
        leave.wait(30)
        closing.close()
        return "closed from inside"

    closing = ControlServer(path, slow)
    closing.start()
    client = threading.Thread(target=lambda: answers.append(ControlClient(path).call("POST", "/v1/reload")))
    client.start()
    assert entered.wait(120)
    leave.set()
    client.join(120)
    assert answers == ["closed from inside"]
    with pytest.raises(NoDaemon):
        ControlClient(path).call("GET", "/v1/status")


def test_a_result_that_is_no_json_is_answered_all_the_same(path: Path) -> None:
    server = ControlServer(path, lambda *_: {"path": Path("/caf\udce9"), "set": {2, 1}, 3: object})
    server.start()
    result = ControlClient(path).call("GET", "/v1/status")
    assert result["path"] == "/caf\\xe9"
    assert result["set"] == [1, 2]
    server.close()


@pytest.mark.root
def test_other_users_are_turned_away_even_if_the_mode_lets_them_in() -> None:
    if os.geteuid() != 0:
        pytest.skip("root: another user's process can't be started")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.sock"
        path.parent.chmod(0o711)
        server = ControlServer(path, handle)
        server.start()
        assert ask_as_nobody(path) == "no permission"
        path.chmod(0o666)
        assert ask_as_nobody(path) == "HTTP/1.1 403 Forbidden"
        assert ControlClient(path).call("GET", "/v1/status")
        server.close()


def ask_as_nobody(path: Path) -> str:
    ask = textwrap.dedent(
        f"""
        import os, socket
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        connection = socket.socket(socket.AF_UNIX); connection.settimeout(20)
        try:
            connection.connect({os.fspath(path)!r})
        except PermissionError:
            print("no permission"); raise SystemExit
        try:
            connection.sendall(b"GET /v1/status HTTP/1.1\\r\\n\\r\\n")
        except BrokenPipeError:
            pass  # already turned away
        print(connection.recv(65536).split(b"\\r\\n")[0].decode())
        """
    )
    command = [sys.executable, "-c", ask]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_usage_errors_differ_from_failures_in_status(path: Path) -> None:
    def refuse(method: str, path: str, body: dict[str, Any]) -> Any:
        raise (
            UsageError("wrong", where="there", hint="right") if path == "/u" else SpancatDaemonError("failed")
        )

    server = ControlServer(path, refuse)
    server.start()
    status, body = exchange(path, b"GET /u HTTP/1.1\r\n\r\n")
    assert (status, body["error"]) == (
        400,
        {"reason": "wrong", "where": "there", "hint": "right", "exit_code": 2, "kind": "UsageError"},
    )
    assert exchange(path, b"GET /f HTTP/1.1\r\n\r\n")[0] == 409
    server.close()
