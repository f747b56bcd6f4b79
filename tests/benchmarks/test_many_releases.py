"""What thousands of releases cost: the commands, the decision which of them stay, and the next publish.

The folders hold 10, 1,000 and 10,000 releases of 18 files each. *Cold*: every manifest is read, as by a
command that was just started; *warm*: by a process that has read them before and only sees that they are
untouched.

    make bench ARGS='-k many_releases'
"""

from __future__ import annotations

import gc
import subprocess
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

import pytest

from spancat_daemon.config.expand import Target
from spancat_daemon.config.model import Keep, Verify, Watch
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.retention import decide
from spancat_daemon.release.verdicts import verdicts_on
from tests.benchmarks import many
from tests.benchmarks.checkpoints import Trainer, of_6_mb
from tests.benchmarks.installed import program
from tests.benchmarks.pairs import Timing, interleave, ratio
from tests.benchmarks.records import keep, rounds
from tests.benchmarks.test_staging_cost import deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.benchmarks.pairs import Way

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COUNTS: Final = (10, 1_000, 10_000)
KEEPS: Final = {
    "retention off": Keep(last=0),
    "all kept": Keep(last=100_000),
    "all kept, the best too": Keep(last=100_000, within=10 * 86400, daily=30, best=5),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("many")
    for count in COUNTS:
        many.releases(room / str(count), count)
    return room


def test_commands(room: Path) -> None:
    config = room / "daemon.toml"
    rules = "".join(
        f'[[watch]]\nname = "of-{count}"\nsource = "runs/{count}"\ndeploy = "{count}"\n'
        "[watch.keep]\nlast = 100_000\n"
        for count in COUNTS
    )
    config.write_text(rules)
    ours = program()

    def run(*arguments: str) -> None:
        found = subprocess.run([ours, "-c", config, *arguments], capture_output=True, check=False)
        assert found.returncode in {0, 3}, found.stderr

    ways: dict[str, Callable[[], object]] = {"--version": partial(run, "--version")}
    for count in COUNTS:
        rule = f"of-{count}"
        ways[f"list, {count}"] = partial(run, "list", rule)
        ways[f"list --json, {count}"] = partial(run, "list", rule, "--json")
        ways[f"show, {count}"] = partial(run, "show", rule, "@1")
        ways[f"prune --dry-run, {count}"] = partial(run, "prune", rule, "--dry-run")
    ways["status"] = partial(run, "status")
    tell("many_releases_commands", interleave(ways, prepare=lambda _: None, rounds=rounds(7)))


@pytest.fixture
def as_in_a_daemon() -> Iterator[None]:
    """What pytest and spaCy hold is not looked through for garbage: the daemon's process has neither."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("as_in_a_daemon")
def test_the_decision(room: Path) -> None:
    now = datetime.now(UTC)
    ways: dict[str, Callable[[], object]] = {}
    for count in COUNTS:
        path = room / str(count)
        warm = DeploymentFolder(path)
        for what, kept in KEEPS.items():
            ways[f"warm, {what}, {count}"] = partial(verdicts_on, warm, kept, now)
            ways[f"alone, {what}, {count}"] = partial(
                decide,
                warm.outline().releases,
                kept,
                live_id=None,
                previous_id=None,
                pinned=frozenset(),
                leased=frozenset(),
                now=now,
            )
        ways[f"cold, {count}"] = lambda path=path: verdicts_on(  # type: ignore[misc]
            DeploymentFolder(path), KEEPS["all kept"], now
        )
    tell("many_releases_decision", interleave(ways, prepare=lambda _: None, rounds=rounds(9)))


@pytest.mark.parametrize("kept", KEEPS)
def test_the_next_publish(kept: str, room: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "model-last", of_6_mb(tmp_path / "generations"))
    with ExitStack() as held:

        def publisher(count: int) -> Callable[[], object]:
            deploy = room / str(count)
            watch = Watch(
                name="bench",
                source=str(trainer.checkpoint),
                deploy=str(deploy),
                keep=KEEPS[kept],
                verify=Verify(level="structure"),
            )
            target = Target(rule="bench", watch=watch, source=trainer.checkpoint, deploy=deploy)
            deploying = held.enter_context(deployment(target))

            def publish() -> None:
                result = deploying.snapshot("change")
                assert result.status == "published", result

            return publish

        found = interleave(
            {str(count): publisher(count) for count in COUNTS},
            prepare=lambda number: trainer.save(number, dirty=True),
            rounds=rounds(15),
        )
    tell(f"many_releases_publish_{''.join(c if c.isalpha() else '_' for c in kept)}", found)
    few = found[str(COUNTS[0])]
    for way in list(found.values())[1:]:
        print(f"against {COUNTS[0]}: {ratio(way.seconds, few.seconds):.2f}")  # noqa: T201  # as below


def tell(name: str, found: Mapping[str, Way]) -> None:
    keep(name, {"ways": {what: asdict(way) for what, way in found.items()}})
    print()  # noqa: T201  # as below
    for what, way in found.items():
        print(  # noqa: T201  # a measurement is there to be read
            f"{what}: {Timing.of(way.seconds)} ms, CPU {median(way.cpu_s) * 1000:.1f} ms"
        )
