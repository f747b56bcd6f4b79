"""Checkpoints of every size, and a trainer that writes their generations in place."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import spacy

from spancat_daemon.checkpoint.settle import CLOCK_REALTIME_COARSE
from tests.once import once
from tests.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIX_MB: Final[dict[str, Any]] = {"width": 96, "rows": 3400}


class Trainer:
    """Writes one of several generations of a checkpoint into the same directory, as spaCy does."""

    def __init__(self, checkpoint: Path, generations: Sequence[Path]) -> None:
        self.checkpoint = checkpoint
        self._generations = [
            sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda f: f.stat().st_mtime_ns)
            for folder in generations
        ]
        self._roots = generations

    def save(self, number: int, *, dirty: bool) -> None:
        """Save the generation that comes `number`-th in turn.

        Args:
            number: which one.
            dirty: leave it in the page cache, not written to the disk, as a trainer does.
        """
        if dirty:
            os.sync()  # what others have left to be written is not to be waited for
        self.write(number)
        if not dirty:
            os.sync()
        self.wait_a_tick()

    def write(self, number: int) -> None:
        """Write that generation, and nothing else."""
        turn = number % len(self._roots)
        for file in self._generations[turn]:
            target = self.checkpoint / file.relative_to(self._roots[turn])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)

    def wait_a_tick(self) -> None:
        """Settling waits for the end of the kernel tick of the last write: a few milliseconds of nothing."""
        time.sleep(2 * time.clock_getres(CLOCK_REALTIME_COARSE))

    @property
    def bytes(self) -> int:
        """The size of the checkpoint."""
        return sum(file.stat().st_size for file in self._generations[0])

    @property
    def files(self) -> int:
        """How many there are."""
        return len(self._generations[0])


def of_6_mb(folder: Path) -> list[Path]:
    """Two generations that differ in their weights."""
    return [
        build("default", folder / f"small-{number}", generation=number, steps=2, **SIX_MB)
        for number in range(2)
    ]


def with_vectors(folder: Path, megabytes: float) -> list[Path]:
    """Two generations that share all but their weights, and so the vectors."""
    return [
        build(
            "vectors",
            folder / f"vectors-{number}",
            generation=number,
            steps=2,
            vectors_mb=megabytes,
            **SIX_MB,
        )
        for number in range(2)
    ]


def in_one_file(folder: Path, megabytes: float) -> list[Path]:
    """Two generations, of which nearly all is one file, which is another one in each."""
    made = []
    for number in range(2):
        path = build("vectors", folder / f"one-{megabytes}-{number}", generation=number, steps=2)
        vectors = path / "vocab/vectors"
        times = vectors.stat()
        data = np.random.default_rng(number).integers(
            0, 2**32, size=(int(megabytes * 1e6) // 1200, 300), dtype=np.uint32
        )
        with vectors.open("wb") as file:
            np.save(file, data.view(np.float32))
        os.utime(vectors, ns=(times.st_atime_ns, times.st_mtime_ns))
        made.append(path)
    return made


def in_many_files(folder: Path, megabytes: float, components: int = 120) -> list[Path]:
    """Two generations of a pipeline with many components, of two files each, that differ in every model."""
    made = []
    for number in range(2):
        path = folder / f"many-{megabytes}-{number}"
        shutil.copytree(_of_many_components(megabytes, components), path)
        chance = np.random.default_rng(number)
        for model in path.glob("*/model"):
            times = model.stat()
            data = bytearray(model.read_bytes())
            start = data.find(b"\x93NUMPY")  # weights are packed as arrays of raw bytes
            where = start if start >= 0 else len(data) // 2
            end = min(where + 4096, len(data) - 64)
            data[where:end] = chance.bytes(end - where)
            model.write_bytes(data)
            os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
        made.append(path)
    return made


def _of_many_components(megabytes: float, components: int) -> Path:
    beside_the_tables = 390_000  # bytes of each component's other weights
    rows = int((megabytes * 1e6 / components - beside_the_tables) / (2 * 96 * 4))

    def make(folder: Path) -> None:
        nlp = spacy.blank("en")
        tok2vec: dict[str, Any] = {
            "@architectures": "spacy.Tok2Vec.v2",
            "embed": {
                "@architectures": "spacy.MultiHashEmbed.v2",
                "width": 96,
                "attrs": ["NORM", "SHAPE"],
                "rows": [rows, rows],
                "include_static_vectors": False,
            },
            "encode": {
                "@architectures": "spacy.MaxoutWindowEncoder.v2",
                "width": 96,
                "depth": 1,
                "window_size": 1,
                "maxout_pieces": 1,
            },
        }
        model = {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}
        for number in range(components):
            tagger: Any = nlp.add_pipe("tagger", name=f"tagger_{number}", config={"model": model})
            tagger.add_label("X")
        categorizer: Any = nlp.add_pipe("spancat")
        categorizer.add_label("X")
        nlp.initialize()
        nlp.to_disk(folder)

    return once(f"of-{components}-components-{megabytes}", make)
