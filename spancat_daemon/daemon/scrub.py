"""Scrubbing: reading what is stored again and again, slowly, to find what has rotted before it is needed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from spancat_daemon.daemon.remembered import read_times, write_times
from spancat_daemon.errors import SpancatDaemonError, Vanished
from spancat_daemon.release import lease
from spancat_daemon.release.manifest import BadManifest
from spancat_daemon.verify.digests import Finding, digests_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spancat_daemon.deploying.deployment import Deployment
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.verify.digests import Sums

SOON_S: Final = 60.0
"""After the start, what is due waits this long: a daemon that starts has more urgent work."""

LOOK_EVERY_S: Final = 60.0
"""How often due times are compared with the clock, which may have been set."""

RETRY_S: Final = 3600.0
"""After a scrub that failed, the time to the next attempt at it."""

_STOP_WITHIN_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 1.0  # then a new rate is looked at


class _GivenUp(Exception):  # noqa: N818  # never leaves this module
    """Scrubbing was stopped, or turned off."""


class Pace:
    """Keeps whoever reads to a rate, what it does between two pieces included; a pause is not made up for."""

    def __init__(
        self, *, rate: Callable[[], int], wait: Callable[[float], None], monotonic: Callable[[], float]
    ) -> None:
        """Asks for the `rate` in bytes a second each time; 0: as fast as it goes. `wait` may raise."""
        self._rate = rate
        self._wait = wait
        self._monotonic = monotonic
        self._debt_bytes = 0.0
        self._at_s = monotonic()

    def __call__(self, count: int) -> None:
        """Is told of `count` bytes that were read; waits for as long as those before them should take."""
        self._pay()
        self._wait(0.0)
        while self._debt_bytes > 0 and (rate := self._rate()) > 0:
            self._wait(min(self._debt_bytes / rate, _LONGEST_PAUSE_S))
            self._pay()
        self._debt_bytes += count

    def _pay(self) -> None:
        now_s = self._monotonic()
        rate = self._rate()
        passed = (now_s - self._at_s) * rate
        self._debt_bytes = max(self._debt_bytes - passed, 0.0) if rate > 0 else 0.0
        self._at_s = now_s


class LastScrubs:
    """When each folder was last scrubbed from one end to the other, over restarts.

    A file that is lost or damaged only means that folders are scrubbed sooner.
    """

    def __init__(self, path: Path) -> None:
        """Reads `path`, if it is there."""
        self._path = path
        self._times = read_times(path)

    def last(self, folder: DeploymentFolder, now: datetime) -> datetime | None:
        """When a folder was scrubbed, else when its oldest release was made; None if it has none.

        A release was read when it was made, so none is due before it is old, also where no file can be kept.
        """
        last = self._times.get(_name(folder))
        if last is None:
            created = [datetime.fromisoformat(one.manifest.created_at) for one in folder.releases()]
            if not created:
                return None
            last = min(created)
        # A clock that was ahead must not put it off for years.
        self._times[_name(folder)] = last = min(last, now)
        return last

    def mark(self, folder: DeploymentFolder, now: datetime, *, among: Sequence[DeploymentFolder]) -> None:
        """Remembers that a folder was scrubbed, and only of those it is among; a full disk is no fault."""
        self._times[_name(folder)] = now
        kept = set(map(_name, among))
        self._times = {name: last for name, last in self._times.items() if name in kept}
        write_times(self._path, self._times)


class Scrubber:
    """Reads all releases of the deployment folders in turn, in a thread of its own.

    Slowly, and behind everybody else at the disk where the kernel's scheduler allows it. The thread keeps its
    CPU priority: it would stop the whole daemon if it were made to wait while it holds the interpreter.

    A release is leased while it is read, so that retention leaves it alone for so long; one that went before
    its turn is no finding. What can't be read for a reason that says nothing of its bytes, such as a missing
    permission, is logged as ``scrub.incomplete`` and not reported as corrupted.
    """

    def __init__(
        self,
        *,
        deployments: Callable[[], Sequence[Deployment]],
        state_path: Path,
        on_corrupted: Callable[[Deployment, Release, Sequence[Finding]], None],
        on_unreadable: Callable[[Deployment, Path, str, bool], None] | None = None,
        log: Logger,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepares; nothing is read before `configure` and `start`.

        Args:
            deployments: those whose folders are scrubbed; asked again each time.
            state_path: where it is kept when each was scrubbed.
            on_corrupted: is told of each corrupted release, once each time it is scrubbed, in the scrubber's
                thread, when the release is not leased any more. `Release.live` is as at that moment.
            on_unreadable: is told likewise of each release whose manifest can't be read any more: its path,
                why, and whether it is live. Without it that is logged as ``release.unreadable``.
            log: for all else there is to say.
            monotonic: seconds.
            now: the time, aware.
        """
        self._deployments = deployments
        self._on_corrupted = on_corrupted
        self._on_unreadable = on_unreadable or self._tell_unreadable
        self._log = log
        self._monotonic = monotonic
        self._now = now
        self._last = LastScrubs(state_path)
        self._failed_s: dict[str, float] = {}
        self._every_s = 0.0
        self._rate_bytes = 0
        self._stopping = threading.Event()
        self._nudged = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)

    def configure(self, *, every_s: float, rate_bytes: int) -> None:
        """Scrubs each folder so often, and so many bytes a second, from now on; `every_s` 0: never.

        Of a scrub under way too: a new rate counts within a second, and 0 makes it give up.
        """
        self._every_s, self._rate_bytes = every_s, rate_bytes
        self._nudged.set()

    def start(self) -> None:
        """Starts the thread; what is due is scrubbed soon, not at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends within a second; a folder that is being scrubbed is scrubbed from its beginning next time."""
        self._stopping.set()
        self._nudged.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_WITHIN_S)  # longer only at a disk that doesn't answer

    def turn(self) -> float:
        """Scrubs every folder that is due; returns the seconds after which to look again.

        For the thread, and for whoever has another one.
        """
        deployments = self._deployments()
        for deployment in deployments:
            if self._stopping.is_set() or not self._every_s:
                break
            folder = deployment.folder
            try:
                if self._is_due(folder) and self._scrub(deployment):
                    self._last.mark(folder, self._now(), among=[one.folder for one in deployments])
            except _GivenUp:
                break
            except (OSError, SpancatDaemonError) as error:
                self._failed_s[_name(folder)] = self._monotonic()
                self._log.warning("scrub.failed", rule=deployment.target.rule, reason=_reason(error))
        return min(LOOK_EVERY_S, self._every_s)

    def _run(self) -> None:
        read_when_idle()
        began_s = self._monotonic()
        while not self._stopping.is_set():
            wait_s: float | None = None
            if self._every_s:
                wait_s = began_s + min(SOON_S, self._every_s) - self._monotonic()
                if wait_s <= 0:
                    wait_s = self.turn()
            self._nudged.wait(wait_s)
            self._nudged.clear()

    def _is_due(self, folder: DeploymentFolder) -> bool:
        failed_s = self._failed_s.get(_name(folder))
        if failed_s is not None and self._monotonic() < failed_s + min(RETRY_S, self._every_s):
            return False
        now = self._now()
        last = self._last.last(folder, now)
        return last is not None and last + timedelta(seconds=self._every_s) <= now

    def _scrub(self, deployment: Deployment) -> bool:
        """Reads all of a folder's releases; False if the folder is gone."""
        folder, log = deployment.folder, self._log.bind(rule=deployment.target.rule)
        began_s = self._monotonic()
        pace = Pace(rate=lambda: self._rate_bytes, wait=self._wait, monotonic=self._monotonic)
        sums: Sums = {}
        read_bytes = corrupted = incomplete = 0

        def count(piece_bytes: int) -> None:
            nonlocal read_bytes
            read_bytes += piece_bytes
            pace(piece_bytes)

        survey = folder.survey()
        if not survey.releases and not folder.releases_path.is_dir():
            return False  # deleted, or on a volume that is not mounted now
        live = {folder.current, folder.releases_path / str(survey.current.id)}
        for path, reason in survey.broken:
            self._on_unreadable(deployment, path, reason, path in live)
        for release in sorted(survey.releases, key=lambda release: not release.live):  # the live one first
            findings = _examine(folder, release, count, sums)
            if any(finding.damage for finding in findings):
                corrupted += 1
                self._on_corrupted(deployment, _as_of_now(folder, release), findings)
            elif findings:
                incomplete += 1
                reasons = "; ".join(map(str, findings))
                log.warning("scrub.incomplete", release=release.id, reason=reasons)
        self._failed_s.pop(_name(folder), None)
        log.info(
            "scrub.done",
            releases=len(survey.releases),
            corrupted=corrupted,
            incomplete=incomplete,
            unreadable=len(survey.broken),
            bytes_read=read_bytes,
            scrub_s=round(self._monotonic() - began_s, 3),
        )
        return True

    def _tell_unreadable(self, deployment: Deployment, path: Path, reason: str, live: bool) -> None:
        self._log.error(
            "release.unreadable", rule=deployment.target.rule, path=path, reason=reason, live=live
        )

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds) or not self._every_s:
            raise _GivenUp


