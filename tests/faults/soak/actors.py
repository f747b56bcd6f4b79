"""Everything that runs in a soak: the daemon, the training, writers, readers and a saver, each a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Self

from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.errors import SpancatDaemonError
from tests.pipelines import build
from tests.service import ROOT, command, until
from tests.trainer import Trainer

from .place import SAVED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .place import Place, Rule

Status = dict[str, Any]

_RESTS: Final = {"idle", "unsettled", "absent"}
_READERS: Final = (
    ("bytes", "models/best", 0.01),
    ("bytes", "models/last", 0.01),
    ("bytes", "served/alpha", 0.01),
    ("bytes", "small/models", 0.02),
    ("load", "served/beta", 0.3),
    ("hot", "served/alpha", 0.05),
)
# A training never rests; one that shares a machine with everything else does a little.
_UNHURRIED: Final = """
import time

@spacy.registry.callbacks("unhurried.v1")
def unhurried():
    def before_update(nlp, args):
        time.sleep(0.05)
    return before_update
"""
_MORE: Final = """
[training.before_update]
@callbacks = "unhurried.v1"

[training.logger]
@loggers = "spancat_daemon.SnapshotLogger.v1"
every_steps = 10
spool_keep = 300
"""


class Service:
    """The daemon, whose standard output is a pipe that may be left unread for a while.

    Attributes:
        unexpected: what it did that nobody asked for.
    """

    def __init__(self, place: Place) -> None:
        self.control = ControlClient(place.control, timeout_s=60)
        self.unexpected: list[str] = []
        self._place = place
        self._reads = threading.Event()
        self._reads.set()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the daemon that runs; None between two of them."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        with (self._place.folder / "daemon.err").open("ab") as errors:
            self._process = subprocess.Popen(
                command("-c", self._place.config, "run"),
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self._place.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        threading.Thread(target=self._drain, args=(self._process,), daemon=True).start()
        until(lambda: self.status() is not None or self.pid is None, timeout_s=60, what="it does not answer")
        if self.pid is None:
            self.unexpected.append("it ended while it started")

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            self.unexpected.append(f"it had ended by itself, with status {self._process.returncode}")
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """SIGTERM, which it must obey within 15 seconds."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.unexpected.append("it did not stop within 15 s")
            self._process.kill()
            code = self._process.wait(10)
        if code:
            self.unexpected.append(f"it stopped with status {code}")

    def block(self, *, blocked: bool) -> None:
        """Leave its standard output unread, or read it again."""
        if blocked:
            self._reads.clear()
        else:
            self._reads.set()

    def status(self) -> Status | None:
        try:
            found: Status = self.control.call("GET", "/v1/status")
        except SpancatDaemonError:
            return None
        return found

    def idle(self) -> bool:
        """Whether nothing is under way or waiting anywhere."""
        status = self.status()
        if status is None:
            return False
        whole = {rule.name for rule in self._place.rules if rule.writer != "training"}
        return all(
            # A training that was killed leaves half a checkpoint, which stays unsettled
            not rule["waiting"] and rule["state"] in ({"idle"} if rule["rule"] in whole else _RESTS)
            for rule in status["rules"]
        )

    def _drain(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            while self._reads.wait() and os.read(pipe.fileno(), 1 << 16):
                pass


class Actor:
    """A program of this package as a process that may be killed and started again."""

    def __init__(self, module: str, *arguments: str | float | Path, said: Path) -> None:
        self.name = f"{module} {said.stem}"
        self._command = [sys.executable, "-m", f"tests.faults.soak.{module}", *map(str, arguments)]
        self._said = said
        self._process: subprocess.Popen[bytes] | None = None
        self.unexpected: list[str] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def said(self) -> str:
        """The end of what it said on its standard outputs."""
        return self._said.read_text(errors="replace")[-500:]

    def start(self) -> None:
        # It imports for seconds before it can handle SIGTERM, which waits for that: see its `main`
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with self._said.open("ab") as said:
                self._process = subprocess.Popen(
                    self._command,
                    stdout=said,
                    stderr=said,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            self.unexpected.append(f"{self.name} had ended by itself: {self.said()}")
        self._process.kill()
        self._process.wait(10)

    def finish(self) -> None:
        """SIGTERM, and wait for its end, which must be a success."""
        assert self._process is not None
        self._process.terminate()
        if self._process.wait(60):
            self.unexpected.append(f"{self.name} failed: {self.said()}")


class Reader(Actor):
    """A `reader`.

    Attributes:
        report: what it tells.
    """

    def __init__(self, number: int, kind: str, folder: Path, reports: Path, pace_s: float) -> None:
        self.report = reports / f"reader-{number}.jsonl"
        super().__init__(
            "reader", kind, folder, self.report, pace_s, said=reports / f"reader-{number}-{kind}.out"
        )


class Actors:
    """All of them; a context manager that ends whatever still runs."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.daemon = Service(place)
        self.training = Trainer(place.folder / "training", eval_frequency=10, more=_MORE, code=_UNHURRIED)
        base = build("default", place.folder / "base")
        reports = place.reports
        self.writers = [
            Actor("writer", base, 1.0, *self._outputs(name), said=reports / f"writer-{name}.out")
            for name in ("runs", "others")
        ]
        served = {rule.deploy for rule in place.rules}
        self.readers = [
            Reader(number, kind, place.folder / folder, reports, pace_s)
            for number, (kind, folder, pace_s) in enumerate(_READERS)
            if folder in served and not (place.light and kind == "load")
        ]
        (saved,) = (rule for rule in place.rules if rule.deploy == SAVED)
        self.saver = Actor(
            "saver", base, place.deploy(saved), place.journal(saved), 3.0, said=reports / "saver.out"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.block(blocked=False)
        if self.training.running:
            self.training.kill()
        for process in [a._process for a in self.all] + [self.daemon._process]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)

    @property
    def all(self) -> Sequence[Actor]:
        return [*self.writers, *self.readers, self.saver]

    def start(self) -> None:
        for writer in self.writers:
            writer.start()
        self.start_training()
        self.daemon.start()
        for reader in self.readers:
            reader.start()
        self.saver.start()

    def start_training(self) -> None:
        """Start it if it does not run and should."""
        if not self.place.light and not self.training.running:
            self.training.start()

    def finish(self) -> None:
        """Let all but the daemon and the readers come to an end, the writers with whole checkpoints."""
        self.saver.finish()
        if self.training.running:
            self.training.interrupt()
        for writer in self.writers:
            writer.finish()

    def _outputs(self, name: str) -> list[str]:
        mine: list[Rule] = [rule for rule in self.place.rules if rule.source.startswith(f"{name}/")]
        return [f"{self.place.source(rule)}={self.place.journal(rule)}" for rule in mine]
