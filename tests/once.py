"""What is costly to make and the same for every test: made once, by whichever process asks for it first.

The processes of one test run (the workers of ``pytest -n``, and the programs that tests start) share a
folder, which the first of them makes and takes away at its end.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_VARIABLE: Final = "SPANCAT_DAEMON_TEST_RUN"


@lru_cache(maxsize=1)
def of_this_run() -> Path:
    """Return the folder of this test run; whoever asks first, before it starts others, owns it."""
    if shared := os.environ.get(_VARIABLE):
        return Path(shared)
    folder = Path(tempfile.mkdtemp(prefix="spancat-daemon-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_VARIABLE] = str(folder)
    return folder


def once(name: str, make: Callable[[Path], object], *, under: Path | None = None) -> Path:
    """Return what `make` makes at the path it is given, made if it is not there yet.

    It is there whole or not at all; who asks while it is being made waits. Copy it before you change it.

    Args:
        name: tells it from everything else that is made once.
        make: makes a file or a directory, which must stand being renamed.
        under: a folder that outlives the test run; None: the one of this run.
    """
    folder = under or of_this_run()
    made = folder / name
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            begun = folder / f".{name}.begun"
            shutil.rmtree(begun, ignore_errors=True)  # of one that was killed
            make(begun)
            begun.rename(made)
    return made