def read_when_idle() -> bool:
    """Has the calling thread's reading wait for everybody else's; False if the system won't have it.

    The kernel's I/O scheduler may know no such thing, and a sandbox may forbid it: the pace holds anyway.
    """
    number = _IOPRIO_SET.get(platform.machine()) if sys.maxsize > 1 << 32 else None
    if number is None:
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    done: int = syscall(
        ctypes.c_long(number), ctypes.c_int(_WHO_PROCESS), ctypes.c_int(0), ctypes.c_int(_IDLE)
    )
    return done == 0


_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_WHO_PROCESS: Final = 1  # with 0: the calling thread
_IDLE: Final = 3 << 13


def _examine(
    folder: DeploymentFolder, release: Release, pace: Callable[[int], None], sums: Sums
) -> list[Finding]:
    """Compares a release with its manifest; no findings if it went meanwhile."""
    # With swap = "exchange" a release moves when it is replaced, and when it comes back.
    places = dict.fromkeys((release.path, folder.releases_path / release.id, folder.current))
    for path in places:
        try:
            held = lease.take(path)
        except Vanished:
            continue
        except OSError as error:
            return [Finding("", "unreadable", f"can't be held: {error.strerror}")]
        with held:
            if not _is(held, release, path):
                continue
            findings = digests_at(held.directory_fd, release.manifest, pace=pace, sums=sums)
            return findings if any(_leads_to(place, held) for place in places) else []
    return []


def _is(held: lease.Lease, release: Release, path: Path) -> bool:
    try:
        return held.manifest().id == release.id
    except BadManifest:
        return path.name == release.id  # it rotted since it was looked at


def _leads_to(path: Path, held: lease.Lease) -> bool:
    """Whether that is its place now; if none is, somebody deleted it without asking for the lease."""
    try:
        return os.path.samestat(path.stat(), os.fstat(held.directory_fd))
    except OSError:
        return False


def _as_of_now(folder: DeploymentFolder, release: Release) -> Release:
    """The release as it lies now, hours later perhaps: it may be live, or not be any more."""
    return next((found for found in folder.releases() if found.id == release.id), release)


def _name(folder: DeploymentFolder) -> str:
    # A match of a glob can be called anything.
    return os.fsencode(folder.path).decode("utf-8", "backslashreplace")


def _reason(error: OSError | SpancatDaemonError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)
