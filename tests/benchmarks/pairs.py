"""Paired measurements: two ways of doing the same, in turn, so that what else the machine does hits both."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TABLE = "SPANCAT_DAEMON_BENCH_TABLE"
"""Environment variable: a file for the tables, Markdown; beside it one with ``.json`` for the figures."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds: median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        low, median, high = (cut * 1000 for cut in statistics.quantiles(seconds, n=4, method="inclusive"))
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f}-{self.high:.1f})"


@dataclass(frozen=True, slots=True)
class Pair:
    """What a paired measurement found.

    Attributes:
        what: its name.
        ours: of the first way.
        theirs: of the second.
        ratio: median of the rounds' ratios, the first way's time by the second's.
        rounds: how many there were.
    """

    what: str
    ours: Timing
    theirs: Timing
    ratio: float
    rounds: int


def measure(
    what: str,
    *,
    prepare: Callable[[int], None],
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    warm_up: int = 2,
) -> Pair:
    """Do both ways in each round, in random order, each after its own preparation.

    Args:
        what: the measurement's name.
        prepare: called before each of both, with the number of the round; not measured.
        ours: the first way.
        theirs: the second.
        rounds: how many count.
        warm_up: how many come before that don't.
    """
    order = random.Random(0)  # noqa: S311  # an order, not a secret
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(-warm_up, rounds):
        ways = [("ours", ours), ("theirs", theirs)]
        order.shuffle(ways)
        for name, way in ways:
            prepare(number)
            began = time.perf_counter()
            way()
            took = time.perf_counter() - began
            if number >= 0:
                seconds[name].append(took)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return Pair(
        what, Timing.of(seconds["ours"]), Timing.of(seconds["theirs"]), statistics.median(ratios), rounds
    )


def table(pairs: Sequence[Pair], *, ours: str, theirs: str) -> str:
    """Return a Markdown table."""
    lines = [
        f"| | {ours}, ms | {theirs}, ms | ratio |",
        "|---|---|---|---|",
        *(f"| {pair.what} | {pair.ours} | {pair.theirs} | **{pair.ratio:.2f}** |" for pair in pairs),
    ]
    return "\n".join(lines)


def publish(name: str, pairs: Sequence[Pair], text: str) -> None:
    """Print a table, and write it where ``$SPANCAT_DAEMON_BENCH_TABLE`` says."""
    print(f"\n{name}\n\n{text}\n")  # noqa: T201  # a measurement is there to be read
    if TABLE not in os.environ:
        return
    path = Path(os.environ[TABLE])
    path.write_text(text + "\n")
    figures = {
        "name": name,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "pairs": [asdict(pair) for pair in pairs],
    }
    path.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
