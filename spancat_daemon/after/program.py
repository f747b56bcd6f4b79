"""Running a program of the administrator's: without a shell, without secrets, no longer than allowed."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from spancat_daemon.after.outcome import STOPPED, Outcome, failed, impossible, one_line, stopped
from spancat_daemon.passed_on import passed_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_POLL_S: Final = 0.1
_KEPT_BYTES: Final = 16 << 10
_KEPT_LINES: Final = 3
_READ_BYTES: Final = 1 << 16
_PIPE_BYTES: Final = 1 << 20
# SIGKILL takes effect at once, unless a program is another user's or stuck on a disk.
_KILL_GRACE_S: Final = 1.0


def run_program(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_s: float, stopping: threading.Event
) -> Outcome:
    """Run a program to its end, or end it.

    It gets ``environment`` and what it needs of the daemon's own, no input, ``/`` as its directory, and a
    session of its own. Its process group is killed when it ends, at the timeout, and when the daemon stops:
    what is to go on belongs into a unit, or into a session of its own (``setsid``). Its output, however
    long, is read; of a program that fails the last lines are the reason.

    Never raises for what the program does.
    """
    if stopping.is_set():
        return stopped(0)
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**passed_on("XDG_RUNTIME_DIR"), **environment},  # for `systemctl --user`
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return impossible(f"can't run {one_line(command[0])}: {reason}")
    with _Running(process) as running:
        try:
            ended_itself = running.wait(deadline, stopping)
        finally:
            status = running.end()
    if ended_itself and status is not None:
        if status == 0:
            return Outcome(ok=True)
        return failed(_how_it_ended(status) + _last_words(running.output))
    given_up = stopping.is_set()
    reason = STOPPED if given_up else f"did not end within {timeout_s:g} s"
    if status is None:
        reason += ", and can't be ended"
    return Outcome(ok=False, reason=reason + _last_words(running.output), stopped=given_up)


class _Running:
    """A program under way, with the end of its output.

    Attributes:
        output: the last of what it wrote, on both streams.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  # a pipe, see above
        self._process = process
        self._pipe = process.stdout
        self.output = bytearray()
        os.set_blocking(self._pipe.fileno(), False)
        # Readable once it has ended: its end counts, not the end of its output, which what it left running
        # in the background may still hold open.
        try:
            self._end = os.pidfd_open(process.pid)
        except OSError:  # no descriptor is left
            process.kill()
            process.wait()
            self._pipe.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        self._pipe.close()

    def wait(self, deadline: float, stopping: threading.Event) -> bool:
        """Whether it ended of itself before the deadline, and nobody gave it up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._end, selectors.EVENT_READ)
            selector.register(self._pipe, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0 and not stopping.is_set():
                for key, _ in selector.select(min(left, _POLL_S)):
                    if key.fd == self._end:
                        return True
                    if not self._listen(_READ_BYTES):
                        selector.unregister(self._pipe)
        return False

    def end(self) -> int | None:
        """Kill what is left of its process group; its status, None if it goes on."""
        # Before it is waited for: until then its number can't have passed on to another group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with selectors.DefaultSelector() as selector:
            selector.register(self._end, selectors.EVENT_READ)
            ended = bool(selector.select(_KILL_GRACE_S))
        self._listen(_PIPE_BYTES)
        if ended:
            return self._process.wait()
        # Whenever it ends, it is not to stay a zombie.
        threading.Thread(target=self._process.wait, name="reaper", daemon=True).start()
        return None

    def _listen(self, most: int) -> bool:
        """Take what is there and keep its end; False when there will be no more."""
        try:
            chunk = os.read(self._pipe.fileno(), most)
        except BlockingIOError:
            return True
        self.output += chunk
        del self.output[:-_KEPT_BYTES]
        return bool(chunk)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _last_words(output: bytearray) -> str:
    lines = map(one_line, bytes(output).decode("utf-8", "replace").splitlines())
    said = [line for line in lines if line][-_KEPT_LINES:]
    return f": {' / '.join(said)}" if said else ""
