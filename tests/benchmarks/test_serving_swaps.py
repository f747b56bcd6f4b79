"""What a swap does to the requests that it falls among, against the load that it brings, by itself.

A real uvicorn with the server of docs/examples is asked without a pause from another process. In turn, in
random order, either the other one of two releases becomes live, and is waited for; or the server loads a
model in a thread as a swap does, with ``spacy.load`` and a garbage collection, and throws it away. Times are
of the requests that were answered meanwhile. Beside them, those of requests while nothing else happens.

    make bench ARGS='-k serving'
"""

from __future__ import annotations

import random
import statistics
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.benchmarks.pairs import publish
from tests.benchmarks.records import rounds
from tests.integration.serving.publishing import Publisher
from tests.pipelines import build, texts
from tests.web_server import Load, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

ROUNDS = 15
CONNECTIONS = 2
QUIET_REQUESTS = 200
MOST = 1.5
"""How much longer the 99th percentile of requests may take."""


@dataclass
class Way:
    """Stretches of time in which one thing was done, and how long requests took that ended in them."""

    name: str
    do: Callable[[], None]
    stretches: list[tuple[float, float]] = field(default_factory=list)

    def measure(self) -> None:
        began = time.perf_counter()  # the same clock in all processes
        self.do()
        self.stretches.append((began, time.perf_counter()))

    def took_s(self, times: Sequence[tuple[float, float]]) -> list[float]:
        """How long the requests took that ended in its stretches; `times` are (end, duration), sorted."""
        ends = [end for end, _ in times]
        return [
            took
            for begun, ended in self.stretches
            for _, took in times[bisect_left(ends, begun) : bisect_right(ends, ended)]
        ]

    def row(self, times: Sequence[tuple[float, float]]) -> str:
        """Its line of the table."""
        took = self.took_s(times)
        p50, p99 = (f"{percentile(took, percent) * 1000:.1f}" for percent in (50, 99))
        return f"| {self.name} | {len(took):,} | {p50} | {p99} | {max(took) * 1000:.1f} |"


def percentile(took_s: Sequence[float], percent: int) -> float:
    return statistics.quantiles(took_s, n=100, method="inclusive")[percent - 1]


def test_requests_during_swaps(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "models")
    releases = [publisher.publish(build("default", tmp_path / f"{seed}", seed=seed)) for seed in (0, 1)]
    asked = [texts()[0], texts()[3], texts()[4]]
    with (
        Server(publisher.path, app="tests.benchmarks.burning_server:app") as server,
        Load(server.port, asked, connections=CONNECTIONS) as load,
        httpx.Client(timeout=60) as client,
    ):
        load.all_see(releases[1].id)
        releases.reverse()

        def swap() -> None:
            releases.reverse()
            publisher.go_to(releases[0])
            load.all_see(releases[0].id)

        def burn() -> None:
            client.post(f"{server.url}/burn").raise_for_status()

        def wait() -> None:
            until = load.asked + QUIET_REQUESTS
            load.until(lambda: load.asked >= until)

        swaps, burns, quiet = Way("a swap", swap), Way("its load alone", burn), Way("nothing else", wait)
        order = random.Random(0)  # noqa: S311  # an order, not a secret
        for _ in range(rounds(ROUNDS)):
            for way in order.sample([swaps, burns], 2):
                way.measure()
                wait()  # what a swap leaves to be collected is part of it, not of what comes next
            quiet.measure()
        times = sorted(load.end()["took"])
    lines = ["| while | requests | p50, ms | p99, ms | longest, ms |", "|---|---|---|---|---|"]
    lines += [way.row(times) for way in (quiet, burns, swaps)]
    ratio = percentile(swaps.took_s(times), 99) / percentile(burns.took_s(times), 99)
    lines += ["", f"p99 during a swap by p99 during its load: **{ratio:.2f}** ({rounds(ROUNDS)} rounds)"]
    publish("Requests during a swap, against the load that it brings", [], "\n".join(lines))
    assert ratio <= MOST
