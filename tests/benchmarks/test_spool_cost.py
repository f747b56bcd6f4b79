"""What snapshots between the evaluations cost a training: its steps with them, against its steps without.

Both are the same training with the same logger around the same other one, saving nothing but step 0 within
what is measured; one of them puts its model into a spool beside. What the training waits for is the copy in
memory; the thread that writes it takes a processor where one is free, and else a part of the training's.

    make bench ARGS='-k spool'
"""

from __future__ import annotations

import shutil
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.pairs import Pair, Timing, publish, table
from tests.benchmarks.records import rounds
from tests.integration.training.running import Watcher, entries, trained, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

STEPS = 60
ROUNDS = 4
MOST = 1.5  # for a snapshot every 10 steps of 10 ms or so; far more often than anybody wants


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[Pair]]:
    found: list[Pair] = []
    yield found
    if found:
        text = table(found, ours="a step, with snapshots", theirs="a step, without")
        publish("What snapshots between evaluations cost a training", found, text)


def step_s(folder: Path, every_steps: int) -> float:
    """Train, and return what a step took on average, the first one not counted."""
    watcher = Watcher()
    begun: list[float] = []
    ended: list[float] = []

    def change(config: Any) -> None:
        config["training"].update(max_steps=STEPS, eval_frequency=10 * STEPS)
        config["training"]["batcher"]["size"] = 20
        tok2vec = config["components"]["tok2vec"]["model"]
        tok2vec["encode"].update(width=96, depth=4)
        tok2vec["embed"].update(rows=[5000, 2500], attrs=["NORM", "SHAPE"])

    def on_step(_info: Any) -> None:
        (begun if len(watcher.steps) == 1 else ended).append(time.perf_counter())

    watcher.on_step = on_step
    done = trained(folder, watcher, {"every_steps": every_steps}, change=change)
    assert done.raised is None
    return (ended[-1] - begun[0]) / STEPS


@pytest.mark.parametrize("every_steps", [10, 50])
def test_steps_with_snapshots(every_steps: int, tmp_path: Path, pairs: list[Pair]) -> None:
    took: dict[int, list[float]] = {every_steps: [], 0: []}
    for number in range(-1, rounds(ROUNDS)):
        for every in [every_steps, 0] if number % 2 else [0, every_steps]:
            shutil.rmtree(tmp_path / "output", ignore_errors=True)
            seconds = step_s(tmp_path / "output", every)
            if number >= 0:
                took[every].append(seconds)
            if every:
                assert whole(entries(tmp_path / "output/spool")[-1])["step"] >= 50
    ratio = statistics.median(a / b for a, b in zip(took[every_steps], took[0], strict=True))
    bytes_each = sum(
        file.stat().st_size for file in (tmp_path / "output/model-last").rglob("*") if file.is_file()
    )
    what = f"{bytes_each / 1e6:.0f} MB, one every {every_steps} steps"
    pairs.append(Pair(what, Timing.of(took[every_steps]), Timing.of(took[0]), ratio, rounds(ROUNDS)))
    assert ratio <= MOST
