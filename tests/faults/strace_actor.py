"""Does one thing with a deployment folder, in a process of its own that strace holds from the first step on.

``python -m tests.faults.strace_actor`` reads one JSON object a line, and answers each with one. It is small
and has no thread, so that each of thousands of cases is a fork of it and not a Python that starts.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from unittest import mock

from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import syncing
from spancat_daemon.verify.warm import WarmLoaders
from tests.service import configure

if TYPE_CHECKING:
    from spancat_daemon.config.expand import Target
    from spancat_daemon.observe.logs import Logger

_PAGES: Final = 1 << 20
_PR_SET_PTRACER: Final = 0x59616D61
_ANY: Final = ctypes.c_ulong(-1)
_ATTACH_WITHIN_S: Final = 120

Told = dict[str, Any]


class Slate:
    """What a process has to say, kept where neither its death nor a fault of a system call takes it away."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PAGES)

    def begin(self) -> None:
        """Let the one who waits go."""
        self._memory[-1] = 1

    def wait(self) -> None:
        """Return once `begin` was called: without a read, which would be counted among those to be hurt."""
        while not self._memory[-1]:
            time.sleep(0.001)

    def write(self, said: Told) -> None:
        text = json.dumps(said, default=str).encode()
        self._memory[: len(text) + 1] = text + b"\0"

    def read(self) -> Told:
        text = self._memory[:].partition(b"\0")[0]
        said: Told = json.loads(text) if text else {}
        return said


class Log:
    """Keeps every event on the slate the moment it is told, after those that were told before."""

    def __init__(self, slate: Slate, said: Told) -> None:
        self._slate = slate
        self._said = said
        self._bound: Told = {}

    def bind(self, **fields: Any) -> Log:
        bound = Log(self._slate, self._said)
        bound._bound = {**self._bound, **fields}
        return bound

    def info(self, event: str, **fields: Any) -> None:
        self._said["events"].append({"event": event, **self._bound, **fields})
        self._slate.write(self._said)

    warning = error = exception = info

    def has(self, rule: str, history_sha256: str) -> bool:
        return any(
            event.get("rule") == rule and event.get("history_sha256") == history_sha256
            for event in self._said["events"]
        )


def attempt(deployment: Deployment, action: str) -> tuple[str, str]:
    """Do it, as the daemon's workers and its control socket do; return how it ended and why."""
    if action == "publish":
        while (result := deployment.snapshot("manual")).kind == "busy":
            time.sleep(result.retry_after_s or 0.01)
        return result.status, result.reason
    if action == "rollback":
        deployment.rollback(None)
    elif action == "prune":
        deployment.keeping.prune()
    elif action == "pin":
        deployment.keeping.pin("@1")
    else:
        deployment.hold()
        deployment.recover()
    return "done", ""


def act(case: Told, target: Target, slate: Slate) -> None:
    """Try until it ends as it should, in one process, as a daemon goes on after an error."""
    said: Told = {"events": list(case["events"]), "attempts": []}
    log = Log(slate, said)
    slate.write(said)
    with WarmLoaders(at_most=1) as loaders:
        deployment = Deployment(
            target, min_free_bytes=0, log=cast("Logger", log), loaders=loaders, has_logged=log.has
        )
        for _ in range(case["attempts"]):
            try:
                status, reason = attempt(deployment, case["action"])
            except (SpancatDaemonError, OSError) as error:
                status, reason = type(error).__name__, str(error)
            said["attempts"].append([status, reason])
            slate.write(said)
            if status in case["ends"]:
                break
        deployment.close()
    said["closed"] = True
    slate.write(said)


def play(case: Told) -> Told:
    """Fork, let strace take hold of the child, let it act; return what it said and how it ended."""
    folder = Path(case["folder"])
    folder.mkdir(exist_ok=True)
    (target,) = targets(load(configure(folder, more=case["more"], **case["rule"])))
    slate = Slate()
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
            slate.wait()
            act(case, target, slate)
            os._exit(0)
        except BaseException:  # noqa: BLE001  # a bug: said, then this child ends
            slate.write({**slate.read(), "bug": traceback.format_exc()})
            os._exit(1)
    tracer = _attach(case["strace"], pid) if case.get("strace") else None
    slate.begin()
    status = os.waitpid(pid, 0)[1]
    if tracer is not None:
        tracer.communicate(timeout=_ATTACH_WITHIN_S)
    return {**slate.read(), "status": os.waitstatus_to_exitcode(status)}


def _attach(options: list[str], pid: int) -> subprocess.Popen[str]:
    tracer = subprocess.Popen(["strace", *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise RuntimeError(line + tracer.communicate(timeout=_ATTACH_WITHIN_S)[1])
    return tracer


def main() -> None:
    # One after the other, as on btrfs: calls of several threads could not be counted, nor hurt one by one
    with mock.patch.object(syncing, "file_system_type", return_value=syncing._BTRFS):
        for line in sys.stdin:
            try:
                answer = play(json.loads(line))
            except RuntimeError as error:
                answer = {"untraceable": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
