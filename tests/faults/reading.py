"""Readers that never pause: ``python -m tests.faults.reading KIND DEPLOY PROGRESS KNOWN``.

Each pass appends a byte to ``PROGRESS``: ``.`` for one that found all well, ``-`` for one that a swap and
retention came before, where they may. It ends when its input does, and fails at the first thing amiss.
``KNOWN`` is a JSON file with what each kind may find.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.faults.judge import history, whole

if TYPE_CHECKING:
    from collections.abc import Callable

SWAPS_HELD: Final = 3

# What a shell holds: the directory once, then the lock in it, then what it reads relative to where it stands.
_IN_A_SHELL: Final = """
cd -P "$1" || exit 1
flock --shared release.json sh -c '
    test -e release.json || exit 9
    for pass in 1 2; do
        find . -type f ! -name release.json | LC_ALL=C sort | xargs sha256sum | sha256sum
    done
' || exit $?
"""


def load_live(deploy: Path, known: Any) -> bool:
    """As a server: what it loads is of one generation, byte for byte."""
    from spancat_daemon import load  # noqa: PLC0415  # the others do without spaCy

    nlp: Any = load(deploy, verify=True)
    pipes = {
        name: hashlib.sha256(nlp.get_pipe(name).model.to_bytes()).hexdigest() for name in known["pipes"][0]
    }
    assert pipes in known["pipes"], pipes
    return True


def hold_live(deploy: Path, _known: Any) -> bool:
    """Held while others go live: whole at first and at last."""
    from spancat_daemon.serving.listing import hold  # noqa: PLC0415  # as above

    held = hold(deploy)
    found = whole(held.directory)
    assert not found, found
    begun = len(history(deploy))
    while len(history(deploy)) < begun + 3 * SWAPS_HELD and not _told_to_end():
        assert (held.directory / "release.json").exists()
    found = whole(held.directory)
    assert not found, found
    assert held.lease.manifest().id == held.release.id
    held.lease.release()
    return True


def read_once(deploy: Path, _known: Any) -> bool:
    """Resolved once, and not held: whole, or let go of meanwhile."""
    fd = os.open(deploy / "current", os.O_RDONLY | os.O_DIRECTORY)
    try:
        directory = Path(f"/proc/self/fd/{fd}")
        try:
            name = json.loads((directory / "release.json").read_bytes())["id"]
            found = whole(directory)
        except FileNotFoundError:
            name, found = str(directory.readlink()).removesuffix(" (deleted)"), ["release.json is missing"]
        if not found:
            return True
        assert all(fault.endswith("missing") or "can't be read" in fault for fault in found), found
        let_go = {line["release"] for line in history(deploy) if line["kind"] == "pruned"}
        in_trash = "/trash/" in str(directory.readlink())
        assert in_trash or Path(name).name in let_go, (name, found)
        return False
    finally:
        os.close(fd)


def hold_in_a_shell(deploy: Path, known: Any) -> bool:
    """With what every machine has."""
    done = subprocess.run(
        ["bash", "-c", _IN_A_SHELL, "bash", deploy / "current"], capture_output=True, text=True, check=False
    )
    # Let go of between the two: told by the file that is no more, before anything was read
    if done.returncode == 9 or "release.json: No such file" in done.stderr or "getcwd" in done.stderr:
        return False
    assert done.returncode == 0, (done.returncode, done.stderr)
    first, second = (line.split()[0] for line in done.stdout.splitlines())
    assert first == second
    assert first in known["listings"], done.stdout
    return True


READERS: Final[dict[str, Callable[[Path, Any], bool]]] = {
    "load": load_live,
    "hold": hold_live,
    "once": read_once,
    "shell": hold_in_a_shell,
}


def _told_to_end() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    a_kind, a_deploy, a_progress, a_known = sys.argv[1:]
    what_is_known = json.loads(Path(a_known).read_text())
    with Path(a_progress).open("ab", buffering=0) as progress:
        while not _told_to_end():
            progress.write(b"." if READERS[a_kind](Path(a_deploy), what_is_known) else b"-")
