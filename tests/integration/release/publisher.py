"""Publishes, and is killed while it does: forked from one small process, so that a kill costs milliseconds.

Run as ``python -m tests.integration.release.publisher COMMAND …`` from the project's root.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.release import durability, lease
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.pruning import prune
from spancat_daemon.release.recovery import Recovered, recover
from spancat_daemon.release.retention import Verdict
from spancat_daemon.release.swap import Kind, make_live
from tests.faults.judge import judge as at_any_moment
from tests.integration.release.fakes import judge, now, publish_next, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHANGING = (
    "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir", "mkdir",
    "fsync", "fdatasync", "write", "pwrite", "ftruncate", "chmod",
)  # fmt: skip
"""Everything in `os` that changes a file system, or makes changes stay; pathlib goes through these too."""

SCENARIOS: dict[str, tuple[tuple[Kind, ...], str, Kind]] = {
    "first release, symlink": ((), "publish", "symlink"),
    "first release, exchange": ((), "publish", "exchange"),
    "symlink": (("symlink", "symlink"), "publish", "symlink"),
    "exchange": (("exchange", "exchange"), "publish", "exchange"),
    "symlink to exchange": (("symlink", "symlink"), "publish", "exchange"),
    "exchange to symlink": (("exchange", "exchange"), "publish", "symlink"),
    "rollback, symlink": (("symlink", "symlink"), "rollback", "symlink"),
    "rollback, exchange": (("exchange", "exchange"), "rollback", "exchange"),
    "rollback, symlink to exchange": (("symlink", "symlink"), "rollback", "exchange"),
    "rollback, exchange to symlink": (("exchange", "exchange"), "rollback", "symlink"),
    "prune": (("symlink", "symlink", "symlink", "symlink"), "prune", "symlink"),
    "prune, exchange": (("exchange", "exchange", "exchange", "exchange"), "prune", "exchange"),
}
"""What was published before, what is done, and how."""


def start(path: Path) -> tuple[DeploymentFolder, History, Recovered]:
    folder = DeploymentFolder(path)
    folder.prepare()
    history = History.open(folder.history_path, clock=now)
    return folder, history, recover(folder, history=history)


def do(folder: DeploymentFolder, history: History, action: str, kind: Kind) -> None:
    if action == "publish":
        publish_next(folder, history, kind=kind)
    elif action == "rollback":
        previous = folder.previous(history=history)
        if previous is not None:
            make_live(
                folder, previous, kind=kind, history=history, details={"rule": "x"}, monotonic=time.monotonic
            )
    else:
        keep = {release.id for release in folder.releases()[:2]}
        verdicts = [Verdict(r, ("kept",) if r.id in keep else ()) for r in folder.releases()]
        prune(folder, verdicts, history=history)


def assert_never_absent(folder: DeploymentFolder) -> None:
    """Without any recovery: once something was committed, ``current`` leads to a whole release."""
    assert at_any_moment(folder.path, recovered=False) == []


def fork(work: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  # reported, then this child ends
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    return pid


def kill_before(point: int) -> None:
    """Let this process die right before its `point`-th changing system call."""
    calls = iter(range(1, 1 << 30))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in CHANGING:
        setattr(os, name, dying(getattr(os, name)))
    durability._rename = dying(durability._rename)
    opening = os.open

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        return (creating if flags & os.O_CREAT else opening)(path, flags, *args, **kwargs)

    creating = dying(opening)
    os.open = open_


def dies(work: Callable[[], Any], point: int) -> bool:
    """Whether `work` gets as far as its `point`-th system call, where it is killed."""

    def killed() -> None:
        kill_before(point)
        work()

    status = os.waitpid(fork(killed), 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed, its message is above"
    return False


def every_point(root: Path, name: str) -> dict[str, Any]:
    """Kill a scenario before each of its system calls, and each recovery before each of its own too."""
    before, action, kind = SCENARIOS[name]
    recoveries, actions = 0, Counter[str]()
    for point in range(1, 1000):
        path = root / f"{point}"
        folder, history, _ = start(path)
        for earlier in before:
            do(folder, history, "publish", earlier)
        history.close()
        live_before = folder.current_state().id
        ids = [release.id for release in folder.releases()]
        must_stay = set(ids[:2] if action == "prune" else ids)

        def work(path: Path = path) -> None:
            folder, history, _ = start(path)
            do(folder, history, action, kind)

        died = dies(work, point)
        assert_never_absent(folder)
        live = folder.current_state().id
        for deeper in range(1, 1000):
            if not dies(lambda path=path: start(path), deeper):  # type: ignore[misc]
                break
            recoveries += 1
            assert_never_absent(folder)
        assert folder.current_state().id == live, "recovery never swaps on its own"
        commits = judge(folder)
        assert len(commits) == len(before) + (live != live_before)
        assert {record.kind for record in commits} <= {"commit"}, "a crash is no change by hand"
        assert must_stay <= {release.id for release in folder.releases()}
        actions.update(record.kind for record in History.reading(folder.history_path).records())
        assert not start(path)[2].actions, "a second recovery finds nothing to do"
        if not died:
            return {"points": point - 1, "recoveries": recoveries, "kinds": actions}
    raise AssertionError("it never ends")


_REPAIRS: Final = {"committed", "aborted", "discarded"}
"""What a recovery does after a kill in the midst of a publish."""


def storm(path: Path, kinds: list[Kind], kills: int, seed: int) -> dict[str, Any]:
    """Kill a publisher at random moments, recover, judge; again and again in the same folder."""
    chance = random.Random(seed)  # noqa: S311  # moments, not secrets
    commits, actions = 0, Counter[str]()

    def work() -> None:
        own = random.Random(os.urandom(8))  # noqa: S311  # as above
        folder, history, _ = start(path)
        while True:
            action = own.choice(["publish", "publish", "publish", "rollback", "prune"])
            do(folder, history, action, own.choice(kinds))

    number = 0
    # On a machine that is slow they go on, ever later, until they have met a publish in its midst.
    while number < kills or (number < 20 * kills and not (actions["emptied"] and actions.keys() & _REPAIRS)):
        number += 1
        pid = fork(work)
        time.sleep(chance.uniform(0, 0.06 * max(1, number / kills)))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status), f"seed {seed}, kill {number}: the publisher failed, see above"
        try:
            folder = DeploymentFolder(path)
            if folder.history_path.exists():
                assert_never_absent(folder)
            folder, history, recovered = start(path)
            actions.update(action.split(" ")[0] for action in recovered.actions)
            actions.update(record.kind for record in recovered.records)
            history.close()
            concluded = judge(folder)
            assert {record.kind for record in concluded} <= {"commit"}, "a crash is no change by hand"
            commits = len(concluded)
        except BaseException as error:
            error.add_note(f"seed {seed}, kill {number}")
            raise
    return {"commits": commits, "actions": actions}


def readers(path: Path, kind: Kind, swaps: int, *, leased: bool) -> dict[str, Any]:
    """Swap under four readers that resolve ``current`` once a pass and check every file's digest.

    Each swap waits for ten passes of theirs. With `leased`, releases are pruned as soon as they may be.
    """
    folder, history, _ = start(path)
    do(folder, history, "publish", kind)
    counters = [mmap.mmap(-1, 8) for _ in range(4)]

    def read(counter: mmap.mmap) -> None:
        passes = 0
        while True:
            if leased:
                with lease.take(folder.current) as held:
                    whole(held.directory_fd)
            else:
                resolved = folder.current if kind == "exchange" else folder.current.resolve(strict=True)
                fd = os.open(resolved, os.O_RDONLY | os.O_DIRECTORY)
                whole(fd)
                os.close(fd)
            passes += 1
            counter[:] = passes.to_bytes(8)

    def total() -> int:
        return sum(int.from_bytes(counter[:]) for counter in counters)

    pids = [fork(lambda counter=counter: read(counter)) for counter in counters]  # type: ignore[misc]
    try:
        for _ in range(swaps):
            do(folder, history, "publish", kind)
            if leased:
                do(folder, history, "prune", kind)
            wanted, deadline = total() + 10, time.monotonic() + 120
            while total() < wanted:
                assert time.monotonic() < deadline, "the readers stand still"
                assert os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is None, "a reader failed, see above"
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return {
        "passes": total(),
        "swaps": swaps,
        "releases": len(folder.releases()),
        "commits": len(judge(folder)),
    }


def _steps() -> Iterator[Any]:
    command, path, *arguments = sys.argv[1:]
    if command == "storm":
        kinds, kills, seed = arguments
        yield storm(Path(path), kinds.split(","), int(kills), int(seed))  # type: ignore[arg-type]
    elif command == "readers":
        kind, swaps, leased = arguments
        yield readers(Path(path), kind, int(swaps), leased=leased == "leased")  # type: ignore[arg-type]
    else:  # every-point
        for name in arguments:
            yield {"name": name} | every_point(Path(path) / name, name)


if __name__ == "__main__":
    for result in _steps():
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
