"""Copies that other programs make of a checkpoint, stopped or killed at each call, and what is taken.

How much time passes while one is stopped is up to who drives it: `Clock` is what a quiet time is told by.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from tests.faults.strace_calls import Fault, kills, recorded, recording
from tests.faults.torn_rounds import Clock, Site
from tests.faults.torn_writers import save
from tests.service import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.strace_calls import Call

SETTLE_S: Final = 2.0

How = Literal["order", "shorter", "longer"]
"""What is relied on: the order of times, or a quiet time that a stop is shorter, or longer, than."""


@dataclass(frozen=True, slots=True)
class Copier:
    """A program.

    Attributes:
        command: what is called, followed by where it copies from, and to.
        fresh: whether the older copy is removed first.
    """

    command: tuple[str, ...]
    fresh: bool = False


# "-I", as rsync takes a file of the same size and second for the same file: it tears copies by itself.
COPIERS: Final = {
    "cp -r": Copier(("cp", "-rT")),
    "cp -a": Copier(("cp", "-aT")),
    "rm -r, then cp -r": Copier(("cp", "-rT"), fresh=True),
    "rm -r, then cp -a": Copier(("cp", "-aT"), fresh=True),
    "rsync -r": Copier(("rsync", "-rI")),
    "rsync -rt": Copier(("rsync", "-rtI")),
    "rsync -rt --delay-updates": Copier(("rsync", "-rtI", "--delay-updates")),
    "rsync -r --inplace": Copier(("rsync", "-rI", "--inplace", "--no-whole-file")),
    "rsync -rt --inplace": Copier(("rsync", "-rtI", "--inplace", "--no-whole-file")),
}


class Copying:
    """A trainer's checkpoint, a copier of it, and a deployment of the copy.

    Args:
        folder: is there, and empty.
        base: what the generations are made of.
        name: which copier.
        how: what is relied on.
    """

    def __init__(self, folder: Path, base: Path, name: str, how: How) -> None:
        self.site = Site(
            folder,
            base,
            clock=Clock(),
            **({"writer": "spacy"} if how == "order" else {"writer": "any", "settle": f"{SETTLE_S}s"}),
        )
        self.rounds = self.torn = 0
        self._copier = COPIERS[name]
        self._how = how
        self._origin = folder / "origin"
        self._log = folder / "strace.log"

    def prepare(self) -> list[Call]:
        """Copy twice, as every round will, and return the calls that it can be stopped at."""
        for _ in range(2):
            self._save()
            self._copy(recording(self._log))
            self.site.must_be_live("a copy in peace")
        threads = {int(line.split(" ", 1)[0]) for line in self._log.read_text().splitlines()}
        calls = [
            call
            for thread in sorted(threads)
            for call in recorded(self._log, self.site.source, thread=thread)
        ]
        return [fault.call for fault in kills(calls)]

    def play(self, call: Call, *, stop: bool) -> None:
        """Stop or kill a copy there, look, and finish it, or another one; that is live then."""
        self.rounds += 1
        fault = Fault(call, "signal=SIGSTOP" if stop else "signal=SIGKILL")
        self._log.unlink()
        self._save()
        process = subprocess.Popen(
            ["strace", "-qq", *fault.options(self._log), *self._command()],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        until(lambda: process.poll() is not None or bool(self._stopped()))
        before = self.site.torn
        self._look()
        self.torn += self.site.torn - before
        self.site.peers.look(self.site.source)
        self._let_go_on(process)
        if process.returncode != 0:  # what it began, another one goes on with
            self._copy([])
        self.site.must_be_live(fault)

    def _look(self) -> None:
        clock = self.site.clock
        if self._how == "shorter":
            self.site.look()
            clock.now_s += SETTLE_S * 0.9
            self.site.look()
        else:
            self.site.settle()

    def _save(self) -> None:
        for _ in save(self._origin, self.site.next()):
            pass

    def _command(self) -> list[str]:
        if self._copier.fresh:
            shutil.rmtree(self.site.source, ignore_errors=True)
        slash = "/" if self._copier.command[0] == "rsync" else ""
        return [*self._copier.command, f"{self._origin}{slash}", f"{self.site.source}{slash}"]

    def _copy(self, recorder: list[str]) -> None:
        traced = ["strace", "-qq", *recorder] if recorder else []
        subprocess.run([*traced, *self._command()], check=True, timeout=120)

    def _stopped(self) -> list[int]:
        """Which of its processes were stopped, as often as they were."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return [int(number) for number in re.findall(r"^(\d+) +--- stopped by SIGSTOP", text, re.MULTILINE)]

    def _let_go_on(self, process: subprocess.Popen[bytes]) -> None:
        gone_on = 0

        def ended() -> bool:
            nonlocal gone_on
            for pid in (stopped := self._stopped())[gone_on:]:
                os.kill(pid, signal.SIGCONT)
            gone_on = len(stopped)
            return process.poll() is not None

        try:
            until(ended)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            process.communicate()
