"""Thousands of saves, stopped, killed or gone on with at every step, and what is published meanwhile.

``python -m tests.faults.torn_rounds stopped|during FOLDER BASE SEED ROUNDS WRITER…`` prints the counts of
each writer as a line of JSON, and fails at the first release that is not what was whole. It is small, so that
forks of it are cheap.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

from spancat_daemon.checkpoint.settle import file_clock_ns
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.release import copying
from spancat_daemon.verify.warm import WarmLoaders
from tests.faults.judge import generation, judge, whole
from tests.faults.torn_peers import Peers
from tests.faults.torn_writers import WRITERS, Generations, digests
from tests.service import configure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spancat_daemon.deploying.deployment import Result
    from spancat_daemon.observe.logs import Logger

_OWN: Final = {"release.json", "model.bin"}
_ROUNDS_A_FOLDER: Final = 250
_PATIENCE_S: Final = 20


class Log:
    """Keeps every event."""

    def __init__(self, events: list[dict[str, Any]] | None = None) -> None:
        self.events = [] if events is None else events

    def bind(self, **_fields: Any) -> Log:
        return Log(self.events)

    def info(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    warning = error = exception = info


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Site:
    """A checkpoint, the deployment that it is taken to, and all that was ever saved there; a context manager.

    Args:
        folder: where both lie; it is there, and empty.
        base: what the generations are made of.
        clock: what a quiet time is told by; None: the real one.
        terms: keys of the rule.
    """

    def __init__(self, folder: Path, base: Path, *, clock: Clock | None = None, **terms: Any) -> None:
        self.source = folder / "runs/model-best"
        self.deploy = folder / "models/products"
        self.generations = Generations(base)
        self.saved: list[dict[str, str]] = []
        self.peers = Peers()
        self.outcomes = Counter[str]()
        self.torn = 0
        self._log = Log()
        self.source.parent.mkdir(parents=True)
        (target,) = targets(load(configure(folder, more="[watch.keep]\nlast = 1", **terms)))
        self._clock = clock
        self._loaders = WarmLoaders(at_most=1)
        self._deployment = Deployment(
            target,
            min_free_bytes=0,
            log=cast("Logger", self._log),
            loaders=self._loaders,
            monotonic=clock or time.monotonic,
        )

    @property
    def clock(self) -> Clock:
        """The one that it was given."""
        assert self._clock is not None
        return self._clock

    def __enter__(self) -> Self:
        self._loaders.__enter__()
        self._deployment.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self._deployment.close()
        self._loaders.__exit__(None, None, None)

    def next(self) -> dict[str, bytes]:
        """The files of a new generation, which is recorded before the first of its bytes is written."""
        files = self.generations[len(self.saved)]
        self.saved.append(digests(files))
        self.peers.knows(self.saved[-1:])
        return files

    def look(self) -> Result:
        """One look; whatever it publishes must have been whole."""
        result = self._deployment.snapshot("change")
        self.outcomes[result.kind or result.status] += 1
        if result.status == "published":
            self.torn += not self._is_whole()
        if result.status in {"failed", "abandoned"}:
            raise AssertionError(f"{result.status}: {result.reason}")
        return result

    def settle(self) -> Result:
        """Look until nothing but a change can help."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while (result := self.look()).kind == "busy":
            assert time.monotonic() < deadline_s, f"it stays busy: {result.reason}"
            if self._clock is not None:
                # A wait that is too short for the number it is added to passes all the same
                now_s = self._clock.now_s
                self._clock.now_s = max(
                    now_s + (result.retry_after_s or 0.0), math.nextafter(now_s, math.inf)
                )
            time.sleep(min(result.retry_after_s or 0.001, 0.005))
        return result

    def must_be_live(self, where: object) -> None:
        """What was saved last, and in peace, is live."""
        result = self.settle()
        found = self.live()
        assert found == self.saved[-1], (
            f"{where}: {result.status} {result.kind} {result.reason}: what was saved is not live"
        )

    def live(self) -> dict[str, str]:
        files = generation((self.deploy / "current").resolve())
        return {path: digest for path, digest in files.items() if path not in _OWN}

    def _is_whole(self) -> bool:
        found = whole((self.deploy / "current").resolve())
        assert not found, found
        return self.live() in self.saved

    def judged(self, *, torn_allowed: bool = False) -> None:
        """Hold the folder against the model of what is allowed."""
        assert torn_allowed or not self.torn, f"{self.torn} releases are no generation that was ever whole"
        found = judge(self.deploy, None if torn_allowed else self.saved, log=self._log.events)
        assert not found, found


def fork_writer(site: Site, writer: str, files: dict[str, bytes], stop: int, number: int) -> int:
    """Write in a process of its own that sends itself a signal after its `stop`-th step."""
    pid = os.fork()
    if pid == 0:
        try:
            for step, _ in enumerate(WRITERS[writer](site.source, files), 1):
                if step == stop:
                    os.kill(os.getpid(), number)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  # reported, then this child ends
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    return pid


