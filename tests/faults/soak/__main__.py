"""Soaks the whole system in faults and judges what is left: see `main`.

``make soak MINUTES=10``, or ``python -m tests.faults.soak --minutes 10 --seed 7 --output FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.release.threads import IDLE_S
from tests.faults.beside import children
from tests.faults.judge import commits
from tests.service import until

from . import figures, plot
from .actors import Actors
from .faults import FAULTS, Fault, Missed, lacks
from .place import Place
from .users import Users
from .verdict import Spooled, events, judge_all, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .figures import Latency, Sample
    from .verdict import Event, Found

_SOURCES: Final = {"change", "signal", "schedule", "startup"}
_SPOOL_LOOKS_S: Final = 1.0
_CALM_SHARE: Final = 0.35
"""Of the time, at the end of it, in which the daemon is left alive, to see what it gathers."""


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault that was done."""

    fault: Fault
    begun: float
    ended: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one soak; its figures, plot and logs go to a folder.

    Returns:
        Exit status: 0 if all that is promised held, 1 if not; the folder of the soak is then kept.
    """
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="which faults, in which order")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two faults, on average")
    parser.add_argument("--light", action="store_true", help="without the training, and without loaders")
    parser.add_argument("--output", type=Path, default=None, help="default: .soak/TIME-SEED")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    output = chosen.output or Path(".soak") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{seed}"
    output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing stays behind
    _say(f"soak: {chosen.minutes:g} minutes, seed {seed}, results in {output}")
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    passed = False
    try:
        passed = Soak(work, seed=seed, minutes=chosen.minutes, every_s=chosen.every, light=chosen.light).run(
            output
        )
    finally:
        if passed:
            shutil.rmtree(work)
        else:
            _say(f"soak: FAILED; all it worked on is kept in {work}; again with --seed {seed}")
    return 0 if passed else 1


class Soak:
    """One soak, from its first checkpoint to its verdict."""

    def __init__(self, work: Path, *, seed: int, minutes: float, every_s: float, light: bool) -> None:
        self._work = work
        self._seed = seed
        self._lasts_s = 60 * minutes
        self._every_s = every_s
        self._light = light
        self._happened: list[Happened] = []
        self._missed: Counter[str] = Counter()
        self._violations: list[str] = []

    def run(self, output: Path) -> bool:
        """Whether all that is promised held; writes the results to a folder."""
        began = time.time()
        with Place(self._work, light=self._light) as place, Actors(place) as actors:
            spooled = Spooled(place.folder / "training/output/spool")
            with figures.Sampler(lambda: actors.daemon.pid) as sampler:
                actors.start()
                if actors.daemon.pid is None:
                    raise SystemExit((place.folder / "daemon.err").read_text())
                _until_all_live(actors)
                with Users(actors, self._seed) as users:
                    self._soak(actors, spooled)
                at_rest, fresh = _rest(actors, spooled)
            log = self._log(place)
            found = judge_all(actors, spooled, log)
            found.violations[:0] = self._violations
            found.violations += figures.leaks(sampler.samples, at_rest, fresh)
            swaps = {rule.name: _swaps(place, rule.deploy) for rule in place.rules}
            latencies = list(self._latencies(place))
            for path in [*place.logs(), place.folder / "daemon.err"]:
                shutil.copy(path, output)
        self._write(output, began, sampler.samples, latencies, swaps, users, found, (at_rest, fresh))
        return not found.violations

    def _soak(self, actors: Actors, spooled: Spooled) -> None:
        possible = []
        for fault in FAULTS:
            if why := lacks(fault, actors.place):
                _say(f"soak: not tried, as {why}: {fault.what}")
            else:
                possible.append(fault)
        gentle = [fault for fault in possible if not fault.ends_daemon]
        chance = random.Random(self._seed)  # noqa: S311  # which faults, not secrets
        began = time.monotonic()
        pause = threading.Event()
        while (passed_s := time.monotonic() - began) < self._lasts_s:
            drawn = possible if passed_s < (1 - _CALM_SHARE) * self._lasts_s else gentle
            # One number a fault, so that the same seed draws the same faults however long each takes
            own = random.Random(chance.getrandbits(64))  # noqa: S311  # as above
            (fault,) = own.choices(drawn, [fault.weight for fault in drawn])
            self._wait(pause, own.expovariate(1 / self._every_s), spooled)
            self._do(fault, actors, own)
            actors.start_training()

    def _wait(self, pause: threading.Event, seconds: float, spooled: Spooled) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            spooled.look()
            pause.wait(min(left, _SPOOL_LOOKS_S))
        spooled.look()

    def _do(self, fault: Fault, actors: Actors, chance: random.Random) -> None:
        begun = time.time()
        try:
            violations = fault.do(actors, chance)
        except Missed:
            self._missed[fault.what] += 1
            return
        self._happened.append(Happened(fault, begun, time.time()))
        if actors.daemon.pid is None:
            violations = [*violations, "the daemon is gone"]
            actors.daemon.start()
        for violation in violations:
            _say(f"soak: {fault.what}: {violation}")
        self._violations += [f"{fault.what}: {violation}" for violation in violations]

    def _log(self, place: Place) -> list[Event]:
        try:
            return list(events(place))
        except ValueError as error:
            self._violations.append(str(error))
            return []

    def _latencies(self, place: Place) -> Iterator[Latency]:
        """Of the checkpoints whose whole content is released, and whose end of writing is known."""
        wrong = [(one.begun, one.ended) for one in self._happened]
        for rule in place.rules:
            if rule.writer == "rewritten" and rule.contents == "pipeline":
                whole = [
                    (line["content"], line["written"]) for line in written(place, rule) if "written" in line
                ]
                swaps = [
                    (line["content_sha256"], _moment(line["time"]))
                    for line in commits(place.deploy(rule))
                    if line["trigger"] in _SOURCES
                ]
                yield from figures.latencies(whole, swaps, wrong)

    def _write(
        self,
        output: Path,
        began: float,
        samples: Sequence[Sample],
        latencies: Sequence[Latency],
        swaps: dict[str, list[float]],
        users: Users,
        found: Found,
        rested: tuple[Sample, Sample],
    ) -> None:
        counted = Counter(one.fault.what for one in self._happened)
        measured = figures.summary(samples, latencies)
        told: dict[str, Any] = {
            "seed": self._seed,
            "minutes": self._lasts_s / 60,
            "passed": not found.violations,
            "violations": found.violations,
            "swaps": {name: len(moments) for name, moments in swaps.items()},
            "faults": dict(counted.most_common()),
            "missed": dict(self._missed),
            "orders": dict(users.done.most_common()),
            "orders_refused": users.refused,
            "reads": found.reads,
            "releases_read": found.read_releases,
            "at_rest": {m: [getattr(one, m) for one in rested] for m in figures.MEASURES},
            **measured,
            "plan": [
                {
                    "what": one.fault.what,
                    "begun": one.begun,
                    "ended": one.ended,
                    "ends_daemon": one.fault.ends_daemon,
                }
                for one in self._happened
            ],
        }
        (output / "figures.json").write_text(json.dumps(told, indent=1))
        title = (
            f"{self._lasts_s / 60:g} minutes, seed {self._seed}: {sum(map(len, swaps.values())):,} swaps, "
        )
        title += (
            f"{sum(counted.values()):,} faults, {found.reads:,} reads, {len(found.violations)} violations"
        )
        plot.draw(
            output / "soak.svg",
            title=title,
            began=began,
            samples=samples,
            swaps=swaps,
            faults=told["plan"],
            found=latencies,
        )
        shown = {key: value for key, value in told.items() if key not in {"samples", "plan", "violations"}}
        _say(json.dumps(shown, indent=1))
        for violation in found.violations:
            _say(f"soak: VIOLATION: {violation}")
        _say(f"soak: {title}")


def _until_all_live(actors: Actors) -> None:
    folders = [actors.place.deploy(rule) for rule in actors.place.rules]
    until(
        lambda: all((folder / "current").exists() for folder in folders),
        timeout_s=120,
        what=f"nothing is live in some of {folders}",
    )


def _rest(actors: Actors, spooled: Spooled) -> tuple[Sample, Sample]:
    """Let everything come to rest, and look at the daemon then, and at one that was just started."""
    actors.finish()
    spooled.look()
    actors.place.configure(0, scheduled=False)
    actors.daemon.control.call("POST", "/v1/reload")
    found: list[Sample] = []
    quiet = _Quiet()
    for _ in range(2):
        until(
            lambda: quiet.lasts(actors.daemon.idle() and not children(actors.daemon.pid or 0)),
            timeout_s=180,
            what="the daemon finds no rest",
        )
        found.append(figures.sample(actors.daemon.pid or 0))
        actors.daemon.stop()
        if len(found) < 2:
            actors.daemon.start()
    for reader in actors.readers:
        reader.kill()
    before, after = found
    return before, after


class _Quiet:
    """Whether something holds for longer than the daemon takes to notice a change, and its threads to end."""

    _LONG_S = IDLE_S + 1.0

    def __init__(self) -> None:
        self._since: float | None = None

    def lasts(self, holds: bool) -> bool:
        if not holds:
            self._since = None
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since < self._LONG_S:
            return False
        self._since = None
        return True


def _swaps(place: Place, deploy: str) -> list[float]:
    return [_moment(line["time"]) for line in commits(place.folder / deploy)]


def _moment(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
