"""Paired measurements: ways of doing the same, in turn, so that what else the machine does hits them all."""

from __future__ import annotations

import random
import re
import resource
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.records import keep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


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


@dataclass(slots=True)
class Way:
    """What each round of one way took.

    Attributes:
        seconds: on the clock.
        cpu_s: of this process and those that it started, their work for it in the kernel included.
        written_bytes: what they gave the kernel to be written, or zero where it does not tell.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    written_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pair:
    """What a paired measurement found.

    Attributes:
        what: its name.
        ours: of the first way.
        theirs: of the second.
        ratio: median of the rounds' ratios, the first way's time by the second's.
        rounds: how many there were.
        raw: of both ways, round by round.
    """

    what: str
    ours: Timing
    theirs: Timing
    ratio: float
    rounds: int
    raw: Mapping[str, Any] = field(default_factory=dict)


def interleave(
    ways: Mapping[str, Callable[[], object]],
    *,
    prepare: Callable[[int], None],
    rounds: int,
    warm_up: int = 1,
) -> dict[str, Way]:
    """Do every way in each round, in random order, each after its own preparation.

    Args:
        ways: by name.
        prepare: called before each of them, with the number of the round; not measured.
        rounds: how many count.
        warm_up: how many come before that don't.
    """
    order = random.Random(0)  # noqa: S311  # an order, not a secret
    found = {name: Way() for name in ways}
    for number in range(-warm_up, rounds):
        for name in order.sample(list(ways), len(ways)):
            prepare(number)
            cpu_s, written = _cpu_s(), _written_bytes()
            began = time.perf_counter()
            ways[name]()
            took = time.perf_counter() - began
            if number >= 0:
                found[name].seconds.append(took)
                found[name].cpu_s.append(_cpu_s() - cpu_s)
                found[name].written_bytes.append(_written_bytes() - written)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def measure(
    what: str,
    *,
    prepare: Callable[[int], None],
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    warm_up: int = 2,
) -> Pair:
    """Do two ways as `interleave` does."""
    found = interleave({"ours": ours, "theirs": theirs}, prepare=prepare, rounds=rounds, warm_up=warm_up)
    return pair(what, found["ours"], found["theirs"])


def pair(what: str, ours: Way, theirs: Way) -> Pair:
    """The two of them side by side."""
    return Pair(
        what,
        Timing.of(ours.seconds),
        Timing.of(theirs.seconds),
        ratio(ours.seconds, theirs.seconds),
        len(ours.seconds),
        {"ours": asdict(ours), "theirs": asdict(theirs)},
    )


def table(pairs: Sequence[Pair], *, ours: str, theirs: str) -> str:
    """Return a Markdown table."""
    lines = [
        f"| | {ours}, ms | {theirs}, ms | ratio |",
        "|---|---|---|---|",
        *(f"| {pair.what} | {pair.ours} | {pair.theirs} | **{pair.ratio:.2f}** |" for pair in pairs),
    ]
    return "\n".join(lines)


def publish(name: str, pairs: Sequence[Pair], text: str, **figures: Any) -> None:
    """Print a table, and keep it for the page.

    Args:
        name: its heading.
        pairs: what it was made of.
        text: the table, and what is to be said with it, as Markdown.
        figures: what else is to be kept.
    """
    print(f"\n{name}\n\n{text}\n")  # noqa: T201  # a measurement is there to be read
    file = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60]
    keep(file, {"heading": name, "text": text, "pairs": [asdict(one) for one in pairs], **figures})


def _cpu_s() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _written_bytes() -> int:
    return written_bytes("self")


def written_bytes(pid: int | str) -> int:
    """What a process, and those of its children that have ended, gave the kernel to be written.

    See proc_pid_io(5): counted when a page becomes dirty; a reflink or hard link writes none.
    """
    try:
        lines = Path(f"/proc/{pid}/io").read_text("ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(": ") for line in lines)
    return int(fields["write_bytes"]) - int(fields["cancelled_write_bytes"])
