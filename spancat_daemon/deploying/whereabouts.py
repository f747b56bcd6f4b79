"""Where a deployment folder lay when it was last held, so that nothing is published beside it.

A folder whose disk is not mounted looks as if it had never been there: its mount point is empty. Whoever
published into that would fill another disk, give numbers a second time, and be gone, with all that was made
live meanwhile, the moment the disk is back. So the state directory remembers of each folder where it was: on
which device in this boot, and, over boots, at which place inside of which kind of file system. Both stay the
same in the mount namespace of a service, whatever it sees where.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release.history import History

if TYPE_CHECKING:
    from spancat_daemon.release.folder import DeploymentFolder

_MOUNTS: Final = Path("/proc/self/mountinfo")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Elsewhere(SpancatDaemonError):  # noqa: N818  # a state of the machine
    """A deployment folder with a history was on another disk; what is in its place now has none of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads to.

    Attributes:
        device: of the file system that it is, or would be, made on.
        boot: which boot of the machine that number is of.
        kind: of file system; empty if not known.
        inside: the path inside of that file system; empty if not known.
    """

    device: int
    boot: str
    kind: str
    inside: str

    def differs(self, now: Place) -> bool:
        """Whether the same path leads to another file system now, or to another place of it."""
        if self.boot == now.boot and self.device != now.device:
            return True
        return bool(self.inside and now.inside) and (self.kind, self.inside) != (now.kind, now.inside)


class Whereabouts:
    """What is remembered of one deployment folder; a full disk makes it forget, no more."""

    def __init__(self, state_dir: Path, deploy: Path) -> None:
        """Reads and writes nothing yet."""
        self.path = _remembering(state_dir, deploy)
        self._deploy = deploy
        self._place: Place | None = None
        self._known: tuple[Place, int, str] | None = None

    def check(self, folder: DeploymentFolder) -> None:
        """Look whether the folder, which is about to be held, is where it was; nothing was made in it yet.

        A folder that somebody deleted, moved or cut the history of is none of this: only one that lies
        elsewhere, and does not know the last record that it is known to have had, is refused.

        Raises:
            Elsewhere: it is not; says what to do.
            OSError: it can't be read.
        """
        self._place = place_of(self._deploy)
        known = self._read()
        if known is None:
            return
        before, seq, sha256 = known
        if not seq or not before.differs(self._place):
            return
        if any(record.sha256 == sha256 for record in History.reading(folder.history_path).records()):
            return
        raise Elsewhere(
            f"was on another disk, with a history of {seq} records, and is not there",
            where=str(folder.path),
            hint=f"mount it again; if it is to begin anew where it is now, delete {self.path}",
        )

    def remember(self, history: History) -> None:
        """Remember that the folder with this history lies where it did when it came to be held.

        Not where its path leads to now, which may be elsewhere already.
        """
        if self._place is None:
            return
        with contextlib.suppress(OSError):
            known = (self._place, history.seq, history.sha256)
            if known == self._known:
                return
            content = {
                "deploy": os.fsdecode(self._deploy).encode("utf-8", "backslashreplace").decode(),
                **asdict(known[0]),
                "history_seq": known[1],
                "history_sha256": known[2],
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_name(f"{self.path.name}.new")
            fresh.write_bytes(orjson.dumps(content))
            fresh.replace(self.path)
            self._known = known

    def _read(self) -> tuple[Place, int, str] | None:
        try:
            content = orjson.loads(self.path.read_bytes())
            place = Place(
                int(content["device"]), str(content["boot"]), str(content["kind"]), str(content["inside"])
            )
            return place, int(content["history_seq"]), str(content["history_sha256"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None


def is_remembered(state_dir: Path, deploy: Path) -> bool:
    """Whether anything is remembered of a deployment folder, also if it can't be read."""
    return os.path.lexists(_remembering(state_dir, deploy))


def _remembering(state_dir: Path, deploy: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(deploy)).hexdigest()
    return state_dir / "folders" / f"{digest[:16]}.json"


def place_of(path: Path) -> Place:
    """Where a path leads to, also if nothing is there yet.

    Raises:
        OSError: what is above it can't be looked at.
    """
    there = path.resolve()
    while not there.exists():
        there = there.parent
    kind, inside = _inside(os.fsencode(path.resolve()))
    boot = ""
    with contextlib.suppress(OSError):
        boot = _BOOT.read_text(encoding="ascii").strip()
    return Place(there.stat().st_dev, boot, kind, inside)


def _inside(path: bytes) -> tuple[str, str]:
    """Kind of the file system that a path leads into, and the path inside of it; see proc(5)."""
    found = ("", "")
    longest = -1
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MOUNTS.read_bytes().splitlines():
            fields, _, more = line.partition(b" - ")
            root, point = (_OCTAL.sub(_character, field) for field in fields.split()[3:5])
            below = point.rstrip(b"/") + b"/"
            if (path + b"/").startswith(below) and len(below) >= longest:  # of equal ones the last is on top
                longest = len(below)
                inside = root.rstrip(b"/") + b"/" + (path + b"/")[len(below) :].rstrip(b"/")
                found = more.split()[0].decode("ascii"), inside.decode("utf-8", "backslashreplace")
    return found


def _character(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])
