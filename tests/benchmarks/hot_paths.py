"""One hot path, done a number of times in a process of its own, whose instructions can be counted.

Its arguments: NAME TIMES FOLDER [CHECKPOINT].
"""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spancat_daemon.checkpoint.configuration import parse_config
from spancat_daemon.checkpoint.settle import examine, file_clock_ns
from spancat_daemon.checkpoint.spool import open_checkpoint
from spancat_daemon.config.expand import Target
from spancat_daemon.config.model import Keep, LogSettings, Verify, Watch
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.observe.logs import configure, get_logger
from spancat_daemon.release.retention import decide
from spancat_daemon.verify.warm import WarmLoaders
from tests.benchmarks.many import Fleeting, releases
from tests.integration.release.fakes import Bench

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASES: Final = 300


def scan(times: int, _folder: Path, checkpoint: Path) -> None:
    """The proof that a checkpoint is settled."""
    for _ in range(times):
        with open_checkpoint(checkpoint, writer="spacy") as source:
            found = examine(
                source, writer="spacy", settle_s=0, now_ns=file_clock_ns, previous=None, unchanged_s=None
            )
        assert not hasattr(found, "reason"), found


def configuration(times: int, _folder: Path, checkpoint: Path) -> None:
    """Reading a config.cfg that was not read before."""
    text = (checkpoint / "config.cfg").read_bytes()
    for number in range(times):
        assert parse_config(text + b"\n# %d\n" % number)["nlp"]


def unchanged(times: int, folder: Path, checkpoint: Path) -> None:
    """A look at a checkpoint that is live already."""
    watch = Watch(
        name="bench",
        source=str(checkpoint),
        deploy=str(folder),
        verify=Verify(level="none"),
        keep=Keep(last=0),
    )
    target = Target(rule="bench", watch=watch, source=checkpoint, deploy=folder)
    with (
        WarmLoaders(at_most=1) as loaders,
        Deployment(target, min_free_bytes=0, log=get_logger(), loaders=loaders) as held,
    ):
        assert held.snapshot("startup").status == "published"
        for _ in range(times):
            assert held.snapshot("change").status == "unchanged"


def swap(times: int, folder: Path, _checkpoint: Path) -> None:
    """A sealed stage that goes live."""
    bench = Bench.at(folder)
    for number in range(times):
        bench.publish(durability=Fleeting(), model=b"%d" % number)


def retention(times: int, folder: Path, _checkpoint: Path) -> None:
    """The decision which of three hundred releases stay."""
    found = releases(folder, RELEASES).outline().releases
    keep = Keep(last=5, within=86400, daily=7, best=3)
    for _ in range(times):
        verdicts = decide(
            found,
            keep,
            live_id=found[0].id,
            previous_id=found[1].id,
            pinned=frozenset(),
            leased=frozenset(),
            now=datetime.now(UTC),
        )
        assert len(verdicts) == RELEASES


def event(times: int, _folder: Path, _checkpoint: Path) -> None:
    """A line of the log."""
    log = get_logger().bind(rule="products")
    for number in range(times):
        log.info("release.overwrite", release="000042-20261122T113045Z-3f2a9c1b", bytes=number, forced=False)


PATHS: Final[dict[str, Callable[[int, Path, Path], None]]] = {
    path.__name__: path for path in (scan, configuration, unchanged, swap, retention, event)
}


def main() -> None:
    name, count, *places = sys.argv[1:]
    output = configure(LogSettings(format="json"), stream=io.TextIOWrapper(io.BytesIO()))
    try:
        PATHS[name](int(count), *(Path(place) for place in places))
    finally:
        output.close()
