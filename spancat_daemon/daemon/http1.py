"""As much of HTTP/1.1 (RFC 9112) as two programs on one unix socket need, and ``curl`` with them.

One request a connection, ``Content-Length`` only. By hand because the standard library's http.server knows no
deadline for a whole request, only for each single read, and takes megabytes of headers.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

HEAD_LIMIT_BYTES: Final = 16 << 10
BODY_LIMIT_BYTES: Final = 1 << 20

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET: Final = re.compile(rb"/[!-~]*")
_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")
_CHUNK_BYTES: Final = 64 << 10


class BadMessage(Exception):  # noqa: N818  # a verdict on what the other side sent
    """What came is no message that is understood here.

    Attributes:
        status: what a server answers to it.
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Deadline:
    """A moment by which all of a message must be through, however slowly its bytes drip."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def arm(self, connection: socket.socket) -> None:
        """Lets the connection's next call wait till then at the most; raises TimeoutError when it is past."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for the message is over")
        connection.settimeout(left)


@dataclass(frozen=True, slots=True)
class Head:
    """The first line's three words and the headers, their names in lower case."""

    start: tuple[bytes, bytes, bytes]
    headers: dict[bytes, bytes]
    surplus: bytes
    """What was read beyond the head: the beginning of the body."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is well-formed; whether it makes sense is for others to say."""

    method: str
    path: str
    body: bytes


def read_request(connection: socket.socket, deadline: Deadline) -> Request:
    """Reads one request.

    Raises:
        BadMessage: it is malformed, too long, or wants what is not offered.
        TimeoutError: it did not come through in time.
        ConnectionError: the client went away.
    """
    head = _read_head(connection, deadline)
    method, target, version = head.start
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise BadMessage(HTTPStatus.BAD_REQUEST, "the request line is malformed")
    if version not in {b"HTTP/1.1", b"HTTP/1.0"}:
        raise BadMessage(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is spoken here")
    if b"transfer-encoding" in head.headers:
        raise BadMessage(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
    length = _content_length(head) or 0
    if length > BODY_LIMIT_BYTES:
        raise BadMessage(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {BODY_LIMIT_BYTES} bytes"
        )
    if head.headers.get(b"expect", b"").lower() == b"100-continue" and len(head.surplus) < length:
        deadline.arm(connection)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = _read_exactly(connection, head.surplus, length, deadline)
    path = target.partition(b"?")[0].decode("ascii")
    return Request(method.decode("ascii"), path, body)


def write_request(connection: socket.socket, request: Request, deadline: Deadline) -> None:
    """Sends one request."""
    head = (
        f"{request.method} {request.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(request.body)}\r\n\r\n"
    )
    deadline.arm(connection)
    connection.sendall(head.encode("ascii") + request.body)


def read_response(connection: socket.socket, deadline: Deadline, *, limit_bytes: int) -> tuple[int, bytes]:
    """Reads one response: its status and body.

    Raises:
        BadMessage: it is none, or longer than the limit.
        TimeoutError: it did not come through in time.
        ConnectionError: the server went away before its end.
    """
    head = _read_head(connection, deadline)
    version, status, _ = head.start
    if version[:7] != b"HTTP/1." or not re.fullmatch(rb"[1-5][0-9][0-9]", status):
        raise BadMessage(HTTPStatus.BAD_GATEWAY, "what answers does not speak HTTP")
    length = _content_length(head)
    if length is None or length > limit_bytes:
        raise BadMessage(HTTPStatus.BAD_GATEWAY, "the answer has no acceptable length")
    return int(status), _read_exactly(connection, head.surplus, length, deadline)


def write_response(connection: socket.socket, status: HTTPStatus, body: bytes, deadline: Deadline) -> None:
    """Sends one response, after which the connection is to be closed."""
    allow = "Allow: GET, POST\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{allow}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    deadline.arm(connection)
    connection.sendall(head.encode("ascii") + body)


def drain(connection: socket.socket, deadline: Deadline) -> None:
    """Takes what the client still sends, so that it can finish and read why it was refused."""
    try:
        connection.shutdown(socket.SHUT_WR)
        for _ in range(4 * BODY_LIMIT_BYTES // _CHUNK_BYTES):
            deadline.arm(connection)
            if not connection.recv(_CHUNK_BYTES):
                return
    except OSError:
        return


def _read_head(connection: socket.socket, deadline: Deadline) -> Head:
    received = b""
    while b"\r\n\r\n" not in received:
        if len(received) >= HEAD_LIMIT_BYTES:
            raise BadMessage(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too long")
        deadline.arm(connection)
        chunk = connection.recv(4096)
        if not chunk:
            if received.strip():
                raise BadMessage(HTTPStatus.BAD_REQUEST, "the message ends within its headers")
            raise ConnectionResetError("the other side closed the connection")
        received += chunk
    head, _, surplus = received.partition(b"\r\n\r\n")
    start, *lines = head.lstrip(b"\r\n").split(b"\r\n")
    words = start.split(b" ", 2)
    if len(words) != 3:
        raise BadMessage(HTTPStatus.BAD_REQUEST, "the first line is malformed")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        name = name.lower()
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadMessage(HTTPStatus.BAD_REQUEST, "a header is malformed")
        if name == b"content-length" and headers.get(name, value) != value:
            raise BadMessage(HTTPStatus.BAD_REQUEST, "there are two lengths")
        headers[name] = value
    return Head((words[0], words[1], words[2]), headers, surplus)


def _content_length(head: Head) -> int | None:
    value = head.headers.get(b"content-length")
    if value is None:
        return None
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise BadMessage(HTTPStatus.BAD_REQUEST, "the Content-Length is no number")
    return int(value)


def _read_exactly(connection: socket.socket, begun: bytes, length: int, deadline: Deadline) -> bytes:
    if len(begun) > length:
        raise BadMessage(HTTPStatus.BAD_REQUEST, "there is more than the Content-Length says")
    body = bytearray(begun)
    while len(body) < length:
        deadline.arm(connection)
        chunk = connection.recv(min(_CHUNK_BYTES, length - len(body)))
        if not chunk:
            raise BadMessage(HTTPStatus.BAD_REQUEST, "the message ends before its Content-Length")
        body += chunk
    return bytes(body)
