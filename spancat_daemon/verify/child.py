"""Examining a release with spaCy in a child process, which may crash, hang or print whatever it likes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from spancat_daemon.passed_on import passed_on
from spancat_daemon.release.staging import Abandoned
from spancat_daemon.verify.pipes import Pipes
from spancat_daemon.verify.verdict import (
    Evaluated,
    Examination,
    Grafted,
    Grafting,
    LoadVerdict,
    Probed,
    Timed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

INSIDE: Final = Path(__file__).with_name("inside")

# The package alone comes in, and only while it is imported: what lies beside it is the daemon's.
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); import inside.__main__ as loader;"
    " del sys.path[0]; loader.main()"
)
_STDERR_LINES: Final = 3
_EXIT_GRACE_S: Final = 5.0  # from a closed pipe to the end of the process, which tells why
_LOOK_S: Final = 0.1  # how often to look whether the answer is still wanted, and what the child has
_MOST_THREADS: Final = 1000  # each is one of the processes that this machine, or this service, can have
_HUNT_S: Final = 5.0

_SET: Final = {
    # One thread: a check must not take the cores from the training it follows.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    # A release is complete on its own: nothing may be fetched to make it load.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
_MARK: Final = "SPANCAT_DAEMON_LOADER"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

Asked = Examination | Grafting

_Fault = Literal["release", "limit", "verifier"]


class LoaderProcess:
    """A running `inside`, in a session of its own; a context manager that kills it, with all it started.

    It answers one request after the other, so it can be kept. After a verdict that says it died or
    didn't answer it is of no more use: `alive` is then False. Not for several threads at once.

    Attributes:
        alive: whether it can be asked.
        asked: how many requests it has answered.
        held_bytes: memory it had before the last one, when it had let go of what came before that.
    """

    def __init__(self, *, python: str = sys.executable, memory_bytes: int | None = None) -> None:
        """Start it, without waiting for it to be ready; raises OSError if that is impossible.

        Args:
            python: interpreter with spaCy ≥ 3.2.2, on Python ≥ 3.8.
            memory_bytes: limit of its memory; None: unlimited.
        """
        self._python = python
        self._memory_bytes = memory_bytes
        self._mark = f"{_MARK}={secrets.token_hex(16)}".encode()
        self._versions: dict[str, Any] | None = None
        # Closed by the kernel when this process ends, however it does; then the kernel ends the child.
        child_end, self._lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = self._start(child_end)
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(child_end)
        self._pipes = Pipes(self._process)
        self.alive = True
        self.asked = 0
        self.held_bytes = 0

    def _start(self, child_end: int) -> subprocess.Popen[bytes]:
        name, _, mark = self._mark.decode().partition("=")
        command = [self._python, "-I", "-B", "-X", "utf8", "-c", _START, str(INSIDE.parent)]
        return subprocess.Popen(
            [*command, str(self._memory_bytes or 0), str(child_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=passed_on() | _SET | {name: mark},
            cwd="/",
            start_new_session=True,
            pass_fds=(child_end,),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(
        self, asked: Asked, *, timeout_s: float, abandoned: Callable[[], bool] = lambda: False
    ) -> LoadVerdict:
        """Examine a release, or make another model of one; crashes, hangs and nonsense are verdicts, too.

        Args:
            asked: what is asked.
            timeout_s: seconds until the child is killed, its start included.
            abandoned: looked at ten times a second: whether the answer is no longer wanted.

        Returns:
            To a `Grafting`, if all is well, a `Grafted`.

        Raises:
            Abandoned: it is no longer wanted; the child is closed.
        """
        begun = time.monotonic()
        if not self.alive:
            return LoadVerdict(ok=False, fault="verifier", reason="the loader has ended")
        verdict = self._converse(asked, begun, timeout_s, abandoned)
        return replace(verdict, total_s=time.monotonic() - begun)

    def rss_bytes(self) -> int:
        """Return the memory it has now; 0 if it has ended."""
        try:
            return _rss_bytes(self._process.pid) if self.alive else 0
        except OSError:
            return 0

    def close(self) -> None:
        """Kill it and everything it started; harmless when it has ended."""
        if not self.alive:
            return
        self.alive = False
        # Before it is waited for: until then its number can't have passed on to another process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _hunt(self._mark)
        self._pipes.close()
        os.close(self._lifeline)

    def _converse(
        self, asked: Asked, begun: float, timeout_s: float, abandoned: Callable[[], bool]
    ) -> LoadVerdict:
        def answer(request: bytes, size: int | None = None) -> bytes | LoadVerdict:
            return self._exchange(request, size, begun, timeout_s, abandoned)

        if self._versions is None:
            ready = self._object(answer(b""))
            if isinstance(ready, LoadVerdict):
                return replace(ready, fault="verifier", reason=f"{self._python}: {ready.reason}")
            if ready.get("ready") is not True:
                self.close()
                why = ready.get("reason")
                reason = (
                    _printable(why) if isinstance(why, str) else ""
                ) or f"{self._python} is not a Python with spaCy"
                return LoadVerdict(ok=False, fault="verifier", reason=reason)
            said = {name: ready.get(name) for name in ("spacy", "thinc", "python", "numpy")}
            self._versions = {
                name: _printable(version) if isinstance(version, str) else ""
                for name, version in said.items()
            }
        found = self._object(answer(_request(asked)))
        if isinstance(found, dict):
            verdict = _parsed(found, self._versions)
            if verdict is None:
                found = self._nonsense()
            else:
                held_bytes = int(found["held_bytes"])
                if isinstance(asked, Grafting) and verdict.ok:
                    verdict = self._with_model(verdict, found.get("frame_bytes"), asked, answer)
                if self.alive:
                    self.asked += 1
                    self.held_bytes = held_bytes
                return replace(verdict, **self._versions)
        return replace(found, **self._versions)

    def _exchange(
        self, request: bytes, size: int | None, begun: float, timeout_s: float, abandoned: Callable[[], bool]
    ) -> bytes | LoadVerdict:
        """Return what it says next, a line or so many bytes, or, it being closed then, that it says none."""
        deadline = begun + timeout_s
        said = None
        while said is None and not self._pipes.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                return self._failed("limit", f"no answer within {timeout_s:g} s")
            said = self._pipes.exchange(request, min(left, _LOOK_S), size)
            request = b""
            if said is None and abandoned():
                self.close()
                raise Abandoned("the examination was given up")
            if said is None and (excess := self._excess()):
                return self._failed("limit", excess)
        return self._bury() if said is None else said

    def _object(self, line: bytes | LoadVerdict) -> dict[str, Any] | LoadVerdict:
        """Return the JSON object in a line."""
        if isinstance(line, LoadVerdict):
            return line
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
        return self._nonsense()

    def _with_model(
        self,
        verdict: LoadVerdict,
        size: object,
        asked: Grafting,
        answer: Callable[[bytes, int], bytes | LoadVerdict],
    ) -> LoadVerdict:
        """Take the model that comes after a verdict."""
        if not isinstance(size, int) or not 0 < size <= asked.most_bytes:
            return self._nonsense()
        model = answer(b"", size)
        if isinstance(model, LoadVerdict):
            return model
        if hashlib.sha256(model).hexdigest() != verdict.model_sha256:
            return self._nonsense()
        return Grafted(**{one.name: getattr(verdict, one.name) for one in fields(verdict)}, model=model)

    def _excess(self) -> str:
        """Say what it has too much of; empty if nothing."""
        if self._memory_bytes is not None and self.rss_bytes() > self._memory_bytes:
            return "it needs more memory than it may have"
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{self._process.pid}/task").stat().st_nlink - 2 > _MOST_THREADS:
                return f"it has more than {_MOST_THREADS} threads"
        return ""

    def _nonsense(self) -> LoadVerdict:
        return self._failed("release", "the loader answered with something that is not a verdict")

    def _failed(self, fault: _Fault, reason: str) -> LoadVerdict:
        self.close()
        return LoadVerdict(ok=False, fault=fault, reason=reason + _last_words(self._pipes.stderr))

    def _bury(self) -> LoadVerdict:
        """Say how it ended, after its answers have."""
        watched = os.pidfd_open(self._process.pid)
        try:
            ended = _wait_for(watched, _EXIT_GRACE_S)
        finally:
            os.close(watched)
        self.close()
        status = self._process.returncode
        if not ended:
            return self._failed("release", "the loader closed its answers without giving one")
        if status >= 0:
            return self._failed("release", f"the loader ended with status {status} before its verdict")
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        if -status == signal.SIGKILL:
            why = "; perhaps memory ran out"
            return self._failed("limit", f"the loader was ended by {name} before its verdict{why}")
        return self._failed("release", f"the loader was ended by {name} before its verdict")


def cannot_run(python: str, error: OSError, total_s: float) -> LoadVerdict:
    """Return the verdict that there is no interpreter to examine with."""
    reason = f"can't run {python}: {error.strerror or error}"
    return LoadVerdict(ok=False, fault="verifier", reason=reason, total_s=total_s)


def _request(asked: Asked) -> bytes:
    found = asdict(asked)
    for subject in (found["subject"], found.get("live")):
        if subject is not None:
            # Resolved once: spaCy opens file after file, and `current` may lead elsewhere in between.
            subject["path"] = os.path.realpath(subject["path"])
    if isinstance(asked, Grafting):
        found = {"subject": found.pop("subject"), "graft": found}
    elif asked.gold is not None:
        found["gold"] = os.path.realpath(asked.gold)
    return json.dumps(found).encode() + b"\n"


def _rss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as pages:  # noqa: PTH123  # ten times a second
        return int(pages.read().split()[1]) * _PAGE_BYTES


def _hunt(mark: bytes) -> None:
    """Kill all processes that were started with a variable in their environment, and what they start.

    That finds those that left the session, and whose parents are gone. Where the loader is forbidden to start
    any there are none. One that was given another environment escapes.
    """
    deadline = time.monotonic() + _HUNT_S
    while time.monotonic() < deadline:
        with contextlib.ExitStack() as opened:
            found = _marked(mark, opened)
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            for process in found:
                _wait_for(process, max(0.0, deadline - time.monotonic()))
        if not found:
            return


def _marked(mark: bytes, opened: contextlib.ExitStack) -> list[int]:
    """Return descriptors of the living processes of that environment, open as long as `opened` is."""
    found = []
    with os.scandir("/proc") as entries:
        numbers = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    for number in numbers:
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if not _has(number, mark):
                continue
            process = os.pidfd_open(number)
            opened.callback(os.close, process)
            # Once more: only now is it certain that the number is this process's.
            if _has(number, mark):
                found.append(process)
    return found


def _has(number: int, mark: bytes) -> bool:
    """Whether a process was started with a variable; one that has ended was not."""
    return mark in Path(f"/proc/{number}/environ").read_bytes().split(b"\0")


def _wait_for(process: int, timeout_s: float) -> bool:
    """Wait for the end of a process, given by a descriptor; returns whether it has come."""
    with selectors.DefaultSelector() as selector:
        selector.register(process, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def _last_words(stderr: bytes | bytearray) -> str:
    """Return the last lines of standard error, for a reason; without control characters."""
    text = bytes(stderr).decode("utf-8", "replace")
    lines = [_printable(line) for line in text.splitlines()]
    said = [line for line in lines if line][-_STDERR_LINES:]
    return f"; it last said: {' / '.join(said)}" if said else ""


def _printable(text: str) -> str:
    """Return what may stand in a log or on a terminal, whoever wrote it: one line, no control characters."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _parsed(found: Mapping[str, Any], versions: Mapping[str, Any]) -> LoadVerdict | None:
    """Return the verdict in an answer, or None if it holds none."""
    try:
        ok, fault = found["ok"] is True, str(found["fault"])
        int(found["held_bytes"])
        threshold = found["threshold"]
        if fault not in ("release", "limit", "verifier") and not ok:
            return None
        return LoadVerdict(
            ok=ok,
            reason=_printable(str(found["reason"])),
            fault="" if ok else fault,  # type: ignore[arg-type]  # looked at above
            **versions,
            labels=tuple(map(str, found["labels"])),
            spans_key=str(found["spans_key"]),
            threshold=None if threshold is None else float(threshold),
            model_sha256=str(found["model_sha256"]),
            warnings=tuple(_printable(str(warning)) for warning in found["warnings"]),
            confined=tuple(map(str, found["confined"])),
            probed=_probed(found["probed"]),
            evaluated=_evaluated(found["evaluated"]),
            live_evaluated=_evaluated(found["live_evaluated"]),
            timed=_timed(found["timed"]),
            live_reason=_printable(str(found["live_reason"])),
            load_s=float(found["load_s"]),
            peak_rss_bytes=int(found["peak_rss_bytes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _probed(found: Mapping[str, Any] | None) -> Probed | None:
    if found is None:
        return None
    failures = tuple(_printable(str(failure)) for failure in found["failures"])
    return Probed(int(found["total"]), int(found["passed"]), int(found["spans"]), failures)


def _evaluated(found: Mapping[str, Any] | None) -> Evaluated | None:
    return None if found is None else Evaluated(int(found["documents"]), dict(found["scores"]))


def _timed(found: Mapping[str, Any] | None) -> Timed | None:
    if found is None:
        return None
    live = found["live_ms"]
    return Timed(int(found["documents"]), float(found["snapshot_ms"]), None if live is None else float(live))
