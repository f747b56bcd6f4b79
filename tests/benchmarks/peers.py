"""What people use instead, as processes, and what a reader saw of what they made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from tests.benchmarks.usage import usage
from tests.faults.judge import generation

if TYPE_CHECKING:
    from types import TracebackType

    from tests.benchmarks.usage import Usage

_LOOK_S: Final = 0.0005
_LOOK_AT_MIRROR_S: Final = 0.01
_STILL_S: Final = 0.1
"""How long a mirror must have stood still to count as something that a reader can have got."""
_TEMPORARY: Final = "."


@dataclass(frozen=True, slots=True)
class Peer:
    """A way of getting checkpoints from where they are trained to where they are loaded.

    Attributes:
        name: for tables.
        program: what has to be on PATH.
        package: the Debian package that has it.
        command: for bash, with ``$SRC``, ``$DST`` and ``$SCRIPT`` in its environment.
        script: what is in ``$SCRIPT``.
        gives: a link ``$DST/current`` to copies, a mirror ``$DST/current``, or archives in a repository.
        rare: whether it copies so rarely that there is little to be learned within seconds.
    """

    name: str
    program: str
    package: str
    command: str
    gives: Literal["link", "mirror", "restic", "borg"]
    script: str = ""
    rare: bool = False

    @property
    def lacking(self) -> str:
        """What this machine lacks for it; empty if it lacks nothing."""
        return (
            "" if which(self.program) else f"{self.program} is not installed: apt-get install {self.package}"
        )


_COPY: Final = (
    'new="$DST/$(date +%s%N)" && cp -r "$SRC" "$new" && sync -f "$new" && ln -sfn "$new" "$DST/current"'
)
_LINKED: Final = (
    'new="$DST/$(date +%s%N)"; '
    'rsync -a --delete --link-dest="$DST/current/" "$SRC/" "$new/" && ln -sfn "$new" "$DST/current"'
)


def _polling(seconds: int) -> str:
    return f"""\
while sleep {seconds}; do
  now="$(find "$SRC" -type f -printf '%p %s %T@\\n' | sort)"
  [ "$now" = "$last" ] && continue
  last="$now"; {_COPY}
done"""


PEERS: Final = (
    Peer(
        "`inotifywait`, `rsync --link-dest`, at once",
        "inotifywait",
        "inotify-tools rsync",
        f'while inotifywait -qq -r -e close_write,delete,move "$SRC"; do\n  {_LINKED}\ndone',
        "link",
    ),
    Peer(
        "`inotifywait`, `rsync --link-dest`, after 1 s of quiet",
        "inotifywait",
        "inotify-tools rsync",
        f"""\
inotifywait -m -r -q -e close_write,delete,move "$SRC" | while read -r _; do
  while read -r -t 1 _; do :; done
  {_LINKED}
done""",
        "link",
    ),
    Peer(
        "`lsyncd`, delay 1 s",
        "lsyncd",
        "lsyncd",
        'exec lsyncd -nodaemon -log scarce -delay 1 -rsync "$SRC" "$DST/current"',
        "mirror",
    ),
    Peer(
        "`watchmedo shell-command --drop`, `cp -r`",
        "watchmedo",
        "python3-watchdog",
        """exec watchmedo shell-command --recursive --drop --command='sh "$SCRIPT"' "$SRC\"""",
        "link",
        _COPY,
    ),
    Peer(
        "`cp -r` + `sync -f` all the time",
        "cp",
        "coreutils",
        f"while sleep 0.05; do {_COPY}; done",
        "link",
    ),
    Peer("polling every 1 s, `cp -r`", "find", "findutils", _polling(1), "link"),
    Peer("polling every 15 s, `cp -r`", "find", "findutils", _polling(15), "link", rare=True),
    Peer(
        "`restic backup` every 3 s",
        "restic",
        "restic",
        'restic init -q && while sleep 3; do restic backup -q "$SRC"; done',
        "restic",
        rare=True,
    ),
    Peer(
        "`borg create` every 3 s",
        "borg",
        "borgbackup",
        'borg init -e none && cd "$SRC" && while sleep 3; do borg create "::$(date +%s%N)" .; done',
        "borg",
        rare=True,
    ),
)


def which(program: str) -> str | None:
    """Where a program is: on PATH, or beside this interpreter."""
    return shutil.which(program, path=_path())


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}"


@dataclass(frozen=True, slots=True)
class View:
    """What a reader could get, from some moment on.

    Attributes:
        since_s: by the wall clock; 0: nobody looked.
        files: SHA-256 of each file, by path.
    """

    since_s: float
    files: dict[str, str]


