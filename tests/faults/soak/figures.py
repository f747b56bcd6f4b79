"""What a soak measures: what the daemon holds over time, and how soon what is written is live."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_EVERY_S = 1.0
_SETTLING_S = 120.0  # some hundred swaps: until then the heap grows to what it keeps
MEASURES: Final = ("rss_bytes", "descriptors", "threads")
JUDGED_FROM_S: Final = 300.0
"""How long daemons must have been watched, once settled, for growth to be judged: warming up is no leak."""
MOST_PER_MINUTE: Final = {"rss_bytes": 1 << 20, "descriptors": 0.5, "threads": 0.2}
MOST_AT_REST: Final = {"rss_bytes": 48 << 20, "descriptors": 3, "threads": 2}


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at a moment.

    Attributes:
        time: since the epoch.
        pid: which daemon.
        rss_bytes: its resident memory.
        descriptors: how many it has open.
        threads: how many it has.
    """

    time: float
    pid: int
    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Latency:
    """How long it took from the end of a checkpoint's writing until it was live; and whether undisturbed."""

    written: float
    seconds: float
    disturbed: bool


def sample(pid: int) -> Sample:
    """Look at a process; raises OSError if there is none."""
    proc = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line)
    if "VmRSS" not in fields:
        raise ProcessLookupError(pid)
    descriptors = len(list((proc / "fd").iterdir()))
    rss_bytes = int(fields["VmRSS"].split()[0]) << 10
    return Sample(time.time(), pid, rss_bytes, descriptors, int(fields["Threads"]))


class Sampler:
    """Looks at whichever daemon there is, every second; a context manager."""

    def __init__(self, pid: Callable[[], int | None]) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(_EVERY_S):
            pid = self._pid()
            try:
                if pid is not None:
                    self.samples.append(sample(pid))
            except (OSError, ValueError):  # it ends just now
                continue


def growth(samples: Iterable[Sample], measure: str) -> tuple[float, float]:
    """What daemons gain in a minute, each in its own life after it settled, and how long they were watched.

    The slope is that of one line through all lives, each moved to its own mean.
    """
    lives: dict[int, list[Sample]] = {}
    for one in samples:
        lives.setdefault(one.pid, []).append(one)
    above = below = watched_s = 0.0
    for life in lives.values():
        settled = [one for one in life if one.time > life[0].time + _SETTLING_S]
        if len(settled) < 2:
            continue
        times = [one.time for one in settled]
        values = [float(getattr(one, measure)) for one in settled]
        mean_time, mean_value = statistics.fmean(times), statistics.fmean(values)
        above += sum((t - mean_time) * (v - mean_value) for t, v in zip(times, values, strict=True))
        below += sum((t - mean_time) ** 2 for t in times)
        watched_s += times[-1] - times[0]
    return (60 * above / below if below else 0.0), watched_s


def leaks(samples: Sequence[Sample], at_rest: Sample, fresh: Sample) -> list[str]:
    """Say what grew: from minute to minute, or in a daemon at rest against one that was just started."""
    found = []
    for measure in MEASURES:
        per_minute, watched_s = growth(samples, measure)
        if watched_s >= JUDGED_FROM_S and per_minute > MOST_PER_MINUTE[measure]:
            found.append(f"{measure} grow by {per_minute:,.2f} a minute, over {watched_s:.0f} s")
        old, new = getattr(at_rest, measure), getattr(fresh, measure)
        if old - new > MOST_AT_REST[measure]:
            found.append(f"{measure} at rest: {old:,}, of a fresh daemon {new:,}")
    return found


def latencies(
    written: Iterable[tuple[str, float]],
    swaps: Iterable[tuple[str, float]],
    faults: Sequence[tuple[float, float]],
) -> list[Latency]:
    """Match what was written with when it was live first, each a content and a moment.

    Args:
        written: the contents of one checkpoint, and when each was whole.
        swaps: the contents that its folder made live, and when.
        faults: from when to when something was wrong.
    """
    first_live: dict[str, float] = {}
    for content, moment in swaps:
        first_live.setdefault(content, moment)
    found = []
    for content, whole in written:
        if (live := first_live.get(content)) is not None and live >= whole:
            disturbed = any(begun < live and whole < ended for begun, ended in faults)
            found.append(Latency(whole, live - whole, disturbed))
    return found


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share of them does not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(samples: Sequence[Sample], found: Sequence[Latency]) -> dict[str, Any]:
    """The figures as JSON."""
    calm = [one.seconds for one in found if not one.disturbed]
    everything = [one.seconds for one in found]
    return {
        "daemons": len({one.pid for one in samples}),
        "growth_per_minute": {measure: round(growth(samples, measure)[0], 3) for measure in MEASURES},
        "growth_is_judged": growth(samples, "threads")[1] >= JUDGED_FROM_S,
        "watched_s": round(growth(samples, "threads")[1], 1),
        "most": {m: max((getattr(one, m) for one in samples), default=0) for m in MEASURES},
        "written_to_live_s": {
            name: {"count": len(values), "p50": percentile(values, 0.5), "p99": percentile(values, 0.99)}
            for name, values in (("undisturbed", calm), ("all", everything))
        },
        "samples": [asdict(one) for one in samples],
    }
