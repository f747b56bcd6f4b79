"""What a reader sees of a swap that does nothing but open a file of what is live, again and again.

make bench ARGS='-k swap_seen'
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from tests.benchmarks.checkpoints import Trainer
from tests.benchmarks.records import keep, rounds
from tests.benchmarks.test_staging_cost import Site
from tests.pipelines import build

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

SWAPS: Final = 150
_READER: Final = """
import json, os, sys, time
path, stop = sys.argv[1], sys.argv[2]
now = time.perf_counter_ns
failed, opens, last, before, others, during = 0, 0, None, 0, [], []
print(flush=True)
while True:
    began = now()
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        failed += 1
        continue
    took = now() - began
    inode = os.fstat(file).st_ino
    os.close(file)
    opens += 1
    if inode != last and last is not None:
        during.append(took)
    elif opens % 64 == 0:
        others.append(took)
        if os.path.exists(stop):
            break
    last = inode
print(json.dumps({"opens": opens, "failed": failed, "during_ns": during, "others_ns": others[-5000:]}))
"""


@pytest.mark.parametrize("swap", ["symlink", "exchange"])
def test_swaps_seen(swap: Literal["symlink", "exchange"], tmp_path: Path) -> None:
    generations = [
        build("default", tmp_path / f"g{number}", generation=number, steps=2) for number in range(2)
    ]
    trainer = Trainer(tmp_path / "model-last", generations)
    stop = tmp_path / "stop"
    with Site(trainer, tmp_path, afresh=False, swap=swap) as site:
        trainer.save(0, dirty=True)
        site.snapshot()
        reading = [sys.executable, "-I", "-c", _READER, str(site.deploy / "current/meta.json"), str(stop)]
        with subprocess.Popen(reading, stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            for number in range(1, rounds(SWAPS) + 1):
                trainer.write(number)
                trainer.wait_a_tick()
                site.snapshot()
            stop.touch()
            seen: dict[str, Any] = json.loads(reader.stdout.readline())
        site.judge()
    keep(f"swap_{swap}", {"swap": swap, "swaps": rounds(SWAPS), **seen})
    during = statistics.median(seen["during_ns"]) / 1000
    print(  # noqa: T201  # a measurement is there to be read
        f"\n{swap}: {seen['opens']:,} opens, {seen['failed']} failed; the open that saw a swap "
        f"{during:.1f} µs, longest {max(seen['during_ns']) / 1000:.1f}; others "
        f"{statistics.median(seen['others_ns']) / 1000:.1f}"
    )
    assert seen["failed"] == 0
    assert len(seen["during_ns"]) > rounds(SWAPS) / 2
