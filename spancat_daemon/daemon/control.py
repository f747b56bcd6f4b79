"""The daemon's end of the control socket: HTTP with JSON bodies, for the same user and root only."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson

from spancat_daemon.daemon import http1
from spancat_daemon.daemon.unix_socket import listen, peer_of
from spancat_daemon.errors import ExitCode, SpancatDaemonError, UsageError
from spancat_daemon.observe import jsonline
from spancat_daemon.observe.logs import get_logger

if TYPE_CHECKING:
    from pathlib import Path

Handler = Callable[[str, str, dict[str, Any]], Any]
"""Takes method, path and body; returns JSON's types; raises SpancatDaemonError for what can't be done."""

MOST_CONNECTIONS: Final = 32
REQUEST_TIMEOUT_S: Final = 10.0


class NoSuchRoute(UsageError):  # noqa: N818  # an answer, not a fault
    """A path that the daemon knows nothing under; answered with 404."""


class ControlServer:
    """Answers requests, each in a thread of its own, at most ``MOST_CONNECTIONS`` at once.

    Whatever a client sends, or fails to send or to read, costs it only its own connection: a request must be
    through after ``REQUEST_TIMEOUT_S``, a body holds at most 1 MiB. How long the handler takes is its own
    affair.

    ``{"result": …}`` answers success; ``{"error": {reason, where, hint, exit_code, kind}}`` failure: 400 what
    can't be carried out as asked (UsageError), 409 what failed (SpancatDaemonError), 500 a fault of the
    daemon's own, which is logged as ``control.failed``.
    """

    def __init__(self, path: Path, handler: Handler, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.path = path
        self._handler = handler
        self._request_timeout_s = request_timeout_s
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._wake_reader, self._wake_writer = -1, -1
        self._accepting: threading.Thread | None = None
        self._answering: set[threading.Thread] = set()
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._log = get_logger()

    def start(self) -> None:
        """Makes the socket and answers from now on.

        Raises:
            SpancatDaemonError: another daemon listens there (also this very process), a file that is no
                socket is in the way, or the socket can't be made.
        """
        self._listener = listen(self.path, backlog=MOST_CONNECTIONS)
        self._listener.setblocking(False)  # noqa: FBT003  # its only parameter
        status = self.path.lstat()
        self._identity = (status.st_dev, status.st_ino)
        self._wake_reader, self._wake_writer = os.pipe()
        self._accepting = threading.Thread(
            target=self._accept, args=(self._listener,), name="control", daemon=True
        )
        self._accepting.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Takes no more requests, removes its own socket and waits for the answers under way. Idempotent.

        May be called from a handler; that one's own answer is not waited for.
        """
        listener, self._listener = self._listener, None
        if listener is None:
            return
        os.write(self._wake_writer, b"x")
        if self._accepting is not None:
            self._accepting.join()
        # First gone, then closed: nobody finds a socket that refuses. Only ours: a successor's stays.
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        listener.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        deadline = time.monotonic() + timeout_s
        for thread in list(self._answering):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._wake_reader in ready:
                    return
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:  # the client went away again
                    continue
                except OSError as error:
                    # Out of descriptors: what is waiting stays so, and would be tried again at once.
                    self._log.warning(
                        "control.refused", reason=f"a connection can't be taken: {error.strerror}"
                    )
                    time.sleep(0.2)
                    continue
                self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Gives the connection a thread, when its user is allowed and there is room."""
        try:
            peer = peer_of(connection)
            if peer.uid not in {0, os.geteuid()}:
                reason = "only the daemon's own user and root may give it orders"
                self._log.warning("control.refused", reason=reason, uid=peer.uid, pid=peer.pid)
                self._turn_away(connection, HTTPStatus.FORBIDDEN, reason)
            elif not self._places.acquire(blocking=False):
                self._turn_away(
                    connection, HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once; try again"
                )
            else:
                self._give_thread(connection)
        except Exception:  # noqa: BLE001  # one connection's trouble must not end the answering of all
            connection.close()
            self._log.error("control.failed", exc_info=True)

    def _give_thread(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="control-request", daemon=True)
        self._answering.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self._answering.discard(thread)
            self._places.release()
            self._turn_away(connection, HTTPStatus.SERVICE_UNAVAILABLE, "no thread can be started; try again")

    def _turn_away(self, connection: socket.socket, status: HTTPStatus, reason: str) -> None:
        """Answers without reading; never waits, as it runs in the thread that accepts."""
        with connection, contextlib.suppress(OSError):
            body = _error_body(SpancatDaemonError(reason))
            # The answer fits into the empty buffer of a fresh connection.
            http1.write_response(connection, status, body, http1.Deadline(0.1))
            connection.shutdown(socket.SHUT_WR)
            connection.setblocking(False)  # noqa: FBT003  # its only parameter
            connection.recv(http1.HEAD_LIMIT_BYTES)  # unread input would turn the close into a reset

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except OSError:
            pass  # the client went away, or did not read
        except Exception:  # noqa: BLE001  # a fault of this module's own
            self._log.error("control.failed", exc_info=True)
        finally:
            self._answering.discard(threading.current_thread())
            self._places.release()

    def _answer(self, connection: socket.socket) -> None:
        deadline = http1.Deadline(self._request_timeout_s)
        refused = True
        try:
            request = http1.read_request(connection, deadline)
            refused = False
            status, body = self._respond(request)
        except http1.BadMessage as error:
            status, body = error.status, _error_body(UsageError(str(error)))
        except TimeoutError:
            status, body = HTTPStatus.REQUEST_TIMEOUT, _error_body(UsageError("the request came too slowly"))
        http1.write_response(connection, status, body, http1.Deadline(self._request_timeout_s))
        if refused:
            http1.drain(connection, http1.Deadline(1.0))

    def _respond(self, request: http1.Request) -> tuple[HTTPStatus, bytes]:
        try:
            if request.method not in {"GET", "POST"}:
                return HTTPStatus.METHOD_NOT_ALLOWED, _error_body(
                    UsageError("only GET and POST are understood")
                )
            result = self._handler(request.method, request.path, _parsed(request.body))
            return HTTPStatus.OK, jsonline.dumps({"result": result})
        except NoSuchRoute as error:
            return HTTPStatus.NOT_FOUND, _error_body(error)
        except UsageError as error:
            return HTTPStatus.BAD_REQUEST, _error_body(error)
        except SpancatDaemonError as error:
            return HTTPStatus.CONFLICT, _error_body(error)
        except Exception as error:  # noqa: BLE001  # the daemon's own fault must not take it down
            self._log.error("control.failed", method=request.method, path=request.path, exc_info=True)
            described = SpancatDaemonError(
                f"a fault in the daemon: {type(error).__name__}: {error}", hint="its log tells more"
            )
            return HTTPStatus.INTERNAL_SERVER_ERROR, _error_body(described)


def _parsed(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError("the body is not a JSON object")
    return value


def _error_body(error: SpancatDaemonError) -> bytes:
    described = {
        "reason": error.reason,
        "where": error.where,
        "hint": error.hint,
        "exit_code": int(ExitCode(error.exit_code)),
        "kind": type(error).__name__,
    }
    return jsonline.dumps({"error": described})
