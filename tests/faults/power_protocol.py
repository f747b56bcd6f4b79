"""A publisher that does, through the real code of ``release/``, all that must outlast a power cut.

Kept to the standard library and ``release/``: it is run in processes that die by the hundred.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from spancat_daemon.checkpoint.contents import Plan, Planned
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.release import rejects
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History
from spancat_daemon.release.pruning import prune
from spancat_daemon.release.recovery import Recovered, recover
from spancat_daemon.release.retention import Verdict
from spancat_daemon.release.staging import restage, seal, stage
from spancat_daemon.release.swap import Kind, Swapped, make_live, publish
from tests.faults.judge import Generation, generation
from tests.integration.release.fakes import manifest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.staging import Staged

BEGAN = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEPT = 2
"""How many releases `Publisher.prune` keeps."""
REJECTED = 2
"""How many rejected snapshots are kept."""


def ticking(began: datetime = BEGAN) -> Callable[[], datetime]:
    """Return a clock that is a second later whenever it is looked at: equal work makes equal bytes."""
    seconds = itertools.count()
    return lambda: began + timedelta(seconds=next(seconds))


def write_checkpoint(checkpoint: Path, number: int, *, model_bytes: int = 600) -> None:
    """Write the checkpoint of a generation; some of its files are those of every other."""
    seed = hashlib.sha512(b"%d" % number).digest()
    contents = {
        "config.cfg": b"[nlp]\n# %d\n" % number,
        "meta.json": b"{}",
        "spancat/cfg": b'{"labels": ["A"]}',
        "spancat/model": (seed * (model_bytes // len(seed) + 1))[:model_bytes],
        "vocab/strings.json": b'["the same words in every generation"]',
    }
    for name, data in contents.items():
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def told_nobody(_what: str, _value: str) -> None:
    """Nobody relies on what was done."""


class Publisher:
    """Works on one deployment folder, as the daemon does, from `start` on.

    Attributes:
        generations: every checkpoint that was written.
    """

    def __init__(
        self,
        deploy: Path,
        checkpoint: Path,
        *,
        durability: Durability = DURABLE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        told: Callable[[str, str], None] = told_nobody,
        model_bytes: int = 600,
        first: int = 0,
    ) -> None:
        """Prepares to work.

        Args:
            deploy: the deployment folder.
            checkpoint: where checkpoints are written, on another file system.
            durability: how bytes are made to stay.
            clock: the wall clock.
            told: what somebody relies on from now on: ``commit`` with the digest of its record, ``pinned``
                and ``unpinned`` with an id, and before either ``pinning``; ``number`` with one that must not
                be given again; ``prunes``, when releases ``begin`` to be removed, and at the ``end``;
                ``stages`` with the number of a checkpoint.
            model_bytes: length of a model.
            first: number of the first checkpoint.
        """
        self.folder = DeploymentFolder(deploy)
        self.generations: list[Generation] = []
        self._checkpoint = checkpoint
        self._durability = durability
        self._clock = clock
        self._told = told
        self._model_bytes = model_bytes
        self._numbers = itertools.count(first)
        self._history: History | None = None

    @property
    def history(self) -> History:
        assert self._history is not None, "start it first"
        return self._history

    def start(self, kind: Kind = "symlink") -> Recovered:
        """Prepare, open and recover the folder; what was found committed is relied on."""
        self.folder.prepare(self._durability)
        self._history = History.open(self.folder.history_path, clock=self._clock, durability=self._durability)
        recovered = recover(self.folder, history=self.history, durability=self._durability, kind=kind)
        for record in self.history.records():
            if record.kind == "commit":
                self._told("commit", record.sha256)
        if self.history.committed:
            self.folder.mark_announced(self.history.committed)
        return recovered

    def close(self) -> None:
        if self._history is not None:
            self._history.close()

    def publish(self, kind: Kind) -> None:
        staged, manifest = self._stage()
        seal(staged, manifest, self._durability)
        self._committed(
            publish(
                self.folder,
                staged,
                manifest,
                kind=kind,
                history=self.history,
                details={"rule": "products", "source": manifest.source},
                monotonic=time.monotonic,
                finish=lambda _: {},
                durability=self._durability,
            )
        )

    def rollback(self, kind: Kind) -> None:
        """Go one release back, if there is one."""
        if (previous := self.folder.previous(history=self.history)) is not None:
            self._committed(
                make_live(
                    self.folder,
                    previous,
                    kind=kind,
                    history=self.history,
                    details={"rule": "products"},
                    monotonic=time.monotonic,
                    finish=lambda _: {},
                    durability=self._durability,
                )
            )

    def prune(self) -> None:
        """Keep the newest, the live and the pinned releases."""
        releases = self.folder.releases()
        kept = {release.id for release in releases[:KEPT]}
        verdicts = [Verdict(release, ("kept",) if release.id in kept else ()) for release in releases]
        self._told("prunes", "begin")
        prune(self.folder, verdicts, history=self.history, durability=self._durability)
        self._told("prunes", "end")

    def pin(self) -> None:
        """Pin the oldest release."""
        oldest = self.folder.releases()[-1].id
        self._told("pinning", oldest)
        self.folder.pin(oldest, self._durability)
        self._told("pinned", oldest)

    def unpin(self) -> None:
        """Take all pins away."""
        for pinned in sorted(self.folder.pins()):
            self._told("pinning", pinned)
            self.folder.unpin(pinned, self._durability)
            self._told("unpinned", pinned)

    def reject(self, *, last: int = REJECTED) -> None:
        """Stage a snapshot and keep it as a rejected one."""
        staged, manifest = self._stage()
        rejects.keep(self.folder, staged, manifest, last=last, durability=self._durability)
        self._told("number", str(manifest.sequence))

    def let_go(self) -> None:
        """Let all rejected snapshots go; their numbers stay given."""
        rejects.let_go(self.folder, last=0, durability=self._durability)

    def promote(self, kind: Kind) -> None:
        """Make the newest rejected snapshot a release."""
        rejected = rejects.rejected(self.folder)[0]
        staged = restage(rejected, staging_path=self.folder.staging_path, durability=self._durability)
        manifest = self._manifest(staged)
        seal(staged, manifest, self._durability)
        self._committed(
            publish(
                self.folder,
                staged,
                manifest,
                kind=kind,
                history=self.history,
                details={"rule": "products"},
                monotonic=time.monotonic,
                finish=lambda _: {},
                durability=self._durability,
            )
        )
        rejects.forget(self.folder, rejected.id, self._durability)

    def _committed(self, swapped: Swapped) -> None:
        self._told("commit", swapped.record.sha256)
        self.folder.mark_announced(swapped.record.seq)

    def _stage(self) -> tuple[Staged, Manifest]:
        number = next(self._numbers)
        self._told("stages", str(number))
        write_checkpoint(self._checkpoint, number, model_bytes=self._model_bytes)
        self.generations.append(generation(self._checkpoint))
        with Source.open(self._checkpoint) as source:
            tree = source.scan()
            staged = stage(
                _plan(tree),
                source,
                tree,
                staging_path=self.folder.staging_path,
                previous=self.folder.live(),
                min_free_bytes=0,
                durability=self._durability,
            )
        return staged, self._manifest(staged)

    def _manifest(self, staged: Staged) -> Manifest:
        live = self.folder.live()
        sequence = self.folder.next_sequence(history=self.history)
        previous = live.id if live else None
        return manifest_of(sequence, staged.files, created=self._clock(), previous=previous)


def _plan(tree: Tree) -> Plan:
    def planned() -> Iterator[Planned]:
        for file in tree.files:
            yield Planned(path=file.path, source=file, data=None, proof=None)

    return Plan(
        files=tuple(planned()),
        component="spancat",
        factory="spancat",
        labels=("A", "B"),
        spans_key="sc",
        threshold=0.5,
        lang="en",
        pipeline=("tok2vec", "spancat"),
        spacy_version=">=3.8.7,<3.9.0",
        metrics={},
        metrics_may_be_stale=False,
        model_file="spancat/model",
    )
