"""Snapshots that did not pass, and what is remembered of them, so that the same is not asked twice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from spancat_daemon.errors import Rejected
from spancat_daemon.release import rejects

if TYPE_CHECKING:
    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.release.staging import Staged
    from spancat_daemon.verify.verdict import Verification
    from spancat_daemon.verify.verification import Stamps, Terms

LIMIT_AGAIN_S: Final = 3600.0
"""A snapshot that came to a limit of time or memory is tried again after so long: perhaps it was not its own
fault, but that of a busy machine."""


class Refused(Rejected):
    """A snapshot that did not pass its verification.

    Attributes:
        snapshot: the id it is kept as among the rejected ones.
        verification: what was found out.
    """

    def __init__(self, snapshot: str, verification: Verification, *, where: str, hint: str) -> None:
        super().__init__(verification.reason, where=where, hint=hint)
        self.snapshot = snapshot
        self.verification = verification

    @property
    def by_limit(self) -> bool:
        """Whether it came to a limit of time or memory."""
        verdict = self.verification.verdict
        return verdict is not None and verdict.fault == "limit"


class Underivable(Rejected):
    """A checkpoint of which what is to be released could not be made.

    Attributes:
        by_limit: whether it came to a limit of time or memory.
    """

    def __init__(self, reason: str, *, by_limit: bool, where: str, hint: str) -> None:
        super().__init__(reason, where=where, hint=hint)
        self.by_limit = by_limit


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was rejected, as long as nothing changes that it was held against.

    Attributes:
        tree: stamps of the checkpoint.
        terms: stamps of the files that the rule's terms come from.
        live: id of the release that was live.
        error: why.
        until_s: monotonic time at which it is to be tried again all the same; None: never.
    """

    tree: Tree
    terms: Stamps
    live: str | None
    error: Rejected
    until_s: float | None = None


def refuse_known(folder: DeploymentFolder, staged: Staged, terms: Terms, now: datetime) -> None:
    """Raises what was found out before about the same content: it need not be asked again."""
    kept = rejects.refusal(folder, staged.content_sha256, terms.sha256)
    if kept is None:
        return
    age_s = (now - datetime.fromisoformat(kept.manifest.created_at)).total_seconds()
    if kept.manifest.verification.get("fault") != "limit" or 0 <= age_s < LIMIT_AGAIN_S:
        raise Rejected(
            f"was rejected before, as {kept.id}: {kept.manifest.verification.get('reason', '')}",
            hint="`snapshot --force` verifies it again, `promote` overrules",
        )


def keep_refused(
    folder: DeploymentFolder,
    staged: Staged,
    manifest: Manifest,
    verification: Verification,
    *,
    last: int,
    durability: Durability,
) -> Refused:
    """Keeps what was rejected, to be looked into, and returns the rejection to raise."""
    hint = (
        f"`show RULE {manifest.id}` has the figures; `promote` tries it again, --force overrules"
        if last
        else ""
    )
    try:
        rejects.keep(folder, staged, manifest, last=last, durability=durability)
    except OSError as error:
        hint = f"it could not be kept to be looked into: {error.strerror or error}"
    return Refused(manifest.id, verification, where=manifest.source, hint=hint)
