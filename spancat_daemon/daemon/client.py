"""A command's end of the control socket."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final

import orjson

from spancat_daemon import errors
from spancat_daemon.daemon import http1
from spancat_daemon.daemon.unix_socket import connect
from spancat_daemon.errors import ExitCode, NoDaemon, SpancatDaemonError, UsageError
from spancat_daemon.observe import jsonline
from spancat_daemon.release.survey import FolderBusy

if TYPE_CHECKING:
    import socket
    from pathlib import Path

_ANSWER_LIMIT_BYTES: Final = 64 << 20
_CONNECT_TIMEOUT_S: Final = 5.0
_KINDS: Final = {
    kind.__name__: kind
    for kind in (
        UsageError,
        NoDaemon,
        errors.Rejected,
        errors.RolledBack,
        errors.Moved,
        errors.Vanished,
        FolderBusy,
        SpancatDaemonError,
    )
}


class NoAnswer(SpancatDaemonError):  # noqa: N818  # a state that callers branch on
    """The daemon went away, or took too long: what it was asked for may have happened, or still happen."""


class ControlClient:
    """Asks the daemon. Each call makes a connection of its own, so one client serves many threads.

    Args:
        path: the control socket.
        timeout_s: how long an answer may take; a snapshot is answered when it is live.
    """

    def __init__(self, path: Path, timeout_s: float = 600) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends a request and returns the daemon's result.

        Raises:
            NoDaemon: nobody listens on the socket.
            NoAnswer: the daemon went away, or did not answer in time.
            SpancatDaemonError: what the daemon refused or failed at, of the class and with the exit code that
                it has there; or the daemon can't be reached.
        """
        with self._connected() as connection:
            try:
                deadline = http1.Deadline(self._timeout_s)
                message = http1.Request(method, path, b"" if body is None else jsonline.dumps(body))
                _send(connection, message, deadline)
                status, answer = http1.read_response(connection, deadline, limit_bytes=_ANSWER_LIMIT_BYTES)
                value = orjson.loads(answer)
            except TimeoutError as error:
                raise NoAnswer(
                    f"the daemon did not answer within {self._timeout_s:g} s",
                    where=str(self.path),
                    hint="what was asked for may still happen: see `spancat-daemon status`",
                ) from error
            except OSError as error:
                raise NoAnswer(
                    "the daemon went away before it answered",
                    where=str(self.path),
                    hint="see its log, and `spancat-daemon status`",
                ) from error
            except (http1.BadMessage, orjson.JSONDecodeError) as error:
                raise self._failed(
                    f"what listens on the control socket is no spancat-daemon: {error}",
                    "look at [daemon] control_socket",
                ) from error
        return self._unpacked(status, value)

    def _connected(self) -> socket.socket:
        try:
            return connect(self.path, min(_CONNECT_TIMEOUT_S, self._timeout_s))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NoDaemon(
                "no daemon answers", where=str(self.path), hint="start it with `spancat-daemon run`"
            ) from error
        except OSError as error:
            hint = "use the daemon's user, or root" if error.errno in {errno.EACCES, errno.EPERM} else ""
            raise self._failed(f"the daemon can't be reached: {error.strerror or error}", hint) from error

    def _unpacked(self, status: int, value: Any) -> Any:
        if status == 200 and isinstance(value, dict) and "result" in value:
            return value["result"]
        described = value.get("error") if isinstance(value, dict) else None
        if not isinstance(described, dict):
            raise self._failed(f"the daemon answered {status} without saying why", "")
        raise _error(described)

    def _failed(self, reason: str, hint: str) -> SpancatDaemonError:
        return SpancatDaemonError(reason, where=str(self.path), hint=hint)


def _send(connection: socket.socket, message: http1.Request, deadline: http1.Deadline) -> None:
    # A server that refuses answers before it has read everything; its answer says why.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        http1.write_request(connection, message, deadline)


def _error(described: dict[str, Any]) -> SpancatDaemonError:
    reason, where, hint = (str(described.get(key) or "") for key in ("reason", "where", "hint"))
    try:
        exit_code = ExitCode(described.get("exit_code", ExitCode.FAILED))
    except ValueError:
        exit_code = ExitCode.FAILED
    by_code = {ExitCode.USAGE: UsageError, ExitCode.NO_DAEMON: NoDaemon}.get(exit_code, SpancatDaemonError)
    error = _KINDS.get(str(described.get("kind")), by_code)(reason, where=where, hint=hint)
    error.exit_code = exit_code
    return error
