"""How long a command takes from its start to its end, against a Python that does nothing.

make bench ARGS='-k command'
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import pytest

from tests.benchmarks.installed import program
from tests.benchmarks.pairs import Timing, interleave
from tests.benchmarks.records import keep, rounds
from tests.pipelines import build
from tests.service import ROOT, Daemon, configure

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

ROUNDS: Final = 15


def test_commands(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best", steps=2)
    config = configure(tmp_path)
    ours = program()
    commands: dict[str, list[str | Path]] = {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`--version`": [ours, "--version"],
        "`list`": [ours, "-c", config, "list", "products"],
        "`status`": [ours, "-c", config, "status"],
        "`history`": [ours, "-c", config, "history", "products"],
        "`check`": [ours, "-c", config, "check"],
    }
    with Daemon(config) as daemon:
        daemon.wait_for("release.published")
        found = interleave(
            {
                what: lambda command=command: subprocess.run(  # type: ignore[misc]
                    command, check=True, capture_output=True, cwd=ROOT
                )
                for what, command in commands.items()
            },
            prepare=lambda _: None,
            rounds=rounds(ROUNDS),
            warm_up=2,
        )
    keep("commands", {"ways": {what: asdict(way) for what, way in found.items()}})
    for what, way in found.items():
        print(f"{what}: {Timing.of(way.seconds)} ms")  # noqa: T201  # a measurement is there to be read
