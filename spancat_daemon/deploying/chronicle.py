"""What happens to one deployment folder, told as structured events; each swap exactly once."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.deploying.refusal import Refused
from spancat_daemon.errors import RolledBack
from spancat_daemon.release.staging import Lacking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from spancat_daemon.after.steps import Done
    from spancat_daemon.after.swap import Swap
    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.snapshot import Request, Trigger, Unchanged
    from spancat_daemon.errors import Rejected, SpancatDaemonError
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import History, Record
    from spancat_daemon.release.recovery import Recovered
    from spancat_daemon.release.survey import AnyRelease

QUIET_TRIGGERS = frozenset({"change", "signal", "startup"})
"""Triggers that nobody waits for: finding nothing new again is not worth a line in the log."""


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MOST_FINDINGS: Final = 10
_HINTS = {
    errno.ENOSPC: "free some space, or keep fewer releases",
    errno.EDQUOT: "free some space, or keep fewer releases",
    errno.EROFS: "if this is a system service: name a folder above it in ReadWritePaths= of the unit",
    errno.EACCES: "let the daemon's user write there",
    errno.EPERM: "let the daemon's user write there",
}


class Chronicle:
    """Tells the log; the history is what it tells from.

    A swap is told after its commit, and the folder remembers up to which commit that was done. So whoever
    holds the folder next tells what a crash kept out of the log, unless the log file has it already.

    Attributes:
        target: whose events these are; follows a reload.
    """

    def __init__(
        self,
        target: Target,
        folder: DeploymentFolder,
        *,
        log: Logger,
        has_logged: Callable[[str, str], bool],
        is_the_log: bool = True,
    ) -> None:
        """Tells what happens.

        Args:
            target: whose folder.
            folder: it.
            log: told.
            has_logged: whether the log file has the event of a rule and a history digest.
            is_the_log: whether `log` is the one that is to tell each swap once; else whoever has that tells
                it later.
        """
        self.target = target
        self._folder = folder
        self._base = log
        self._has_logged = has_logged
        self._is_the_log = is_the_log
        self._told = 0  # number of the last commit that was told, also where no mark of it can be made
        self._refusal: tuple[Tree | None, str] | None = None
        self._unreadable: set[str] = set()

    @property
    def _log(self) -> Logger:
        return self._base.bind(rule=self.target.rule)

    def changed(self, tree: Tree) -> None:
        """A settled checkpoint has not been seen before."""
        self._log.info(
            "checkpoint.changed", source=self.target.source, files=len(tree.files), bytes=tree.total_bytes
        )

    def started(self, request: Request) -> None:
        """A settled checkpoint is staged from now on."""
        self._log.info(
            "snapshot.started", trigger=request.trigger, forced=request.forced, source=self._source(request)
        )

    def unchanged(self, request: Request, outcome: Unchanged) -> None:
        """Nothing new; told if content was compared for it, or somebody wants to know."""
        if outcome.read or request.trigger not in QUIET_TRIGGERS:
            self._log.info("snapshot.unchanged", trigger=request.trigger, release=outcome.live)

    def _source(self, request: Request) -> str:
        return request.origin or str(self.target.source)

    def rejected(self, error: Rejected, request: Request, tree: Tree | None) -> None:
        """A checkpoint must not go live; told once for the same files and reason, unless somebody asked."""
        before, self._refusal = self._refusal, (tree, str(error))
        if before == self._refusal and request.trigger in QUIET_TRIGGERS:
            return
        log = self._log.info if isinstance(error, RolledBack) else self._log.error
        source = self._source(request)
        log(
            "snapshot.rejected",
            trigger=request.trigger,
            reason=error.reason,
            path=error.where or source,
            hint=error.hint,
            source=source,
            **_found_out(error),
        )

    def failed(self, error: OSError | SpancatDaemonError, trigger: Trigger) -> str:
        """A snapshot could not be made; returns the reason as a user reads it."""
        if isinstance(error, OSError):
            reason = error.strerror or str(error) or type(error).__name__
            path = os.fsdecode(error.filename) if error.filename is not None else str(self._folder.path)
            full, hint, text = error.errno in _FULL, _HINTS.get(error.errno or 0, ""), f"{path}: {reason}"
        else:
            reason, path, hint = error.reason, error.where, error.hint
            full, text = isinstance(error, Lacking), str(error)
        if full:
            self._log.error("disk.low", reason=reason, path=path, hint=hint)
        self._log.error("snapshot.failed", trigger=trigger, reason=reason, path=path, hint=hint)
        return text

    def swapped(self, record: Record) -> Mapping[str, Any]:
        """A commit made a release live; returns the payload of its event."""
        payload = {**record.data, "history_seq": record.seq, "history_sha256": record.sha256}
        if not self._has_logged(str(record.data.get("rule", "")), record.sha256):
            self._tell_why(record)
            first = record.data.get("previous_release") is None
            self._log.info("release.published" if first else "release.overwrite", **payload)
        self._told = record.seq
        with contextlib.suppress(OSError):  # a full disk: at worst the event comes twice after a crash
            if self._is_the_log:
                self._folder.mark_announced(record.seq)
            elif not self._folder.announced_path.exists():
                self._folder.mark_announced(0)  # nothing was told yet; without it, nobody could know
        return payload

    def _tell_why(self, record: Record) -> None:
        """What a swap is besides: a way back, or a rejected snapshot made live after all."""
        data = record.data
        if "promoted" in data:
            self._log.warning(
                "release.promoted", release=data["release"], history_seq=record.seq, **data["promoted"]
            )
        elif data.get("trigger") in {"rollback", "recovery"}:
            reason = data.get("reason", "")
            self._log.warning(
                "release.rolled_back",
                release=data["release"],
                from_release=data["previous_release"],
                reason=reason or "somebody asked for it",
                automatic=bool(reason),
                history_seq=record.seq,
            )

    def missed(self, history: History) -> None:
        """Swaps that nobody told yet: of whoever has no log, and one that a crash kept out of it."""
        told = max(self._folder.announced(), self._told)
        if history.committed <= told or not self._is_the_log:
            return
        if not told and not self._folder.announced_path.exists():
            told = history.committed - 1  # the mark was lost: most of them were told
        for record in history.records():
            if record.kind == "commit" and record.seq > told:
                self.swapped(record)

    def recovered(self, recovered: Recovered, history: History) -> None:
        """What recovery found and did."""
        if recovered.actions:
            self._log.warning("release.recovered", actions=list(recovered.actions), release=history.live)
        self.missed(history)
        for path, reason in recovered.broken:
            if str(path) not in self._unreadable:
                self._unreadable.add(str(path))
                self._log.error("release.unreadable", path=path, reason=reason)

    def made_room(self, snapshots: Sequence[str]) -> None:
        """The disk was too full for a snapshot, and rejected ones were let go for it."""
        self._log.warning(
            "disk.low",
            reason="too little space: rejected snapshots were let go",
            path=self._folder.rejected_path,
            snapshots=list(snapshots),
            hint="free some space, or keep fewer releases",
        )

    def held_anew(self, live: str | None) -> None:
        """The folder was not the one any more that was held."""
        action = "the folder, or the lock in it, was deleted, moved or replaced: what is there now is held"
        self._log.warning("release.recovered", actions=[action], release=live)

    def notified(self, swap: Swap, done: Done) -> None:
        """Somebody was told of a swap, or could not be."""
        fields = {
            "release": swap.release,
            "kind": done.kind,
            "target": done.target,
            "tries": done.tries,
            "seconds": round(done.seconds, 6),
        }
        if done.ok:
            self._log.info("notification.done", **fields)
        else:
            log = self._log.error if done.required else self._log.warning
            log("notification.failed", reason=done.reason, required=done.required, **fields)

    def observed(self, swap: Swap, reason: str, checks: int) -> None:
        """A release's probation came to its end; `reason` is empty if all is well with it."""
        if reason:
            self._log.error("health.failed", release=swap.release, reason=reason, checks=checks)
        else:
            self._log.info("health.passed", release=swap.release, checks=checks)

    def stays(self, release: str, reason: str, why: str) -> None:
        """A release that should go stays live, for want of another."""
        self._log.error("release.rollback_failed", release=release, reason=reason, stays_because=why)

    def conclude_failed(self, release: str, error: Exception) -> None:
        """What was to follow a swap could not be brought to its end; the next start does it again."""
        self._log.warning("release.conclude_failed", release=release, reason=str(error))

    def corrupted(self, release: str, path: Path, faults: Sequence[str], *, live: bool) -> None:
        """The bytes of a stored release are not what they were."""
        self._log.error(
            "release.corrupted",
            release=release,
            live=live,
            path=path,
            findings=list(faults[:_MOST_FINDINGS]),
            found=len(faults),
            hint="roll back" if live else "it is never rolled back to; retention lets it go in time",
        )

    def pinned(self, release: str, *, pinned: bool) -> None:
        """Retention leaves a release alone from now on, or not any more."""
        self._log.info("release.pinned" if pinned else "release.unpinned", release=release)

    def pruned(self, gone: Sequence[AnyRelease]) -> None:
        """Retention let releases go."""
        for release in gone:
            self._log.info("release.pruned", release=release.id, path=release.path)

    def prune_failed(self, error: OSError | SpancatDaemonError) -> None:
        """Retention could not do its work; the next one tries again."""
        self._log.error("release.prune_failed", reason=str(error))


def _found_out(error: Rejected) -> dict[str, Any]:
    """What a verification found out about a snapshot that it rejected."""
    if not isinstance(error, Refused):
        return {}
    found = error.verification
    return {"snapshot": error.snapshot, "level": found.level, "gates": found.gates}
