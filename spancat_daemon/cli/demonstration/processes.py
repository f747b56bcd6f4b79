"""The processes of the demonstration: a trainer and a daemon, each ended by its own id whatever happens."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import spancat_daemon
from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from types import TracebackType

# What systemd and the user's own deployment tell a daemon is not meant for the one of the demonstration.
_NOT_FOR_CHILDREN = {
    "CONFIGURATION_DIRECTORY",
    "JOURNAL_STREAM",
    "LOGS_DIRECTORY",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "SPANCAT_DAEMON_CONFIG",
    "STATE_DIRECTORY",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
}
_LAST_LINES = 15


def environment() -> dict[str, str]:
    """The environment that the demonstration's processes run in."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    # They run this very code, however it was found
    ours = str(Path(spancat_daemon.__file__).parent.parent)
    paths = [ours, *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }


class _Process:
    """A process in a session of its own: Ctrl-C reaches only the demonstration, which then ends it."""

    def __init__(self, name: str, arguments: list[str], folder: Path, output: int | Any) -> None:
        self.folder = folder
        self._errors_path = folder / f"{name}.log"
        with self._errors_path.open("wb") as errors:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=errors if output is None else output,
                stderr=errors,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, patience_s: float = 15.0) -> int:
        """Ends the process, at first politely; returns its exit code, minus the number of a signal."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        text = self._errors_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LAST_LINES:])


class Trainer(_Process):
    """A real ``spacy train``; writes ``model-best`` and ``model-last`` into `output`."""

    def __init__(self, folder: Path, output: Path, *, steps: int, evaluations: int) -> None:
        """Starts it."""
        self._scores_path = folder / "training.jsonl"
        self._offset = 0
        arguments = [
            *(
                sys.executable,
                "-m",
                "spacy",
                "train",
                "config.cfg",
                "--code",
                "corpus.py",
                "--output",
                str(output),
            ),
            *(
                "--training.max_steps",
                str(steps),
                "--training.eval_frequency",
                str(max(steps // evaluations, 1)),
            ),
        ]
        super().__init__("trainer", arguments, folder, None)

    def evaluations(self) -> list[dict[str, Any]]:
        """What it has evaluated since this was last called: step, losses, scores."""
        try:
            with self._scores_path.open("rb") as file:
                file.seek(self._offset)
                whole, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines() if line.strip()]

    def ended(self) -> bool:
        """Whether the training is over.

        Raises:
            SpancatDaemonError: it failed.
        """
        code = self.process.poll()
        if code:
            raise SpancatDaemonError(f"spacy train failed (exit code {code})\n{self.last_words()}")
        return code is not None


class Service(_Process):
    """The real daemon; its log comes as events."""

    def __init__(self, folder: Path) -> None:
        """Starts it."""
        super().__init__("daemon", [*program(folder), "run"], folder, subprocess.PIPE)
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="daemon-log", daemon=True)
        self._reader.start()

    def event(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event; None if there is none for so long.

        Raises:
            SpancatDaemonError: the daemon is gone.
        """
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if event is None:
            raise SpancatDaemonError(f"the daemon ended (exit code {self.stop()})\n{self.last_words()}")
        return event

    def stop(self, patience_s: float = 15.0) -> int:
        """Ends the daemon and closes its log."""
        code = super().stop(patience_s)
        self._reader.join(patience_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def _read(self) -> None:
        log = self.process.stdout
        if log is None:  # pragma: no cover  # it is a pipe
            return
        with (self._errors_path.parent / "daemon.jsonl").open("wb") as copy:
            for line in log:
                copy.write(line)
                copy.flush()
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    self._events.put(event)
        self._events.put(None)


def program(folder: Path) -> list[str]:
    """The command line of spancat-daemon for the demonstration's folder."""
    return [sys.executable, "-m", "spancat_daemon", "-c", str(folder / "daemon.toml")]
