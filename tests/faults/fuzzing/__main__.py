"""One target under atheris: ``python -m tests.faults.fuzzing TARGET FOUND [options of libFuzzer]``.

What it finds to reach new code is kept in the folder FOUND, what crashes beside it; its seeds are the corpus.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # it ships without types

_LIMITS = ("-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1")


def _entry(word: bytes) -> str:
    """One line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def main() -> None:
    name, found, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["spancat_daemon"]):
        from tests.faults.fuzzing.targets import CORPUS, TARGETS, room  # noqa: PLC0415  # to be instrumented

    target = TARGETS[name]
    folder = Path(found) / name
    folder.mkdir(parents=True, exist_ok=True)
    words = folder.with_suffix(".dict")
    words.write_text("".join(map(_entry, target.words)))
    atheris.Setup(
        [
            sys.argv[0],
            *_LIMITS,
            f"-max_len={target.most_bytes}",
            *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={found}/{name}-",
            *options,
            str(folder),
            str(CORPUS / name),
        ],
        target.run,
    )
    room()
    # libFuzzer ends its process without another word: this one takes away what was written
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
