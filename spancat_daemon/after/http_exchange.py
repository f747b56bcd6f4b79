"""One HTTP request and the status of its answer, within a time that no peer can stretch."""

from __future__ import annotations

import errno
import http
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from spancat_daemon import __version__
from spancat_daemon.after.outcome import STOPPED, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

_POLL_S: Final = 0.1
_LEAVE_S: Final = 0.1  # for a thread to notice that its connection is gone
_HEADERS: Final = {"User-Agent": f"spancat-daemon/{__version__}", "Connection": "close"}
_NO_NETWORK: Final = (errno.EAFNOSUPPORT, errno.ENETUNREACH, errno.EPERM, errno.EACCES)
_NO_NETWORK_HINT: Final = "; does the service's unit allow it a network?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What came of a request.

    Attributes:
        status: of the answer; 0 if there was none.
        reason: why there was none, in one line without secrets; empty otherwise.
        retry_after: the answer's ``Retry-After``; empty if it has none.
        retry: whether without an answer there may be one next time.
        stopped: it was given up because nobody waits for it any more.
    """

    status: int = 0
    reason: str = ""
    retry_after: str = ""
    retry: bool = True
    stopped: bool = False

    @property
    def ok(self) -> bool:
        """The answer's status is 2xx."""
        return 200 <= self.status < 300

    @property
    def why_not(self) -> str:
        """Why it is not ok, in one line; only the number is the peer's."""
        if not self.status:
            return self.reason
        try:
            phrase = f" {http.HTTPStatus(self.status).phrase}"
        except ValueError:
            phrase = ""
        redirect = "; redirects are not followed" if 300 <= self.status < 400 else ""
        return f"answered {self.status}{phrase}{redirect}"


def shown(url: str, *, with_path: bool) -> str:
    """The URL for people: without user, password, query and fragment, each of which can be a secret.

    Args:
        url: any text.
        with_path: of some services the path is the secret.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "an address that is none"
    if ":" in host:
        host = f"[{host}]"
    path = parts.path if with_path or parts.path in {"", "/"} else "/…"
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def exchange(
    method: str,
    url: str,
    *,
    timeout_s: float,
    stopping: threading.Event,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Exchange:
    """Send a request, wait for its answer's status, and close the connection without reading on.

    It ends within the time, and soon after ``stopping`` is set, whatever the peer does: nothing,
    a byte now and then, or more than anyone asked for. Redirects are not followed. The environment's
    proxies and .netrc are not used. Certificates are checked against the system's authorities, or those of
    $SSL_CERT_FILE.
    Never raises for what the peer does.
    """
    if stopping.is_set():
        return Exchange(reason=STOPPED, stopped=True)
    deadline = time.monotonic() + timeout_s
    attempt = _Attempt(method, url, dict(headers or {}), body, timeout_s)
    # In a thread, because nothing bounds how long a name is resolved, and nothing ends it: so a daemon's.
    thread = threading.Thread(target=attempt.run, name="http", daemon=True)
    thread.start()
    while not attempt.done.is_set() and not stopping.is_set() and (left := deadline - time.monotonic()) > 0:
        attempt.done.wait(min(left, _POLL_S))
    if attempt.done.is_set():
        thread.join(_LEAVE_S)
        return attempt.result
    attempt.give_up()
    thread.join(_LEAVE_S)
    if stopping.is_set():
        return Exchange(reason=STOPPED, stopped=True)
    return Exchange(reason=f"no answer within {timeout_s:.3g} s")


@dataclass(slots=True)
class _Attempt:
    """A request that runs in one thread and can be given up by another."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    timeout_s: float
    result: Exchange = Exchange(reason="the request failed")
    done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _connection: socket.socket | None = None
    _given_up: bool = False

    def run(self) -> None:
        try:
            self.result = self._send()
        except Exception as error:  # noqa: BLE001  # whatever the libraries make of what the peer sends
            self.result = _failure(error)
        finally:
            with self._lock:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            self.done.set()

    def give_up(self) -> None:
        """End the connection; whoever reads from it or writes to it gets an error."""
        with self._lock:
            self._given_up = True
            self._end_connection()

    def _end_connection(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _watch(self, event: str, info: dict[str, Any]) -> None:
        """Take hold of the connection as soon as there is one, and of its reading, TLS or not."""
        if event not in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            return
        stream = info["return_value"]
        with self._lock:
            if self._connection is None:
                # Another descriptor of it: that one the other thread may close, and its number pass on.
                self._connection = socket.socket(fileno=os.dup(stream.get_extra_info("socket").fileno()))
            if self._given_up:
                self._end_connection()
        read = stream.read

        # A connection that was shut down still gives what its peer goes on to send.
        def read_unless_given_up(max_bytes: int, timeout: float | None = None) -> bytes:
            if self._given_up:
                raise TimeoutError
            received: bytes = read(max_bytes, timeout)
            return received

        stream.read = read_unless_given_up

    def _send(self) -> Exchange:
        # Here and not above: a daemon that never sends a request does without it.
        import ssl  # noqa: PLC0415

        import httpx  # noqa: PLC0415

        request = httpx.Request(
            self.method,
            self.url,
            headers={**_HEADERS, **self.headers},
            content=self.body,
            extensions={"timeout": httpx.Timeout(self.timeout_s + _LEAVE_S).as_dict(), "trace": self._watch},
        )
        # The transport, not a client: that one writes whole addresses, with their secrets, into the log.
        # And not httpx's own context: that one trusts its own list, not the system's. Without TLS, one
        # that trusts nobody: reading the system's list takes 20 ms.
        encrypted = request.url.scheme == "https"
        context = ssl.create_default_context() if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with httpx.HTTPTransport(verify=context, trust_env=False) as transport:
            response = transport.handle_request(request)
            try:
                return Exchange(
                    status=response.status_code, retry_after=response.headers.get("retry-after", "")
                )
            finally:
                response.close()


def _failure(error: Exception) -> Exchange:
    """What to say of an error; never its text where the address could be part of it."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    import ssl  # noqa: PLC0415  # as above

    import httpx  # noqa: PLC0415

    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its certificate is not to be trusted: {one_line(cause.verify_message)}"
            return Exchange(reason=reason, retry=False)
        if isinstance(cause, socket.gaierror):
            return Exchange(reason=f"its name can't be resolved: {cause.strerror}")
        if isinstance(cause, ssl.SSLError):
            return Exchange(reason=f"TLS failed: {one_line(cause.reason or 'the connection was closed')}")
        if isinstance(cause, OSError) and cause.errno:
            hint = _NO_NETWORK_HINT if cause.errno in _NO_NETWORK else ""
            return Exchange(reason=f"the connection failed: {cause.strerror}{hint}")
    if isinstance(error, httpx.TimeoutException):
        return Exchange(reason="no answer in time")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return Exchange(reason="closed the connection, or answered with something that is not HTTP")
    if isinstance(
        error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.LocalProtocolError | ValueError
    ):
        return Exchange(reason="its address is none for HTTP", retry=False)
    return Exchange(reason=f"the request failed: {type(error).__name__}")
