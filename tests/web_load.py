"""Asks the server of docs/examples without a pause, until its standard input ends.

    python -I web_load.py PORT CONNECTIONS TEXTS

A program of its own, which imports nothing of this project. Each line that it writes is JSON:
``[answers so far, connection, release]``, the release only when a connection is answered by another one than
before; ``{"error": …}``; and at its end the tally of all answers, and when each came and how long it took.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any, Final

_PATIENCE_S: Final = 60.0
_TOLD_EVERY: Final = 100
_ANSWER = re.compile(rb'\{"release":"([^"]+)",(.*)', re.DOTALL)


class Asking:
    """Connections that ask, a thread for each."""

    def __init__(self, port: int, connections: int, texts: list[str]) -> None:
        self._port = port
        self._requests = [_request(text) for text in texts]
        self._tally: Counter[tuple[int, str, str]] = Counter()
        self._took: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(connections)]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        sys.stdin.read()  # to its end
        self._over.set()
        for thread in self._threads:
            thread.join()
        answers = [[*key, count] for key, count in self._tally.items()]
        self._tell({"answers": answers, "took": self._took})

    def _ask(self, number: int) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), _PATIENCE_S) as connection:
                self._ask_over(connection, number)
        except (OSError, ValueError) as error:
            with self._lock:
                self._tell({"error": f"{type(error).__name__}: {error}"})

    def _ask_over(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")
        count, before = 0, ""
        while not self._over.is_set():
            which = count % len(self._requests)
            count += 1
            began = time.perf_counter()
            connection.sendall(self._requests[which])
            release, said = _answer(answers)
            ended = time.perf_counter()
            with self._lock:
                self._tally[which, release, said] += 1
                self._took.append((ended, ended - began))
                if release != before or len(self._took) % _TOLD_EVERY == 0:
                    self._tell([len(self._took), number, release if release != before else ""])
            before = release

    @staticmethod
    def _tell(what: Any) -> None:
        print(json.dumps(what), flush=True)  # noqa: T201  # to the first process


def _request(text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    return (
        b"POST /spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


def _answer(answers: Any) -> tuple[str, str]:
    """The release that answered, and the rest of what it said."""
    status, length = answers.readline(), 0
    while (line := answers.readline()) not in {b"\r\n", b""}:
        if line[:15].lower() == b"content-length:":
            length = int(line[15:])
    body = answers.read(length)
    found = _ANSWER.fullmatch(body)
    if not status.startswith(b"HTTP/1.1 200 ") or found is None:
        raise ValueError(f"{status!r} {body[:300]!r}")
    return found[1].decode(), found[2].decode()


if __name__ == "__main__":
    Asking(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])).run()
