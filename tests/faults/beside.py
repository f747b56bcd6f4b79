"""What the tests of two at once need: a feeder of checkpoints, and ways to hold the daemon at a step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.errors import NoDaemon
from tests.faults.judge import Generation, generation, live
from tests.pipelines import build
from tests.service import PATIENCE_S, ROOT, command, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from tests.service import Daemon

_STATES: Final = 3


class Feeder:
    """Puts checkpoints of one training, by turns, where a daemon looks for them."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = folder / "runs/model-best"
        self.checkpoint.parent.mkdir()
        self._states = [build("default", folder / f"state-{n}", generation=n) for n in range(_STATES)]
        self.generations = [generation(state) for state in self._states]
        self._turns = count()

    def put(self) -> Generation:
        """Renames one in that is not the one before; returns what it consists of."""
        turn = next(self._turns) % _STATES
        fresh = self.checkpoint.with_name("next")
        shutil.copytree(self._states[turn], fresh)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        fresh.rename(self.checkpoint)
        return self.generations[turn]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """As a training: one after the other, each by rmtree and copytree, without a pause."""
        ends = threading.Event()

        def write() -> None:
            while not ends.is_set():
                shutil.rmtree(self.checkpoint, ignore_errors=True)
                shutil.copytree(self._states[next(self._turns) % _STATES], self.checkpoint)
                ends.wait(0.1)  # what an evaluation takes

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()


def serves(deploy: Path, wanted: Generation) -> bool:
    """Whether that is live."""
    manifest = live(deploy)
    if manifest is None:
        return False
    files = {path: file["sha256"] for path, file in manifest["files"].items() if path != "model.bin"}
    return files == wanted


def at_rest(daemon: Daemon, violations: Callable[[], list[str]]) -> list[str]:
    """What is wrong with the folders of a daemon that lives, as soon as nothing is under way: then nothing.

    It is held for each look, and goes on after it; what nothing mends is still there when patience ends.
    """
    found: list[str] = []

    def well() -> bool:
        with daemon.frozen():
            found[:] = violations()
        return not found

    with suppress(AssertionError):
        until(well)
    return found


class Mute:
    """A daemon whose standard output goes where the test says; a context manager that stops it."""

    def __init__(self, config: Path, stdout: int) -> None:
        self.control = ControlClient(config.parent / "var/control.sock")
        self.process = subprocess.Popen(
            command("-c", config, "run"),
            stdout=stdout,
            cwd=config.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Self:
        until(self._answers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.process.kill()
            self.process.wait()
            return
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0

    def _answers(self) -> bool:
        assert self.process.poll() is None
        try:
            self.control.call("GET", "/v1/status")
        except NoDaemon:
            return False
        return True

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control.call("GET", "/v1/status")
        return found


def children(pid: int) -> list[int]:
    """Of any thread of a process: the daemon's are its loaders."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except FileNotFoundError:  # the thread has ended
            continue
    return found


def loaders(pid: int) -> list[int]:
    """The children of a daemon that are loaders by now.

    Between fork and exec one is a copy of the daemon: frozen then, it would hold what that has open.
    """
    return [child for child in children(pid) if _is_loader(child)]


def _is_loader(pid: int) -> bool:
    try:
        return b"inside.__main__" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def stopped_loader(pid: int) -> Iterator[int]:
    """Waits for a daemon's loader and stops it; lets it go on at the end if it is still there."""
    until(lambda: loaders(pid) != [], what="no loader")
    (loader,) = loaders(pid)
    descriptor = os.pidfd_open(loader)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
        yield loader
    finally:
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


@contextmanager
def held(pid: int, call: str, number: int, *, path: Path | None, hold_s: float, said: Path) -> Iterator[None]:
    """Lets the thread of a daemon that comes to a system call wait before it.

    Args:
        pid: the daemon's.
        call: name of the system call.
        number: which of that name, among those of one thread.
        path: count those alone that have to do with it.
        hold_s: how long it waits.
        said: where strace writes; has the call in it as soon as it is held.
    """
    on_path = ["-P", str(path)] if path else []
    inject = f"inject={call}:delay_enter={hold_s}s:when={number}"
    process = subprocess.Popen(
        ["strace", "-f", "-o", str(said), *on_path, "-e", f"trace={call}", "-e", inject, "-p", str(pid)],
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert b"attached" in process.stderr.readline()
        yield
    finally:
        process.kill()  # strace(1) may wait for a thread that ended in its delay, whatever it is told
        process.communicate()
