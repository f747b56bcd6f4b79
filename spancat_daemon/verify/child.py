"""Loading a release with spaCy in a child process, which may crash, hang or print whatever it likes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

LOADER: Final = Path(__file__).with_name("loader.py")

_MAX_ANSWER_BYTES: Final = 16 << 20  # 100,000 labels of 100 characters
_STDERR_BYTES: Final = 16 << 10
_STDERR_LINES: Final = 3
_EXIT_GRACE_S: Final = 5.0  # from a closed pipe to the end of the process, which tells why

# What an interpreter and its libraries need to be found and to find their data; nothing that may be secret.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "USER")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadVerdict:
    """What came of loading a release.

    Attributes:
        ok: it loaded, and is what the manifest says.
        reason: why not, in one line; empty if ok.
        spacy: version that loaded it; empty if it didn't come to that, as are the following.
        thinc: likewise.
        python: likewise.
        numpy: likewise.
        labels: those of the component, in the order of the model's outputs.
        spans_key: where in ``doc.spans`` the component writes.
        threshold: from which score on it does.
        model_sha256: digest of the loaded component's ``model.to_bytes()``.
        warnings: what Python warned of while it loaded, each once.
        load_s: seconds within the child, without importing spaCy.
        peak_rss_bytes: the most memory the child had.
        total_s: seconds from starting the child to its verdict.
    """

    ok: bool
    reason: str
    spacy: str = ""
    thinc: str = ""
    python: str = ""
    numpy: str = ""
    labels: tuple[str, ...] = ()
    spans_key: str = ""
    threshold: float | None = None
    model_sha256: str = ""
    warnings: tuple[str, ...] = ()
    load_s: float = 0.0
    peak_rss_bytes: int = 0
    total_s: float = 0.0

    @property
    def verifier(self) -> dict[str, str]:
        """The versions that loaded it, as the manifest keeps them."""
        return {"spacy": self.spacy, "thinc": self.thinc, "python": self.python, "numpy": self.numpy}


def load_release(
    path: Path,
    component: str,
    model_sha256: str,
    labels: Sequence[str] | None = None,
    spans_key: str | None = None,
    *,
    python: str = sys.executable,
    timeout_s: float = 120.0,
    memory_bytes: int | None = None,
) -> LoadVerdict:
    """Load a release with ``spacy.load`` in a process of its own, and compare it with its manifest.

    The child, and whatever it started, is gone when this returns. Never raises for what the child does:
    crashes, hangs and nonsense are verdicts.

    Args:
        path: the release's directory; links are followed once, here.
        component: name of the span categorizer.
        model_sha256: what its ``model.to_bytes()`` must hash to.
        labels: what its labels must be, in order; None: not compared.
        spans_key: what its key must be; None: not compared.
        python: interpreter with spaCy ≥ 3.2.2, on Python ≥ 3.8.
        timeout_s: seconds until it is killed.
        memory_bytes: limit of its address space; None: unlimited.
    """
    # Resolved once: spaCy opens file after file, and `current` may lead elsewhere in between.
    real = os.path.realpath(path)
    request: dict[str, Any] = {"path": real, "component": component, "model_sha256": model_sha256}
    if labels is not None:
        request["labels"] = list(labels)
    if spans_key is not None:
        request["spans_key"] = spans_key
    begun = time.monotonic()
    try:
        with LoaderProcess(python=python, memory_bytes=memory_bytes) as loader:
            return loader.ask(request, timeout_s=timeout_s)
    except OSError as error:
        reason = f"can't run {python}: {error.strerror or error}"
        return LoadVerdict(ok=False, reason=reason, total_s=time.monotonic() - begun)


class LoaderProcess:
    """A running `loader.py`, in a session of its own; a context manager that kills it, with its children.

    It answers requests one after the other, so it can be kept. After a verdict that says it died or didn't
    answer it is of no more use: `alive` is then False.
    """

    def __init__(self, *, python: str = sys.executable, memory_bytes: int | None = None) -> None:
        """Start it; raises OSError if that is impossible."""
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _SET
        command = [python, "-I", "-B", "-X", "utf8", str(LOADER)]
        if memory_bytes is not None:
            command += ["--memory-bytes", str(memory_bytes)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        self._pipes = _Pipes(self._process)
        self.alive = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> LoadVerdict:
        """Send a request and wait for its verdict; see `load_release`."""
        if not self.alive:
            return LoadVerdict(ok=False, reason="the loader has ended")
        begun = time.monotonic()
        answer = self._pipes.exchange(json.dumps(request).encode() + b"\n", begun + timeout_s)
        if answer is None and not self._pipes.ended:
            reason = f"did not load within {timeout_s:g} s"
            self.close()
        elif answer is None:
            reason = self._bury()
        else:
            verdict = _parse(answer, time.monotonic() - begun)
            if verdict is not None:
                return verdict
            reason = "the loader answered with something that is not a verdict"
            self.close()
        reason += _last_words(self._pipes.stderr)
        return LoadVerdict(ok=False, reason=reason, total_s=time.monotonic() - begun)

    def close(self) -> None:
        """Kill it and everything in its session's process group; harmless when it has ended."""
        if not self.alive:
            return
        self.alive = False
        # Before it is waited for: until then its number can't have passed on to another process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipes.close()

    def _bury(self) -> str:
        """Return how it ended, after its answers have."""
        watched = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(watched, selectors.EVENT_READ)
                ended = bool(selector.select(_EXIT_GRACE_S))
        finally:
            os.close(watched)
        self.close()
        status = self._process.returncode
        if not ended:
            return "the loader closed its answers without giving one"
        if status >= 0:
            return f"the loader ended with status {status} before its verdict"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = ", perhaps for lack of memory" if -status == signal.SIGKILL else ""
        return f"the loader was ended by {name} before its verdict{why}"