def stopped(site: Site, writer: str, chance: random.Random, rounds: int) -> None:
    """Stop, or kill, a writer after one of its steps, each in its turn; look; let it, or another, go on."""
    for _ in WRITERS[writer](site.source, site.next()):
        pass
    site.must_be_live("the first")
    steps = sum(1 for _ in WRITERS[writer](site.source, site.next()))
    site.must_be_live("the second")
    first = chance.randrange(steps)
    for number in range(rounds):
        # 0.382: evenly over all steps however few rounds there are
        stop = 1 + (first + (number if rounds >= steps else int(number * 0.382 * steps))) % steps
        how = signal.SIGSTOP if number % 2 else signal.SIGKILL
        where = f"{writer}, {how.name} after step {stop} of {steps}"
        pid = fork_writer(site, writer, site.next(), stop, how)
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) or os.WIFSIGNALED(status) or status == 0, where
        site.settle()
        site.peers.look(site.source)
        if os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGCONT)
            _, status = os.waitpid(pid, 0)
            assert status == 0, where
        elif os.WIFSIGNALED(status):
            for _ in WRITERS[writer](site.source, site.next()):
                pass
        assert not site.torn, f"{where}: what was published then was never whole"
        site.must_be_live(where)


class Saves:
    """One save after the other, a step at a time."""

    def __init__(self, site: Site, writer: str) -> None:
        self._site = site
        self._writer = writer
        self._steps: Iterator[None] | None = None

    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            if self._steps is None:
                past_this_tick()
                self._steps = WRITERS[self._writer](self._site.source, self._site.next())
            if next(self._steps, self) is self:
                self._steps = None

    def end(self) -> None:
        """Finish the save that is under way, if one is."""
        while self._steps is not None:
            self.go_on(1)


def past_this_tick() -> None:
    """Let the next write have another time than the last: no training saves twice within a tick."""
    now_ns = file_clock_ns()
    while file_clock_ns() == now_ns:
        time.sleep(0.0005)


class Interruptions:
    """Points within a look at which something else happens; a context manager.

    They lie before and after each scan, each opening of a file and each read of one.
    """

    def __init__(self) -> None:
        self.points = 0
        self._at = -1
        self._again = 0
        self._what: Callable[[], None] = lambda: None
        self._before = (Source.scan, Source.open_file, copying.read_at)

    def __enter__(self) -> Self:
        scan, open_file, read_at = self._before
        for place, name, function in (
            (Source, "scan", scan),
            (Source, "open_file", open_file),
            (copying, "read_at", read_at),
        ):
            setattr(place, name, self._pointed(function))
        return self

    def __exit__(self, *_: object) -> None:
        Source.scan, Source.open_file, copying.read_at = self._before  # type: ignore[method-assign]

    def arm(self, at: int, again: int, what: Callable[[], None]) -> None:
        """Let it happen at that point of the next look, and at as many after it."""
        self.points, self._at, self._again, self._what = 0, at, again, what

    def disarm(self) -> None:
        self._at = -1

    def _pointed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._point()
            result = function(*args)
            self._point()
            return result

        return call

    def _point(self) -> None:
        if 0 <= self._at <= self.points <= self._at + self._again:
            self._what()
        self.points += 1


def during(site: Site, writer: str, chance: random.Random, rounds: int) -> None:
    """Let a writer go some steps on while a look is under way: between scan, files, reads and second scan."""
    total = sum(1 for _ in WRITERS[writer](site.source, site.next()))
    site.must_be_live("the first")
    usual = 100
    with Interruptions() as interruptions:
        for _ in range(rounds):
            saves = Saves(site, writer)
            begun = chance.choice([0, total, total + 5, chance.randrange(1, total)])
            saves.go_on(begun)
            # The last file is the one that only the second scan guards
            at = chance.choice([chance.randrange(usual), usual - 1 - chance.randrange(usual // 4)])
            by = chance.choice([1, 1, 2, 3, 7, total, 2 * total])
            again = chance.choice([0, 0, 1, 5])
            where = f"{writer}: {begun} of {total} steps, {by} more at point {at}, and {again} times again"
            if chance.random() < 0.7:
                time.sleep(0.005)  # past the tick of the last write, else nothing is opened
            interruptions.arm(at, again, lambda by=by, saves=saves: saves.go_on(by))  # type: ignore[misc]
            site.look()
            interruptions.disarm()
            assert not site.torn, f"{where}: what was published then was never whole"
            _peers_look(site, saves, chance.randrange(18), by)
            saves.end()
            interruptions.arm(1 << 30, 0, lambda: None)
            site.must_be_live(where)
            usual = max(usual, interruptions.points)
            site.outcomes["points"] = usual


def _peers_look(site: Site, saves: Saves, at: int, by: int) -> None:
    files = iter(range(1 << 30))
    site.peers.look(site.source, lambda: saves.go_on(by) if next(files) == at else None)


def play(kind: str, folder: Path, base: Path, writer: str, seed: int, rounds: int) -> dict[str, Any]:
    """Play that many rounds, half of them with each kind of swap, and return what was counted."""
    totals, peers = Counter[str](), Counter[str]()
    chance = random.Random(seed)  # noqa: S311  # moments, not secrets
    parts = 2 * -(-rounds // (2 * _ROUNDS_A_FOLDER))
    for part in range(parts):
        place = folder / f"{part}"
        place.mkdir(parents=True)
        now = rounds * (part + 1) // parts - rounds * part // parts
        with Site(place, base, writer="spacy", swap="exchange" if part % 2 else "symlink") as site:
            (stopped if kind == "stopped" else during)(site, writer, chance, now)
        site.judged()
        totals.update(site.outcomes)
        totals.update({"saved": len(site.saved)})
        peers.update(site.peers.counts())
        shutil.rmtree(place)
    return {"rounds": rounds, "outcomes": totals, "peers": peers}


if __name__ == "__main__":
    a_kind, a_folder, a_base, a_seed, the_rounds, *the_writers = sys.argv[1:]
    for each in the_writers:
        told = play(a_kind, Path(a_folder), Path(a_base), each, int(a_seed), int(the_rounds))
        sys.stdout.write(json.dumps({"writer": each, **told}) + "\n")
