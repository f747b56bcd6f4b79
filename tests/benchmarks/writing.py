"""A trainer that saves one generation after the other in place, each recorded before its first byte is there.

``python -m tests.benchmarks.writing BASE CHECKPOINT JOURNAL PAUSE_S MOST_PAUSES EVERY_S SECONDS``: no two
generations share the bytes of any file. The journal gets a line for each of them: its number, its digests,
and, in a second one, when its last file was closed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.torn_writers import ORDER, Files, Generations, digests

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Save:
    """A generation.

    Attributes:
        files: SHA-256 of each, by path.
        written_s: when its last file was closed, by the wall clock; None: it was not written whole.
    """

    files: Mapping[str, str]
    written_s: float | None


def journal(path: Path) -> list[Save]:
    """All generations that were begun, oldest first."""
    begun: dict[int, dict[str, str]] = {}
    written: dict[int, float] = {}
    for line in path.read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        if "files" in entry:
            begun[entry["number"]] = entry["files"]
        else:
            written[entry["number"]] = entry["written_s"]
    return [Save(files, written.get(number)) for number, files in begun.items()]


def write(checkpoint: Path, files: Files, pauses: frozenset[int], pause_s: float) -> None:
    """Write one generation, file by file, with pauses before some of them."""
    for number, (path, data) in enumerate(files.items()):
        if number in pauses:
            time.sleep(pause_s)
        (checkpoint / path).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / path).write_bytes(data)


def main() -> None:
    base, checkpoint, record = (Path(argument) for argument in sys.argv[1:4])
    pause_s, every_s, seconds = float(sys.argv[4]), float(sys.argv[6]), float(sys.argv[7])
    most_pauses = int(sys.argv[5])
    generations = Generations(base)
    chance = random.Random(0)  # noqa: S311  # where to pause, not a secret
    between_files = range(1, len(ORDER))
    with record.open("a") as lines:
        began = time.monotonic()
        number = 0
        due_s = began
        while time.monotonic() - began < seconds:
            files = generations[number]
            lines.write(json.dumps({"number": number, "files": digests(files)}) + "\n")
            lines.flush()
            time.sleep(max(0.0, due_s - time.monotonic()))
            pauses = chance.sample(between_files, min(most_pauses, len(between_files))) if pause_s else []
            write(checkpoint, files, frozenset(pauses), pause_s)
            lines.write(json.dumps({"number": number, "written_s": time.time()}) + "\n")
            lines.flush()
            due_s = (time.monotonic() if pause_s else max(due_s, time.monotonic() - every_s)) + every_s
            number += 1


if __name__ == "__main__":
    main()
