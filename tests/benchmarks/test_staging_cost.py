"""What a checkpoint costs from trained to live, against ``cp -r SRC DST && sync -f DST`` of the same files.

The whole way is measured: recovery, settle, stage, seal, swap, history and log, every byte and name on
stable storage when it ends. Retention comes after that, when the release is live, and is not part of it. The
checkpoints are real pipelines, written in place in spaCy's order before each measurement and flushed, so that
neither way pays for the trainer's own writing. The checkpoint is in the page cache for both, as it is after a
trainer wrote it.

    make bench                                                     # or:
    SPANCAT_DAEMON_BENCH_TABLE=bench.md pytest -m benchmark -s tests/benchmarks
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.checkpoint.settle import CLOCK_REALTIME_COARSE
from spancat_daemon.config.expand import Target
from spancat_daemon.config.model import Keep, LogSettings, Verify, Watch
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.observe.logs import configure, get_logger
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.verify.warm import WarmLoaders
from tests.benchmarks.pairs import Pair, measure, publish, table
from tests.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

MOST_ALL_CHANGED = 2.0
MOST_VECTORS_UNCHANGED = 0.5
SIX_MB = {"width": 96, "rows": 3400}
ROUNDS = 25
KEEP_ALL = Keep(last=0)


class Trainer:
    """Writes one of two generations of a checkpoint into the same directory, as `Language.to_disk` does."""

    def __init__(self, checkpoint: Path, generations: list[Path]) -> None:
        self.checkpoint = checkpoint
        self._generations = [
            sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda f: f.stat().st_mtime_ns)
            for folder in generations
        ]
        self._roots = generations

    def save(self, number: int) -> None:
        """Save the generation that comes `number`-th in turn."""
        turn = number % len(self._roots)
        for file in self._generations[turn]:
            target = self.checkpoint / file.relative_to(self._roots[turn])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        os.sync()
        # Settling waits for the end of the kernel tick of the last write: a few milliseconds of nothing.
        time.sleep(2 * time.clock_getres(CLOCK_REALTIME_COARSE))

    def megabytes(self) -> float:
        """Return the size of the checkpoint."""
        return sum(file.stat().st_size for file in self._generations[0]) / 1e6


def rule(checkpoint: Path, deploy: Path, keep: Keep) -> Target:
    watch = Watch(
        name="bench",
        source=str(checkpoint),
        deploy=str(deploy),
        keep=keep,
        verify=Verify(level="structure"),  # what loading costs is measured by itself
    )
    return Target(rule="bench", watch=watch, source=checkpoint, deploy=deploy)


@contextmanager
def deployment(checkpoint: Path, deploy: Path) -> Iterator[Deployment]:
    output = configure(LogSettings(), stream=io.TextIOWrapper(io.BytesIO()))
    target = rule(checkpoint, deploy, KEEP_ALL)
    try:
        with (
            WarmLoaders(at_most=1) as loaders,
            Deployment(target, min_free_bytes=0, log=get_logger(), loaders=loaders) as held,
        ):
            yield held
    finally:
        output.close()


def snapshot(held: Deployment) -> None:
    result = held.snapshot("change")
    assert result.status == "published", result


def copier(checkpoint: Path, copy: Path) -> Callable[[], object]:
    script = f"cp -r '{checkpoint}' '{copy}' && sync -f '{copy}'"
    return lambda: subprocess.run(["sh", "-c", script], check=True)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied afterwards: the large measurement fills it with gigabytes."""
    yield tmp_path
    for folder in tmp_path.iterdir():
        remove_tree(folder)


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[Pair]]:
    found: list[Pair] = []
    yield found
    if found:
        text = table(found, ours="spancat-daemon, durable and live", theirs="`cp -r` + `sync -f`")
        publish("From a saved checkpoint to a durable, live release", found, text)


def generations(root: Path, variant: str, *, vectors_mb: float = 0.05, width: int, rows: int) -> list[Path]:
    return [
        build(
            variant,
            root / f"generation-{number}",
            generation=number,
            steps=2,
            vectors_mb=vectors_mb,
            width=width,
            rows=rows,
        )
        for number in range(2)
    ]


def test_6_mb_all_written(room: Path, pairs: list[Pair]) -> None:
    """Into an empty folder, so that no file can be linked: the most that a checkpoint of this size costs."""
    trainer = Trainer(room / "model-last", generations(room, "default", **SIX_MB))
    copy, folders = room / "copy", iter(room / f"deploy-{number}" for number in range(1000))
    with ExitStack() as open_now:
        held: list[Deployment] = []

        def prepare(number: int) -> None:
            open_now.close()
            held.clear()
            shutil.rmtree(copy, ignore_errors=True)
            held.append(open_now.enter_context(deployment(trainer.checkpoint, next(folders))))
            trainer.save(number)

        pair = measure(
            f"{trainer.megabytes():.0f} MB, every file written",
            prepare=prepare,
            ours=lambda: snapshot(held[-1]),
            theirs=copier(trainer.checkpoint, copy),
            rounds=ROUNDS,
        )
    pairs.append(pair)
    assert pair.ratio <= MOST_ALL_CHANGED


def compare(what: str, room: Path, trainer: Trainer, rounds: int) -> Pair:
    copy = room / "copy"
    with deployment(trainer.checkpoint, room / "deploy") as held:
        trainer.save(1)
        snapshot(held)

        def prepare(number: int) -> None:
            shutil.rmtree(copy, ignore_errors=True)
            held.retarget(rule(trainer.checkpoint, held.folder.path, Keep()), min_free_bytes=0)
            held.keeping.prune()
            held.retarget(rule(trainer.checkpoint, held.folder.path, KEEP_ALL), min_free_bytes=0)
            trainer.save(number)

        return measure(
            what,
            prepare=prepare,
            ours=lambda: snapshot(held),
            theirs=copier(trainer.checkpoint, copy),
            rounds=rounds,
        )


def test_6_mb_next_evaluation(room: Path, pairs: list[Pair]) -> None:
    """The usual case: the weights changed, what is beside them did not."""
    trainer = Trainer(room / "model-last", generations(room, "default", **SIX_MB))
    pair = compare(f"{trainer.megabytes():.0f} MB, weights changed", room, trainer, ROUNDS)
    pairs.append(pair)
    assert pair.ratio <= MOST_ALL_CHANGED


def test_400_mb_vectors_unchanged(room: Path, pairs: list[Pair]) -> None:
    trainer = Trainer(room / "model-last", generations(room, "vectors", vectors_mb=390, **SIX_MB))
    what = f"{trainer.megabytes():.0f} MB, its 390 MB of vectors unchanged"
    pair = compare(what, room, trainer, 9)
    pairs.append(pair)
    assert pair.ratio <= MOST_VECTORS_UNCHANGED
