"""A swap to tell of, and those who are told: HTTP servers that behave, and some that don't."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from spancat_daemon.after.swap import Swap

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

ID = "000042-20261122T113045Z-3f2a9c1b"
BEFORE = "000041-20261121T113045Z-11112222"


def a_swap(folder: Path = Path("/srv/models/products")) -> Swap:
    return Swap(
        rule="products",
        release=ID,
        path=folder / "releases" / ID,
        current=folder / "current",
        deploy=folder,
        previous=BEFORE,
        previous_path=folder / "releases" / BEFORE,
        trigger="change",
        forced=False,
        component="spancat",
        model_sha256="ab" * 32,
        content_sha256="cd" * 32,
        labels=("ORG", "GÜTER"),
        history_seq=17,
    )


@dataclass(frozen=True, slots=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """Answers as told, in turn, and with 200 when nothing is told any more."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)


@contextlib.contextmanager
def receiver(
    *answers: int | tuple[int, dict[str, str]], tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    it = Receiver(answers=[a if isinstance(a, tuple) else (a, {}) for a in answers])

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            it.received.append(Received(self.command, self.path, dict(self.headers), body))
            status, headers = it.answers.pop(0) if it.answers else (200, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815  # names of http.server's

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as above
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that doesn't trust us hangs up

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        it.url = f"{'https' if tls else 'http'}://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield it
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def rude(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that does what it is told with each connection, until the client is gone."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            behave(connection)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if ended.is_set():
                connection.close()
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            ended.set()
            socket.create_connection(listener.getsockname()).close()
            for thread in threads:
                thread.join()


def until_gone(connection: socket.socket) -> None:
    """Say nothing until the client hangs up."""
    while connection.recv(1 << 16):
        pass
