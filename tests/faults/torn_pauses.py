"""A writer that pauses: ``python -m tests.faults.torn_pauses SOURCE BASE WRITER PAUSES NUMBER``.

Each generation in its turn has one of ``PAUSES``, in seconds, separated by commas: after some of its steps.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from tests.faults.torn_writers import WRITERS, Generations


def main(source: Path, base: Path, writer: str, pauses: list[float], number: int) -> None:
    """Write that many generations, and end."""
    generations = Generations(base)
    chance = random.Random(number)  # noqa: S311  # moments, not secrets
    for each in range(number):
        pause_s = pauses[each % len(pauses)]
        for step, _ in enumerate(WRITERS[writer](source, generations[each])):
            if pause_s and step % 8 == each % 8 and chance.random() < 0.7:
                time.sleep(pause_s)
        time.sleep(0.1)


if __name__ == "__main__":
    a_source, a_base, a_writer, the_pauses, a_number = sys.argv[1:]
    main(Path(a_source), Path(a_base), a_writer, [float(p) for p in the_pauses.split(",")], int(a_number))
