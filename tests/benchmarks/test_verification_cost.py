"""What a verification costs with a kept loader, against a bare ``spacy.load`` of the same checkpoint.

Both sides are warm processes, with spaCy imported: one is the loader as the daemon has it, confined and asked
through pipes, which loads the release, hashes its model, and lets it predict; the other does nothing but
``spacy.load`` and says that it has. The checkpoint is in the page cache for both.

    make bench ARGS='-k verification'
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.verify.verdict import Examination
from spancat_daemon.verify.warm import WarmLoaders
from tests.benchmarks.pairs import Pair, measure, publish, table
from tests.benchmarks.records import rounds
from tests.examining import subject_of
from tests.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

MOST = 1.3
ROUNDS = 30
COLD_ROUNDS = 5
MOST_COLD = 1.6
SIX_MB = {"width": 96, "rows": 3300}
BARE = """
import sys, spacy
for line in sys.stdin:
    spacy.load(line.strip())
    print(flush=True)
"""


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[Pair]]:
    found: list[Pair] = []
    yield found
    if found:
        text = table(found, ours="verification", theirs="`spacy.load` alone, as cold or warm")
        publish("Seeing that a checkpoint works, against loading it", found, text)


@pytest.mark.parametrize("variant", ["default", "hash_embed"])
def test_warm_verification(variant: str, tmp_path: Path, pairs: list[Pair]) -> None:
    release = build(variant, tmp_path / "release", steps=2, **SIX_MB)
    megabytes = sum(file.stat().st_size for file in release.rglob("*") if file.is_file()) / 1e6
    examination = Examination(subject=subject_of(release))
    command = [sys.executable, "-I", "-B", "-c", BARE]
    with (
        WarmLoaders(at_most=1) as loaders,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as bare,
    ):
        assert bare.stdin is not None
        assert bare.stdout is not None
        requests, answers = bare.stdin, bare.stdout

        def load() -> None:
            requests.write(f"{release}\n".encode())
            assert answers.readline() == b"\n"

        def verify() -> None:
            verdict = loaders.examine(
                examination, python=sys.executable, memory_bytes=4 << 30, timeout_s=120, idle_s=60
            )
            assert verdict.ok, verdict

        pair = measure(
            f"{megabytes:.0f} MB, {variant}, warm",
            prepare=lambda _: None,
            ours=verify,
            theirs=load,
            rounds=rounds(ROUNDS),
        )
        requests.close()
    pairs.append(pair)
    assert pair.ratio <= MOST


def test_cold_verification(tmp_path: Path, pairs: list[Pair]) -> None:
    """By a loader that is started for it, against a Python that is started to load."""
    release = build("default", tmp_path / "release", steps=2, **SIX_MB)
    examination = Examination(subject=subject_of(release))
    load = [sys.executable, "-I", "-B", "-c", f"import spacy; spacy.load({str(release)!r})"]

    def verify() -> None:
        with WarmLoaders(at_most=1) as loaders:
            verdict = loaders.examine(
                examination, python=sys.executable, memory_bytes=4 << 30, timeout_s=120, idle_s=60
            )
        assert verdict.ok, verdict

    pair = measure(
        "6 MB, default, cold",
        prepare=lambda _: None,
        ours=verify,
        theirs=lambda: subprocess.run(load, check=True),
        rounds=rounds(COLD_ROUNDS),
        warm_up=1,
    )
    pairs.append(pair)
    assert pair.ratio <= MOST_COLD
