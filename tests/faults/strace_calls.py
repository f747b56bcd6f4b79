"""System calls as strace records them, and what can be done to each."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CHANGING: Final = (
    "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat",
    "rmdir", "mkdir", "mkdirat", "fsync", "fdatasync", "write", "pwrite64", "ftruncate", "truncate",
    "chmod", "fchmod", "fchmodat", "copy_file_range", "utimensat", "ioctl", "flock",
)  # fmt: skip
"""Everything that changes a file system, makes changes stay, or says who may change it."""

OPENING: Final = ("open", "openat")
"""Changes something if it creates; whatever for, it is what fails where descriptors or permissions lack."""

READING: Final = (
    "pread64", "preadv", "read", "getdents64", "readlink", "readlinkat", "stat", "lstat", "fstat",
    "newfstatat", "statx", "statfs", "fstatfs", "lseek",
)  # fmt: skip

ERRORS: Final = ("ENOSPC", "EIO", "EROFS", "EMFILE", "EINTR", "EACCES")
OPENING_ERRORS: Final = ("EIO", "EMFILE", "EACCES")

_LINE = re.compile(r"^(\d+) +(\w+)\((.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of a recorded run.

    Attributes:
        name: of the call.
        number: which of that name it is, from 1, among those of its thread.
        text: its arguments and what came of it, as strace writes them.
    """

    name: str
    number: int
    text: str

    @property
    def changes(self) -> bool:
        return self.name in CHANGING or (self.name in OPENING and "O_CREAT" in self.text)

    @property
    def bytes(self) -> int:
        """How many bytes it was asked to write, 0 if none."""
        if self.name not in {"write", "pwrite64", "copy_file_range"}:
            return 0
        match = re.search(r"= (\d+)$", self.text)
        return int(match[1]) if match else 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a call: ``signal=SIGKILL``, ``error=EIO``, ``retval=0``; or to all from it on."""

    call: Call
    what: str
    lasting: bool = False

    def options(self, log: Path) -> list[str]:
        """Arguments of a strace that does it and writes what it did to `log`."""
        when = f"{self.call.number}{'+' if self.lasting else ''}"
        name = self.call.name
        return ["-f", "-o", str(log), "-e", f"trace={name}", "-e", f"inject={name}:{self.what}:when={when}"]

    def __str__(self) -> str:
        lasting = " from then on" if self.lasting else ""
        return f"{self.what}{lasting} at {self.call.name} #{self.call.number}({self.call.text}"


def recording(log: Path) -> list[str]:
    """Arguments of a strace that records everything that could be hurt."""
    names = ",".join((*CHANGING, *OPENING, *READING))
    return ["-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={names}"]


def recorded(log: Path, under: Path, *, thread: int | None = None) -> list[Call]:
    """The calls of a recorded run that have to do with what is below `under`, in order.

    Args:
        log: what strace wrote.
        under: a folder.
        thread: whose; None: of the one that called first.
    """
    calls: list[Call] = []
    numbers = Counter[str]()
    chosen = str(thread or "")
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        caller, name, text = match.groups()
        chosen = chosen or caller
        if caller != chosen:
            continue
        numbers[name] += 1
        if str(under) in text and not text.endswith("(Inappropriate ioctl for device)"):
            calls.append(Call(name, numbers[name], text))
    return calls


def happened(log: Path) -> bool:
    """Whether a fault was put in, as the strace that was to do so says."""
    text = log.read_text(errors="replace")
    return "(INJECTED)" in text or "killed by SIGKILL" in text


def kills(calls: Iterable[Call]) -> Iterator[Fault]:
    """Death before each call that changes something; after the last one there is nothing to interrupt."""
    for call in calls:
        if call.changes:
            yield Fault(call, "signal=SIGKILL")


def errors(calls: Iterable[Call]) -> Iterator[Fault]:
    """What each call may fail with: once, and from then on if it changes or opens something."""
    for call in calls:
        if not call.changes and call.name not in OPENING:
            yield Fault(call, "error=EIO")
            continue
        for error in ERRORS if call.changes else OPENING_ERRORS:
            yield Fault(call, f"error={error}")
            if error != "EINTR":  # what is interrupted for ever is no fault but a machine that hangs
                yield Fault(call, f"error={error}", lasting=True)


def lies(calls: Iterable[Call]) -> Iterator[Fault]:
    """Writes that say they wrote all, or a part, and wrote nothing."""
    for call in calls:
        if call.bytes:
            yield Fault(call, f"retval={call.bytes}")
            if call.bytes > 1:
                yield Fault(call, f"retval={call.bytes // 2}")


@lru_cache(maxsize=1)
def untraceable() -> str:
    """Why nothing can be traced here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, check=False
    )
    return f"this machine does not let strace trace: {tried.stderr.strip()}" if tried.returncode else ""
