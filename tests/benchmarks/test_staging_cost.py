"""What a checkpoint costs from trained to live, against ``cp -r SRC DST && sync -f DST`` of the same files.

The whole way is measured: recovery, settle, stage, verify its structure, seal, swap, history and log, every
byte and name on stable storage when it ends. Retention comes after that, when the release is live, and is not
part of it. The checkpoints are written in place in spaCy's order before each measurement, by turns of two
generations; *dirty* ones lie in the page cache alone then, as a trainer leaves them, *clean* ones on the disk
too. Beside both: SHA-256 of the same files on two threads, and nothing else.

    make bench ARGS='-k staging'
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Final, Literal, Self

import pytest

from spancat_daemon.config.expand import Target
from spancat_daemon.config.model import Keep, LogSettings, Verify, Watch
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.observe.logs import configure, get_logger
from spancat_daemon.release.removal import remove_tree
from spancat_daemon.verify.warm import WarmLoaders
from tests.benchmarks.checkpoints import Trainer, in_many_files, in_one_file, of_6_mb, with_vectors
from tests.benchmarks.file_systems import FILE_SYSTEMS, room_on
from tests.benchmarks.pairs import Timing, interleave, ratio
from tests.benchmarks.records import keep, rounds
from tests.judgement import sound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

KEEP_ALL: Final = Keep(last=0)


@dataclass(frozen=True, slots=True)
class Work:
    """A checkpoint and how it comes to be measured.

    Attributes:
        name: in the records.
        what: for the page.
        make: makes its generations.
        rounds: by default.
        dirty: whether it is left in the page cache.
        next_to: whether the release before it is there to link to; else it goes into an empty folder.
    """

    name: str
    what: str
    make: Callable[[Path], Sequence[Path]]
    rounds: int
    dirty: bool = True
    next_to: bool = False


WORKS: Final = (
    Work("6_mb", "6 MB, every file written", of_6_mb, 20),
    Work("6_mb_clean", "6 MB, every file written, clean", of_6_mb, 20, dirty=False),
    Work("6_mb_next", "6 MB, weights changed", of_6_mb, 20, next_to=True),
    Work("100_mb_one", "100 MB in one large file, all changed", lambda at: in_one_file(at, 100), 7),
    Work("100_mb_many", "100 MB in 250 files, all changed", lambda at: in_many_files(at, 100), 7),
    Work("1_gb", "1 GB in 8 large files, all changed", lambda at: in_many_files(at, 1000, 8), 5),
    Work("1_gb_one", "1 GB in one file, all changed", lambda at: in_one_file(at, 1000), 3),
    Work(
        "400_mb_vectors",
        "400 MB, its 390 MB of vectors unchanged",
        lambda at: with_vectors(at, 390),
        7,
        next_to=True,
    ),
)
ON_OTHERS: Final = ("6_mb", "100_mb_one", "1_gb")
"""What is measured on every file system; the rest on the first one only."""


def cases() -> list[tuple[str, Work]]:
    return [
        (kind, work)
        for kind in FILE_SYSTEMS
        for work in WORKS
        if kind == FILE_SYSTEMS[0] or work.name in ON_OTHERS
    ]


@pytest.mark.parametrize(("kind", "work"), cases(), ids=lambda value: getattr(value, "name", value))
def test_from_saved_to_live(kind: str, work: Work, tmp_path: Path) -> None:
    generations = work.make(tmp_path / "generations")
    with room_on(kind, tmp_path) as room:
        trainer = Trainer(room / "model-last", generations)
        copy = room / "copy"
        with Site(trainer, room, afresh=not work.next_to) as site:
            if work.next_to:
                trainer.save(0, dirty=False)  # the warm-up is of the other one
                site.snapshot()

            def prepare(number: int) -> None:
                shutil.rmtree(copy, ignore_errors=True)
                site.prepare()
                trainer.save(number, dirty=work.dirty)

            found = interleave(
                {"ours": site.snapshot, "cp": copier(trainer.checkpoint, copy), "sha256": hasher(trainer)},
                prepare=prepare,
                rounds=rounds(work.rounds),
            )
            site.judge()
    ways = {name: asdict(way) for name, way in found.items()}
    keep(
        f"staging_{kind}_{work.name}",
        {
            "what": work.what,
            "file_system": kind,
            "bytes": trainer.bytes,
            "files": trainer.files,
            "dirty": work.dirty,
            "ways": ways,
        },
    )
    ours, theirs = found["ours"], found["cp"]
    print(  # noqa: T201  # a measurement is there to be read
        f"\n{kind}, {work.what}: {Timing.of(ours.seconds)} ms, cp -r + sync -f "
        f"{Timing.of(theirs.seconds)} ms, "
        f"SHA-256 {Timing.of(found['sha256'].seconds)} ms; ratio {ratio(ours.seconds, theirs.seconds):.2f}; "
        f"CPU {median(ours.cpu_s) * 1000:.1f} and {median(theirs.cpu_s) * 1000:.1f} ms; "
        f"written {median(ours.written_bytes) / 1e6:.1f} and {median(theirs.written_bytes) / 1e6:.1f} MB"
    )


class Site:
    """A deployment to measure; a context manager, which ends what it holds."""

    def __init__(
        self, trainer: Trainer, room: Path, *, afresh: bool, swap: Literal["symlink", "exchange"] = "symlink"
    ) -> None:
        """Nothing is held yet.

        Args:
            trainer: of the checkpoint.
            room: where deployment folders are made.
            afresh: whether each snapshot goes into an empty folder, so that no file can be linked.
            swap: how it goes live.
        """
        self._swap = swap
        self._trainer = trainer
        self._folders = (room / f"deploy-{number}" for number in range(1_000_000))
        self._afresh = afresh
        self._open = ExitStack()
        self.deploy = next(self._folders)
        self._held: Deployment

    def __enter__(self) -> Self:
        self._hold()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def prepare(self) -> None:
        """Leave the live release alone, or nothing at all."""
        if self._afresh:
            if (self.deploy / "current").exists():
                self.judge()
                remove_tree(self.deploy)
                self.deploy = next(self._folders)
                self._hold()
        else:
            self._held.retarget(self._target(Keep()), min_free_bytes=0)
            self._held.keeping.prune()
            self._held.retarget(self._target(KEEP_ALL), min_free_bytes=0)

    def snapshot(self) -> None:
        """Take what is there, and look again where it is too young, as the daemon does."""
        while (result := self._held.snapshot("change")).kind == "busy":
            time.sleep(result.retry_after_s or 0.0)
        assert result.status == "published", result

    def judge(self) -> None:
        """End what is held, and hold what was made against what is allowed."""
        self._open.close()
        if (self.deploy / "current").exists():
            sound(self.deploy)

    def _hold(self) -> None:
        self._held = self._open.enter_context(deployment(self._target(KEEP_ALL)))

    def _target(self, kept: Keep) -> Target:
        watch = Watch(
            name="bench",
            source=str(self._trainer.checkpoint),
            deploy=str(self.deploy),
            swap=self._swap,
            keep=kept,
            verify=Verify(level="structure"),  # what loading costs is measured by itself
        )
        return Target(rule="bench", watch=watch, source=self._trainer.checkpoint, deploy=self.deploy)


@contextmanager
def deployment(target: Target) -> Iterator[Deployment]:
    output = configure(LogSettings(), stream=io.TextIOWrapper(io.BytesIO()))
    try:
        with (
            WarmLoaders(at_most=1) as loaders,
            Deployment(target, min_free_bytes=0, log=get_logger(), loaders=loaders) as held,
        ):
            yield held
    finally:
        output.close()


def copier(checkpoint: Path, copy: Path) -> Callable[[], object]:
    script = f"cp -r '{checkpoint}' '{copy}' && sync -f '{copy}'"
    return lambda: subprocess.run(["sh", "-c", script], check=True)


def hasher(trainer: Trainer) -> Callable[[], object]:
    """SHA-256 of all files, each in pieces, on two threads."""

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def both() -> None:
        files = [path for path in trainer.checkpoint.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(2) as threads:
            assert len(list(threads.map(digest, files))) == trainer.files

    return both