class _Pipes:
    """The child's three streams, read and written without ever blocking on one of them.

    Attributes:
        stderr: the end of what came on standard error.
        ended: there will be no more answers.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101  # all are pipes, see the constructor above
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self._files = (process.stdin, process.stdout, process.stderr)
        self._numbers = tuple(file.fileno() for file in self._files)
        for number in self._numbers:
            os.set_blocking(number, False)
        self._received = bytearray()
        self.stderr = bytearray()
        self.ended = False

    def exchange(self, request: bytes, deadline: float) -> bytes | None:
        """Return the next line of answer; None at the deadline or, with `ended`, at the end of answers."""
        stdin, stdout, stderr = self._numbers
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fd == stdin:
                        request = self._send(stdin, request)
                        if not request:
                            selector.unregister(stdin)
                    elif key.fd == stderr:
                        if not self._listen(stderr):
                            selector.unregister(stderr)
                    elif not self._receive(stdout):
                        self._listen(stderr)
                        return None
                line, end, rest = self._received.partition(b"\n")
                if end or len(line) > _MAX_ANSWER_BYTES:
                    self._received = rest
                    return bytes(line)
        return None

    def close(self) -> None:
        if not self._files[2].closed:
            self._listen(self._numbers[2])
        for file in self._files:
            with contextlib.suppress(BrokenPipeError):
                file.close()

    @staticmethod
    def _send(stdin: int, request: bytes) -> bytes:
        try:
            return request[os.write(stdin, request) :]
        except BlockingIOError:
            return request
        except BrokenPipeError:
            return b""  # it is ending; its other streams tell how

    def _receive(self, stdout: int) -> bool:
        """Take what is there; False when there will be no more."""
        try:
            chunk = os.read(stdout, 1 << 16)
        except BlockingIOError:
            return True
        self._received += chunk
        self.ended = not chunk
        return not self.ended

    def _listen(self, stderr: int) -> bool:
        """Take what is there and keep its end; False when there will be no more."""
        try:
            chunk = os.read(stderr, 1 << 16)
        except BlockingIOError:
            return True
        self.stderr += chunk
        del self.stderr[:-_STDERR_BYTES]
        return bool(chunk)


def _last_words(stderr: bytes | bytearray) -> str:
    """Return the last lines of standard error, for a reason; without control characters."""
    text = bytes(stderr).decode("utf-8", "replace")
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    said = [line for line in lines if line][-_STDERR_LINES:]
    return f"; it last said: {' / '.join(said)}" if said else ""


def _parse(answer: bytes, total_s: float) -> LoadVerdict | None:
    """Return the verdict in a line of answer, or None if it holds none."""
    try:
        found = json.loads(answer)
        threshold = found["threshold"]
        return LoadVerdict(
            ok=found["ok"] is True,
            reason=str(found["reason"]),
            spacy=str(found["spacy"]),
            thinc=str(found["thinc"]),
            python=str(found["python"]),
            numpy=str(found["numpy"]),
            labels=tuple(map(str, found["labels"])),
            spans_key=str(found["spans_key"]),
            threshold=None if threshold is None else float(threshold),
            model_sha256=str(found["model_sha256"]),
            warnings=tuple(map(str, found["warnings"])),
            load_s=float(found["load_s"]),
            peak_rss_bytes=int(found["peak_rss_bytes"]),
            total_s=total_s,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
