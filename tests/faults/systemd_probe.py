"""What somebody who has taken over the service could do: tried from inside the unit's sandbox, told as JSON.

Runs on the machine of its own, in place of the daemon, with everything else as in the unit.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWUSER = 0x10000000


def main(written: str, others_pid: str) -> None:
    """Tries all; what came of each goes to standard output.

    Args:
        written: folders to write to, divided by colons.
        others_pid: a process of root's.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def called(result: int) -> None:
        if result < 0:
            raise OSError(ctypes.get_errno(), "")

    def set_user_id() -> None:
        file = Path("/var/lib/spancat-daemon/set-user-id")
        file.touch()
        try:
            file.chmod(0o4755)
        finally:
            file.unlink()

    def map_writable_and_executable() -> None:
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()

    tried: dict[str, Callable[[], object]] = {
        **{f"write {folder}": partial(_write, Path(folder)) for folder in written.split(":")},
        "become root": lambda: os.setuid(0),
        "open a socket of the network": lambda: socket.socket(socket.AF_INET).close(),
        "open a socket of packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "open a unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "make a namespace": lambda: called(libc.unshare(_CLONE_NEWUSER)),
        "mount": lambda: called(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
        "set the host's name": lambda: called(libc.sethostname(b"taken", 5)),
        "trace": lambda: called(libc.ptrace(16, int(others_pid), None, None)),
        "map memory to write and run": map_writable_and_executable,
        "set a file's set-user-id bit": set_user_id,
        "signal a process of root's": lambda: os.kill(int(others_pid), signal.SIGCONT),
        "see a process of root's": lambda: os.stat(f"/proc/{others_pid}"),  # noqa: PTH116  # as a call
        "open a disk": lambda: os.close(os.open("/dev/vda", os.O_RDONLY)),
        "be scheduled in real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    }
    said = {name: _outcome(attempt) for name, attempt in tried.items()}
    sys.stdout.write(json.dumps(said) + "\n")


def _write(folder: Path) -> None:
    file = folder / "written-by-the-probe"
    file.touch()
    file.unlink()


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    main(*sys.argv[1:])
