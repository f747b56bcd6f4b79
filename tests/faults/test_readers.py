"""Readers that never pause, under swaps that never pause, and retention that lets go of all that it may."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.verify.warm import WarmLoaders
from tests.faults.judge import generation, judge
from tests.faults.reading import READERS
from tests.faults.report import tally
from tests.faults.torn_rounds import Log
from tests.pipelines import build
from tests.service import ROOT, configure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.observe.logs import Logger

GENERATIONS = 3
PIPES = ("tok2vec", "spancat")
PROMISES = {
    "load": "`load` never fails, and what it loads is of one release",
    "hold": "what is held stays whole, whatever goes live; it is let go of when it is held no more",
    "once": "who resolves `current` once reads one release, or sees it let go of; `current` never fails",
    "shell": "as `load`, with `cd -P` and `flock --shared`; or it sees that it came too late",
}


def listing(checkpoint: Path) -> str:
    """The digest of what `sha256sum` says of all files of a release of a checkpoint."""
    files = generation(checkpoint)
    files["model.bin"] = files["spancat/model"]
    order = sorted(f"./{path}" for path in files)
    text = "".join(f"{files[path.removeprefix('./')]}  {path}\n" for path in order)
    return hashlib.sha256(text.encode()).hexdigest()


class Reader:
    """A process that reads."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._progress = folder / f"{kind}.progress"
        self._progress.touch()
        self._told = folder / f"{kind}.stderr"
        arguments = [kind, folder / "models/products", self._progress, folder / "known.json"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.reading", *map(str, arguments)],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.PIPE,
                stderr=told,
            )

    def passes(self) -> int:
        """How often it found all well; it is still at it."""
        assert self._process.poll() is None, f"{self.kind}: {self._told.read_text()}"
        return self._progress.read_bytes().count(b".")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0, f"{self.kind}: {self._told.read_text()}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def reading(folder: Path) -> Iterator[list[Reader]]:
    """One of each kind."""
    with ExitStack() as undo:
        readers = []
        for kind in READERS:
            reader = Reader(kind, folder)
            undo.callback(reader.kill)
            readers.append(reader)
        yield readers


class Swapper:
    """Makes one generation after the other live, and lets go of all but two."""

    def __init__(self, deployment: Deployment, source: Path, checkpoints: list[Path]) -> None:
        self.swaps = 0
        self._deployment = deployment
        self._source = source
        self._checkpoints = checkpoints

    def swap(self) -> None:
        link = self._source.with_name("link")
        link.symlink_to(self._checkpoints[self.swaps % len(self._checkpoints)])
        link.rename(self._source)
        deadline_s = time.monotonic() + 120
        while (result := self._deployment.snapshot("change")).kind == "busy":
            assert time.monotonic() < deadline_s, result.reason
            time.sleep(result.retry_after_s or 0.001)
        assert result.status == "published", result
        self.swaps += 1


@pytest.mark.parametrize("swap", ["symlink", "exchange"])
@pytest.mark.parametrize(("swaps", "passes"), [(40, 1), pytest.param(2000, 60, marks=pytest.mark.exhaustive)])
def test_no_reader_ever_fails(in_memory: Path, swap: str, swaps: int, passes: int) -> None:
    if shutil.which("flock") is None:
        pytest.skip("flock (util-linux) is not installed")
    checkpoints = [
        build("default", in_memory / f"generation-{number}", generation=number)
        for number in range(GENERATIONS)
    ]
    pipes = [{name: generation(each)[f"{name}/model"] for name in PIPES} for each in checkpoints]
    known = {"pipes": pipes, "listings": [listing(each) for each in checkpoints]}
    (in_memory / "known.json").write_text(json.dumps(known))
    deploy = in_memory / "models/products"
    log = Log()
    (in_memory / "runs").mkdir()
    (target,) = targets(load(configure(in_memory, swap=swap, more="[watch.keep]\nlast = 1")))
    with (
        WarmLoaders(at_most=1) as loaders,
        Deployment(target, min_free_bytes=0, log=cast("Logger", log), loaders=loaders) as deployment,
    ):
        swapper = Swapper(deployment, in_memory / "runs/model-best", checkpoints)
        swapper.swap()
        with reading(in_memory) as readers:
            deadline_s = time.monotonic() + 240 + swaps
            most = 0
            while swapper.swaps < swaps or any(reader.passes() < passes for reader in readers):
                assert time.monotonic() < deadline_s, [reader.passes() for reader in readers]
                swapper.swap()
                most = max(most, len(list((deploy / "releases").iterdir())))
            counts = {reader.kind: reader.passes() for reader in readers}
            for reader in readers:
                reader.end()
        assert most > 2, "no release was ever held"
        swapper.swap()
        kept = deployment.folder.releases()
        assert len(kept) == 2, [release.id for release in kept]
    assert judge(deploy, [generation(each) for each in checkpoints], log=log.events) == []
    assert set(counts) == set(PROMISES)
    for kind, count in counts.items():
        tally(f"readers under swaps ({swap}): {kind}", count, PROMISES[kind])
    tally(f"swaps under readers that never pause ({swap})", swapper.swaps, "nothing of it fails a reader")
