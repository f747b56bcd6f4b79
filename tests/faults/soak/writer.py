"""A process that rewrites checkpoints as spaCy does, each time with other weights, and keeps a journal.

``python -m tests.faults.soak.writer BASE PACE_S CHECKPOINT=JOURNAL…``

Before the first byte of a checkpoint is written the journal has the digests of all its files, and the time
after the last one. At SIGTERM it writes each of them once more, whole, and ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spacy

from tests.faults.judge import Generation, generation
from tests.spooling import signal as tell_signal

if TYPE_CHECKING:
    from spacy.language import Language

_PATIENCE = 20  # times that a checkpoint may be deleted under the last writing of it


def main(base: str, pace_s: str, *places: str) -> None:
    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    nlp = spacy.load(base)
    chance = random.Random()  # noqa: S311  # no two lives write the same
    outputs = [(Path(out), Path(journal)) for out, _, journal in (place.partition("=") for place in places)]
    while not ends.is_set():
        for out, journal in outputs:
            change(nlp, chance)
            rewrite(nlp, out, journal, chance)
        ends.wait(float(pace_s) * chance.uniform(0.5, 1.5))
    for out, journal in outputs:
        change(nlp, chance)
        if not any(rewrite(nlp, out, journal, chance) for _ in range(_PATIENCE)):
            sys.exit(f"can't write {out}")


def change(nlp: Language, chance: random.Random) -> None:
    """Another step of the training: other weights of the categorizer, and now and then of its upstream."""
    names = ["spancat", "tok2vec"] if chance.random() < 0.3 else ["spancat"]
    for name in names:
        pipe: Any = nlp.get_pipe(name)
        for node in pipe.model.walk():
            for param in node.param_names:
                if node.has_param(param) is True:
                    drift = np.random.default_rng(chance.getrandbits(32)).normal(0, 1e-4)
                    node.set_param(param, node.get_param(param) + np.float32(drift))
    nlp.meta["performance"] = {"spans_sc_f": round(chance.random(), 4)}


def rewrite(nlp: Language, out: Path, journal: Path, chance: random.Random) -> bool:
    """Write a checkpoint; whether nobody deleted it meanwhile."""
    with tempfile.TemporaryDirectory(dir=journal.parent) as aside:
        nlp.to_disk(aside)
        files = generation(Path(aside))
    say(journal, {"files": files, "content": content(files)})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        way = chance.random()
        if way < 0.2:
            shutil.rmtree(out, ignore_errors=True)
        if way > 0.8:
            fresh = out.with_name(f"next-{os.getpid()}")
            nlp.to_disk(fresh)
            shutil.rmtree(out, ignore_errors=True)
            fresh.rename(out)
        else:
            nlp.to_disk(out)
        written = time.time()
        if chance.random() < 0.5:
            tell_signal(out.parent, out.name)
    except OSError:
        return False
    say(journal, {"written": written, "content": content(files)})
    return True


def content(files: Generation) -> str:
    """content_sha256 of a release of these files, as a manifest defines it."""
    all_files = {**files, "model.bin": files["spancat/model"]}
    listing = "".join(f"{all_files[path]}  {path}\n" for path in sorted(all_files))
    return hashlib.sha256(listing.encode()).hexdigest()


def say(journal: Path, line: dict[str, Any]) -> None:
    with journal.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
