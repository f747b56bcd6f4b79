"""The server of docs/examples on a real uvicorn, started as its documentation says, and a load on it."""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests import web_load
from tests.documented import DOCS, EXAMPLES, commands
from tests.service import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S: Final = 120.0
_LISTENS = re.compile(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")


class Server:
    """The server, on a port of its own; a context manager, which ends it as a service manager does.

    Args:
        models: the deployment folder.
        workers: how many processes answer.
        app: another application to start in its place, in the same way.
    """

    def __init__(self, models: Path, *, workers: int = 1, app: str = "server:app") -> None:
        # No coverage: it would measure itself
        said = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        self.log: list[str] = []
        self.port = 0
        self._workers = workers
        self._ready = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *_documented(workers, app), "--no-access-log"],
            cwd=EXAMPLES,
            env={**said, "MODELS": str(models), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        if not self._ready.wait(PATIENCE_S) or not self.port:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"the server did not start: {self.log}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """Of the processes that answer."""
        if self._workers == 1:
            return [self._process.pid]
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [
            pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def end(self) -> int:
        """SIGTERM, and how it ended; a log that tells of an error fails."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        wrong = [line for line in self.log if "ERROR" in line or "Traceback" in line]
        assert not wrong, wrong[:5]
        return code

    def _read(self) -> None:
        assert self._process.stderr is not None
        left = self._workers
        with self._process.stderr:
            for line in self._process.stderr:
                self.log.append(line.rstrip())
                if found := _LISTENS.search(line):
                    self.port = int(found[1])
                left -= "Application startup complete" in line
                if self.port and left == 0:
                    self._ready.set()
        self._ready.set()


class Load:
    """Asks a server without a pause, over connections that stay open, from a process of its own.

    Args:
        port: where it listens.
        texts: what to ask, in turn.
        connections: how many ask at once.
    """

    def __init__(self, port: int, texts: list[str], *, connections: int) -> None:
        self.asked = 0
        self.seen: list[list[str]] = [[] for _ in range(connections)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", web_load.__file__, str(port), str(connections), json.dumps(texts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join(PATIENCE_S)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that an answer brings about."""
        while not reached():
            self._take()

    def all_see(self, release: str) -> None:
        """Wait until every connection was answered by a release."""
        self.until(lambda: all(seen and seen[-1] == release for seen in self.seen))

    def end(self) -> dict[str, Any]:
        """Let it come to its end; says what it was answered, and how long each answer took."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        while not isinstance(told := self._take(), dict):
            pass
        assert self._process.wait(PATIENCE_S) == 0
        return told

    def _take(self) -> Any:
        told = self._news.get(timeout=PATIENCE_S)
        assert told is not None, "the load has ended"
        assert "error" not in told, told
        if isinstance(told, list):
            self.asked, connection, release = told
            if release:
                self.seen[connection].append(release)
        return told

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._news.put(json.loads(line))
        self._news.put(None)


def _documented(workers: int, app: str) -> list[str]:
    """The command of docs/serving.md, with another port, and so many workers."""
    one, several = [line for line in commands(DOCS / "serving.md") if " uvicorn " in line]
    setting, *words = shlex.split(one if workers == 1 else several)
    assert setting.startswith("MODELS=")
    words[words.index("server:app")] = app
    words[words.index("--port") + 1] = "0"
    if workers > 1:
        words[words.index("--workers") + 1] = str(workers)
    return words
