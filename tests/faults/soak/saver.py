"""A process that saves a pipeline by force now and then, beside the daemon or without it.

``python -m tests.faults.soak.saver BASE FOLDER JOURNAL PACE_S``; the journal is its `writer`'s.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import threading
from pathlib import Path

import spacy

from spancat_daemon import save
from spancat_daemon.errors import SpancatDaemonError
from tests.faults.judge import generation
from tests.faults.soak.writer import change, content, say


def main(base: str, folder: str, journal: str, pace_s: str) -> None:
    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    nlp = spacy.load(base)
    chance = random.Random()  # noqa: S311  # no two lives write the same
    saves = 0
    while not ends.wait(float(pace_s) * chance.uniform(0.5, 1.5)):
        change(nlp, chance)
        with tempfile.TemporaryDirectory(dir=Path(journal).parent) as aside:
            nlp.to_disk(aside)
            files = generation(Path(aside))
        say(Path(journal), {"files": files, "content": content(files)})
        try:
            save(nlp, folder, contents="pipeline", timeout_s=30)
            saves += 1
            said = {"saves": saves}
        except (SpancatDaemonError, OSError) as error:
            said = {"refused": str(error)}  # type: ignore[dict-item]
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
