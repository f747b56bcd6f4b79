"""What a daemon costs that has nothing to do, for 1 to 10,000 watched checkpoints; how soon it is ready.

And how soon it looks when one of them is written: from the close of the last file to `snapshot.started`.

    make bench ARGS='-k idle'
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from tests.benchmarks.checkpoints import Trainer
from tests.benchmarks.records import keep, rounds
from tests.benchmarks.usage import usage
from tests.pipelines import build
from tests.service import Daemon, configure

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

WINDOW_S: Final = 6.0
SAVES: Final = 30
PUBLISHED_AT_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched.

    Attributes:
        name: in the records.
        what: for the page.
        checkpoints: how many.
        glob: one rule for all of them; else each has its own.
        published: whether each has a release; else all but one are trainings that only began.
    """

    name: str
    what: str
    checkpoints: int
    glob: bool
    published: bool


CASES: Final = (
    Watched("1", "1 rule", 1, glob=False, published=True),
    Watched("100_rules", "100 rules with a schedule each", 100, glob=False, published=True),
    Watched("1000", "1,000 checkpoints of one rule", 1000, glob=True, published=True),
    Watched(
        "10000",
        "10,000 checkpoints of one rule, all but one of trainings that only began",
        10_000,
        glob=True,
        published=False,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_idle(case: Watched, tmp_path: Path) -> None:
    # Thousands of deployment folders are not what is measured: where there is one, they lie in memory
    memory = Path("/dev/shm") if case.checkpoints > 100 and os.path.ismount("/dev/shm") else None  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory) as deploys:
        config, trainer = _prepared(case, tmp_path, deploys)
        _measure(case, config, trainer)


def _measure(case: Watched, config: Path, trainer: Trainer) -> None:
    if case.published:
        with Daemon(config) as daemon:
            daemon.wait_for("release.published", count=case.checkpoints, timeout_s=600)
    ready_s = [_until_ready_s(config) for _ in range(rounds(3) - 1)]
    began = time.perf_counter()
    with Daemon(config) as daemon:
        ready_s.append(time.perf_counter() - began)
        if not case.published:  # it says so once of each
            daemon.wait_for("checkpoint.torn", count=case.checkpoints - 1, timeout_s=300)
        _come_to_rest(daemon)
        at_start = usage(daemon.pid)
        began = time.perf_counter()
        threading.Event().wait(WINDOW_S)  # the measured time itself
        window_s = time.perf_counter() - began
        after = usage(daemon.pid)
        detection_s = [_detected_s(daemon, trainer, number) for number in range(-1, rounds(SAVES))]
        live = usage(daemon.pid)
    cpu = (after.cpu_s - at_start.cpu_s) / window_s
    wakeups = (after.wakeups - at_start.wakeups) / window_s
    keep(
        f"idle_{case.name}",
        {
            "what": case.what,
            "checkpoints": case.checkpoints,
            "window_s": window_s,
            "ready_s": ready_s,
            "cpu_of_a_core": cpu,
            "wakeups_per_s": wakeups,
            "resident_bytes": after.resident_bytes,
            "resident_bytes_after_saves": live.resident_bytes,
            "detection_s": detection_s[1:],
        },
    )
    print(  # noqa: T201  # a measurement is there to be read
        f"\n{case.what}: ready after {statistics.median(ready_s):.2f} s, {cpu:.2%} of a core, "
        f"{wakeups:.1f} wakeups/s, "
        f"{after.resident_bytes / 1e6:.0f} MB, looks after {statistics.median(detection_s) * 1000:.1f} ms"
    )


def _prepared(case: Watched, folder: Path, deploys: str) -> tuple[Path, Trainer]:
    generations = [build("default", folder / f"generation-{n}", generation=n, steps=2) for n in range(2)]
    runs = folder / "runs"
    first = runs / "0/model-best"
    first.parent.mkdir(parents=True)
    shutil.copytree(generations[0], first)
    for number in range(1, case.checkpoints):
        run = runs / str(number)
        run.mkdir()
        if case.published:
            (run / "model-best").symlink_to(
                generations[0]
            )  # a checkpoint each, without so many copies on disk
        else:
            (run / "model-best").mkdir()
            (run / "model-best/meta.json").write_text("{}")
    if case.glob:
        config = configure(folder, source="runs/*/model-best", deploy=f"{deploys}/{{1}}")
    else:
        rules = "".join(
            f'[[watch]]\nname = "r{number}"\nsource = "runs/{number}/model-best"\n'
            f'deploy = "{deploys}/{number}"\nschedule = [{{ every = "1h" }}]\n'
            'verify = { level = "structure" }\n'
            for number in range(1, case.checkpoints)
        )
        config = configure(folder, source="runs/0/model-best", deploy=f"{deploys}/0", rules=rules)
    return config, Trainer(first, generations)


def _until_ready_s(config: Path) -> float:
    began = time.perf_counter()
    with Daemon(config):
        return time.perf_counter() - began


def _come_to_rest(daemon: Daemon) -> None:
    """Wait until it has used next to nothing for some seconds: it looks at all checkpoints when it starts."""
    deadline_s = time.monotonic() + 300
    quiet = 0
    while quiet < 3:
        assert time.monotonic() < deadline_s, "it does not come to rest"
        before = usage(daemon.pid).cpu_s
        threading.Event().wait(1.0)
        quiet = quiet + 1 if usage(daemon.pid).cpu_s - before < 0.02 else 0


def _detected_s(daemon: Daemon, trainer: Trainer, number: int) -> float:
    since = len(daemon.events)
    trainer.write(number)
    written_s = time.time()
    daemon.wait(lambda event: event["event"] in {"release.published", "release.overwrite"}, since=since)
    begun = [event for event in daemon.events[since:] if event["event"] == "snapshot.started"]
    # One that began while it was still being written came to nothing
    return max(0.0, datetime.fromisoformat(begun[-1]["timestamp"]).timestamp() - written_s)
