"""The real daemon as a process of its own, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from spancat_daemon.daemon.client import ControlClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
Event = dict[str, Any]

PATIENCE_S: Final = 120.0
"""How long is waited for what has to come: as a starved machine may need it; it costs nothing elsewhere."""


def command(*arguments: str | Path) -> list[str]:
    """The program as a user calls it."""
    return [sys.executable, "-m", "spancat_daemon", *map(str, arguments)]


def run(
    *arguments: str | Path,
    config: Path,
    timeout_s: float = PATIENCE_S,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    return subprocess.run(
        command("-c", config, *arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=config.parent,
        env={**os.environ, **(environ or {}), "PYTHONPATH": str(ROOT)},
    )


class Daemon:
    """``spancat-daemon run`` on a configuration file; every line it logs is kept in `events`."""

    def __init__(
        self, config: Path, *, environ: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        self.config = config
        self._within = within  # a program that becomes it, such as unshare
        self.events: list[Event] = []
        self._environ = {**os.environ, **(environ or {}), "PYTHONPATH": str(ROOT)}
        self._news = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            if kind is None:
                assert self.stop() == 0
            else:
                self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, ready: bool = True) -> Self:
        self._process = subprocess.Popen(
            [*self._within, *command("-c", self.config, "run")],
            stdout=subprocess.PIPE,
            stderr=None,
            cwd=self.config.parent,
            env=self._environ,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if ready:
            began = len(self.events)
            self.wait(lambda event: event["event"] == "daemon.ready", since=began)
        return self

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._news:
                    self.events.append(json.loads(line))
                    self._news.notify_all()

    def wait(
        self,
        wanted: Callable[[Event], bool],
        *,
        since: int = 0,
        count: int = 1,
        timeout_s: float = PATIENCE_S,
    ) -> list[Event]:
        """The first `count` events that are wanted, among those from number `since` on."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                found = [event for event in self.events[since:] if wanted(event)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or (self._process is not None and self._process.poll() is not None):
                    told = "\n".join(map(str, self.events[-15:]))
                    raise AssertionError(
                        f"waited in vain; exit {self._process and self._process.poll()}:\n{told}"
                    )
                self._news.wait(min(left, 0.2))

    def wait_for(
        self, name: str, *, since: int = 0, count: int = 1, timeout_s: float = PATIENCE_S
    ) -> list[Event]:
        """The first `count` events of that name."""
        return self.wait(lambda event: event["event"] == name, since=since, count=count, timeout_s=timeout_s)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """None of its threads moves meanwhile, so that all it does is seen as it is at one moment."""
        self.signal(signal.SIGSTOP)
        try:
            until(lambda: stopped(self.pid), what="the daemon does not stop")
            yield
        finally:
            self.signal(signal.SIGCONT)

    def rests(self) -> None:
        """Waits until it has nothing more to look at: an event is said before its snapshot's turn is over."""
        until(lambda: idle(self.config.parent), what="the daemon does not come to rest")

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM, and how it ended."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(timeout_s)
        self._join()
        return code

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._join()

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(PATIENCE_S)


def idle(folder: Path) -> bool:
    """Whether the daemon of a folder's configuration says that each of its rules is."""
    status = ControlClient(folder / "var/control.sock").call("GET", "/v1/status")
    return {rule["state"] for rule in status["rules"]} == {"idle"}


def stopped(pid: int) -> bool:
    """Whether SIGSTOP has come to all threads of a process: when kill(2) returns it is only on its way."""
    states = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return bool(states) and states <= {"T", "t"}


def until(condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S, what: str = "") -> None:
    """Waits for a condition that no event tells of."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what or "waited in vain"
        pause.wait(0.02)


def configure(
    folder: Path, *, more: str = "", rules: str = "", level: str | None = "structure", **values: Any
) -> Path:
    """Writes a daemon.toml with one rule, ``products``, whose keys are `values`.

    Args:
        folder: where it is written; relative paths are relative to it.
        more: further keys and tables of the rule.
        rules: whole tables after it.
        level: how deep snapshots are verified. The default is to load them, in a second's time; None leaves
            that to it, or to `more`.
        values: keys of the rule besides, or instead of, the usual ones.
    """
    keys = {"source": "runs/model-best", "deploy": "models/products", **values}
    verify = f'verify = {{ level = "{level}" }}' if level else ""
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    config = folder / "daemon.toml"
    config.write_text(
        f"""
[daemon]
state_dir = "var"
min_free = "1MiB"
[[watch]]
name = "products"
{lines}
{verify}
{more}
{rules}
"""
    )
    return config