class Running:
    """A peer at work, in a process group of its own; a context manager, which ends it.

    Attributes:
        used: by all of it, once it was ended.
    """

    used: Usage

    def __init__(self, peer: Peer, source: Path, folder: Path) -> None:
        self._peer = peer
        self._folder = folder
        self._target = folder / "made"
        self._target.mkdir(parents=True)
        script = folder / "script"
        script.write_text(peer.script)
        self._environ = {
            **os.environ,
            "PATH": _path(),
            "SRC": str(source),
            "DST": str(self._target),
            "SCRIPT": str(script),
            "RESTIC_REPOSITORY": str(self._target / "repository"),
            "RESTIC_PASSWORD": "x",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "BORG_REPO": str(self._target / "repository"),
            "BORG_BASE_DIR": str(folder / "borg"),
        }
        self.watcher = Watcher(self._target / "current", mirror=peer.gives == "mirror")
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with (self._folder / "said").open("wb") as said:
            self._process = subprocess.Popen(
                ["bash", "-c", self._peer.command],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        if self._peer.gives in {"link", "mirror"}:
            self.watcher.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.used = usage(self._process.pid)
        ended_early = self._process.poll()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        if self._peer.gives in {"link", "mirror"}:
            self.watcher.__exit__(kind, error, trace)
        if kind is None and ended_early is not None:
            raise AssertionError(f"{self._peer.name} ended:\n{(self._folder / 'said').read_text()}")

    def views(self) -> list[View]:
        """All that a reader could get of it, in its order; it has been ended."""
        if self._peer.gives == "restic":
            return self._restic_archives()
        if self._peer.gives == "borg":
            return self._borg_archives()
        return self.watcher.views()

    def _run(self, *command: str) -> bytes:
        return subprocess.run(command, env=self._environ, check=True, capture_output=True).stdout

    def _restic_archives(self) -> list[View]:
        self._run("restic", "unlock", "--remove-all")  # it was ended in the midst of a backup, perhaps
        listed = json.loads(self._run("restic", "snapshots", "--json"))
        prefix = self._environ["SRC"]
        return [
            View(0.0, _of_tar(self._run("restic", "dump", one["short_id"], prefix), prefix)) for one in listed
        ]

    def _borg_archives(self) -> list[View]:
        self._run("borg", "break-lock")
        listed = json.loads(self._run("borg", "list", "--json"))["archives"]
        archives = [self._run("borg", "export-tar", f"::{one['name']}", "-") for one in listed]
        return [View(0.0, _of_tar(archive, "")) for archive in archives]


class Watcher:
    """Looks all the time where a link leads to, or whether a mirror stands still; a context manager."""

    def __init__(self, current: Path, *, mirror: bool = False) -> None:
        self._current = current
        self._seen: list[tuple[float, Path]] = []
        self._views: list[View] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._mirror if mirror else self._link, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def views(self) -> list[View]:
        """What was there to be got, in its order."""
        if not self._views:
            self._views = [View(since, content(path)) for since, path in self._seen]
        return self._views

    def count(self) -> int:
        """How many different ones it has seen."""
        return len(self._seen) + len(self._views)

    def _link(self) -> None:
        last = ""
        while not self._stop.is_set():
            try:
                now = str(self._current.readlink())
            except OSError:
                now = last
            if now != last:
                self._seen.append((time.time(), self._current.parent / now))
                last = now
            time.sleep(_LOOK_S)

    def _mirror(self) -> None:
        judged: object = None
        last: object = None
        since, since_wall = 0.0, 0.0
        while not self._stop.wait(_LOOK_AT_MIRROR_S):
            now = _stamps(self._current)
            if now != last:
                last, since, since_wall = now, time.monotonic(), time.time()
            elif now and now != judged and time.monotonic() - since >= _STILL_S:
                found = content(self._current)
                if _stamps(self._current) == now:
                    judged = now
                    self._views.append(View(since_wall, found))


def content(folder: Path) -> dict[str, str]:
    """The digests of a copy, but of what only a release has."""
    found = generation(folder)
    return {path: digest for path, digest in found.items() if path not in {"release.json", "model.bin"}}


def _stamps(folder: Path) -> list[tuple[str, int, int, int]]:
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            if name.startswith(_TEMPORARY):
                continue
            try:
                status = os.stat(os.path.join(where, name))  # noqa: PTH116, PTH118  # a hundred times a second
            except OSError:
                continue
            path = os.path.relpath(where, folder) + "/" + name
            found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return sorted(found)


def _of_tar(data: bytes, prefix: str) -> dict[str, str]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                name = f"/{member.name.lstrip('/')}".removeprefix(prefix).lstrip("/").removeprefix("./")
                found[name] = hashlib.sha256(file.read()).hexdigest()
    return found
