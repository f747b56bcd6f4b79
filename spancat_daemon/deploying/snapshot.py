"""The way of a checkpoint, top to bottom: settle, plan, stage, derive, verify, seal, publish.

Retention and the log follow in :mod:`spancat_daemon.deploying.deployment`, after the swap is in the history.
Nothing here knows of threads, schedules or sockets: a trigger becomes a :class:`Request`, what came of it
is an :data:`Outcome` or an exception of :mod:`spancat_daemon.errors`.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from spancat_daemon.checkpoint.contents import plan
from spancat_daemon.checkpoint.progress import progress
from spancat_daemon.checkpoint.settle import Unsettled, examine
from spancat_daemon.checkpoint.spool import open_checkpoint
from spancat_daemon.deploying.derivation import derive
from spancat_daemon.deploying.refusal import keep_refused, refuse_known
from spancat_daemon.deploying.swap_details import UNMEASURED, follow_up, measured, overwrite_details
from spancat_daemon.errors import Moved, RolledBack
from spancat_daemon.release.durability import DURABLE, Durability
from spancat_daemon.release.history import rfc3339
from spancat_daemon.release.manifest import Manifest, release_id
from spancat_daemon.release.staging import discard, seal, stage
from spancat_daemon.release.swap import Swapped, publish
from spancat_daemon.verify.gates import Candidate
from spancat_daemon.verify.verdict import Subject
from spancat_daemon.verify.verification import stamps_of, terms_of, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from spancat_daemon.checkpoint.contents import Plan
    from spancat_daemon.checkpoint.progress import Progress
    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.refusal import Refusal
    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.release.history import History
    from spancat_daemon.release.staging import Staged
    from spancat_daemon.verify.verdict import Verification
    from spancat_daemon.verify.warm import WarmLoaders

Trigger = Literal["change", "schedule", "signal", "manual", "startup", "rollback", "recovery"]


@dataclass(frozen=True, slots=True)
class Request:
    """Why a checkpoint is to be taken.

    Attributes:
        trigger: what asked for it.
        forced: publish even if the content equals the live release's, or was rejected before.
        since_s: monotonic time at which the asking began; the figures of the release count from it.
        origin: where somebody saved it from, in words; empty: it is the checkpoint of a rule.
    """

    trigger: Trigger
    forced: bool
    since_s: float
    origin: str = ""

    @property
    def explicit(self) -> bool:
        """Whether somebody insists; a schedule that forces does not know what happened since it was made."""
        return self.forced and self.trigger == "manual"


@dataclass(frozen=True, slots=True)
class Published:
    """A new release is live, durably, and in the history."""

    swapped: Swapped
    tree: Tree


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The checkpoint holds what is live already; nothing was written.

    Attributes:
        live: id of the live release.
        tree: what was looked at.
        read: whether content was compared; False if the files' stamps alone told.
    """

    live: str
    tree: Tree
    read: bool


Outcome = Published | Unchanged | Unsettled


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier looks at a checkpoint told, so that the same files are not judged, or copied, twice.

    Attributes:
        live: stamps of the checkpoint whose content is live, and the id of the release it is live as.
        refused: what was rejected last.
        glimpse: stamps an unsettled checkpoint had at the last look; ``writer = "any"`` compares with them.
        glimpsed_s: monotonic time of the first look in a row that saw them.
    """

    live: tuple[Tree, str] | None = None
    refused: Refusal | None = None
    glimpse: Tree | None = None
    glimpsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What the way of a checkpoint takes from outside, so that tests can hold and break it.

    Attributes:
        monotonic: seconds that never step.
        now_ns: the wall clock that the file system stamps files with.
        durability: how bytes are made to stay.
        recover: brings the folder and its history into agreement.
        on_settled: told the stamps of a checkpoint that is proven settled.
        on_staging: told the moment it begins to be staged.
        abandoned: asked while bytes are copied; True gives the snapshot up by :class:`Abandoned`.
        loaders: who loads it to see it work.
        verifying: held, with the name in staging, while that lasts, which may be long: the folder is not
            changed meanwhile by this snapshot, and may be by others. Raises on its end if it was let go.
    """

    monotonic: Callable[[], float]
    now_ns: Callable[[], int]
    recover: Callable[[], None]
    on_settled: Callable[[Tree], None]
    on_staging: Callable[[], None]
    abandoned: Callable[[], bool]
    loaders: WarmLoaders
    verifying: Callable[[str], AbstractContextManager[None]]
    durability: Durability = DURABLE

    def now(self) -> datetime:
        """The wall clock in UTC."""
        return datetime.fromtimestamp(self.now_ns() / 1e9, tz=UTC)


def take(
    request: Request,
    target: Target,
    folder: DeploymentFolder,
    history: History,
    *,
    min_free_bytes: int,
    known: Known,
    tools: Tools,
) -> Outcome:
    """Takes the checkpoint of a target into production, if it is settled and differs from what is live.

    Args:
        request: why, and whether by force.
        target: which checkpoint goes where.
        folder: the deployment folder, locked by the caller.
        history: its history, open for writing.
        min_free_bytes: what must stay free on the folder's file system.
        known: what earlier looks told.
        tools: clocks, durability and ears.

    Raises:
        Vanished: there is no checkpoint.
        Rejected: this checkpoint must not go live; Refused, if its verification says so, or Underivable, if
            what is to be released can't be made of it.
        CannotVerify, BadProbes: nothing could be found out about it.
        Moved: it changed while it was copied, or what is live did while it was verified.
        Lacking: the file system has too little space.
        OSError: the deployment folder could not be written; nothing is live that was not before.
    """
    watch = target.watch
    with open_checkpoint(target.source, writer=watch.writer) as source:
        settled = examine(
            source,
            writer=watch.writer,
            settle_s=watch.settle,
            now_ns=tools.now_ns,
            previous=known.glimpse,
            unchanged_s=tools.monotonic() - known.glimpsed_s if known.glimpse is not None else None,
        )
        if isinstance(settled, Unsettled):
            return settled
        settled_at = tools.monotonic()
        tools.on_settled(settled.tree)
        tools.recover()
        live = folder.live()
        if not request.forced:
            if live is not None and known.live == (settled.tree, live.id):
                return Unchanged(live.id, settled.tree, read=False)
            refused = known.refused
            looks = (settled.tree, stamps_of(watch), live.id if live else None)
            if (
                refused is not None
                and looks == (refused.tree, refused.terms, refused.live)
                and (refused.until_s is None or tools.monotonic() < refused.until_s)
            ):
                raise refused.error.with_traceback(None)  # else each time adds to it, and keeps its frames
        planned = plan(settled, contents=watch.contents, component=watch.component)
        step = progress(source, settled.layout, writer=watch.writer) if watch.gate.min_step else None
        tools.on_staging()
        sound = live if request.trigger != "recovery" else None  # what rotted is linked to no more
        staged = stage(
            planned,
            source,
            settled.tree,
            staging_path=folder.staging_path,
            previous=sound,
            min_free_bytes=min_free_bytes,
            durability=tools.durability,
            abandoned=tools.abandoned,
        )
    with ExitStack() as copies:
        copies.callback(discard, staged)  # what went live, or was kept as rejected, is no longer there
        if live is not None and not request.forced and _is_of(live, staged):
            return Unchanged(live.id, settled.tree, read=True)
        terms = terms_of(watch, live)
        if planned.derivation is not None:
            derived = derive(
                staged,
                planned.derivation,
                _subject(staged),
                terms,
                staging_path=folder.staging_path,
                previous=sound,
                min_free_bytes=min_free_bytes,
                tools=tools,
            )
            copies.callback(discard, derived)
            discard(staged)
            staged = derived
            still_live(folder, live)
        staged_at = tools.monotonic()
        if not (request.explicit or request.origin) and staged.content_sha256 in history.barred():
            raise RolledBack(
                "its content was live and was rolled back, or replaced by save()",
                hint="`snapshot --force` makes it live again",
            )
        if not request.forced:
            refuse_known(folder, staged, terms, tools.now())
        # What takes no time is not worth letting others in for.
        with tools.verifying(staged.path.name) if terms.loads else nullcontext():
            verification = verify(
                _subject(staged),
                _candidate(staged, step),
                live,
                terms,
                tools.loaders,
                abandoned=tools.abandoned,
            )
        still_live(folder, live)
        verified_at = tools.monotonic()
        manifest = _describe(
            request,
            target,
            source.path,
            staged,
            live,
            folder.next_sequence(history=history),
            tools.now(),
            verification,
        )
        if not verification.passed:
            raise keep_refused(
                folder,
                staged,
                manifest,
                verification,
                last=watch.keep_rejected,
                durability=tools.durability,
            )
        seal(staged, manifest, tools.durability)
        swapped = publish(
            folder,
            staged,
            manifest,
            kind=watch.swap,
            history=history,
            details=overwrite_details(manifest, live.manifest if live else None)
            | {
                "bytes_written": staged.bytes_written,
                "settle_s": round(settled_at - request.since_s, 6),
                "stage_s": round(staged_at - settled_at, 6),
                "verify_s": round(verified_at - staged_at, 6),
                **({"saved": True} if request.origin else {}),
                **follow_up(watch),
                **UNMEASURED,
            },
            durability=tools.durability,
            monotonic=tools.monotonic,
            finish=measured(tools.monotonic, request.since_s),
        )
    return Published(swapped, settled.tree)


def still_live(folder: DeploymentFolder, live: Release | None) -> None:
    """Raises Moved if another release went live while a snapshot was compared with this one."""
    now = folder.live()
    if (now.id if now else None) != (live.id if live else None):
        raise Moved("what is live changed while it was verified", where=str(folder.path))


def _is_of(live: Release, staged: Staged) -> bool:
    """Whether what a release holds is, or was made of, what is staged."""
    manifest = live.manifest
    origin = manifest.content_sha256 if staged.plan.derivation is None else manifest.derived_from
    return staged.content_sha256 == origin


def _subject(staged: Staged) -> Subject:
    chosen = staged.plan
    return Subject(
        path=staged.path,
        component=chosen.component,
        model_sha256=staged.model_sha256,
        labels=chosen.labels,
        spans_key=chosen.spans_key,
        threshold=chosen.threshold,
    )


def _candidate(staged: Staged, step: Progress | None) -> Candidate:
    chosen = staged.plan
    return Candidate(
        labels=chosen.labels,
        metrics=chosen.metrics,
        metrics_may_be_stale=chosen.metrics_may_be_stale,
        spans_key=chosen.spans_key,
        bytes=staged.bytes,
        steps=step,
        verdict=None,
    )


def _describe(
    request: Request,
    target: Target,
    source: Path,
    staged: Staged,
    live: Release | None,
    sequence: int,
    created: datetime,
    verification: Verification,
) -> Manifest:
    chosen: Plan = staged.plan
    return Manifest(
        id=release_id(sequence, created, staged.content_sha256),
        sequence=sequence,
        rule=target.rule,
        created_at=rfc3339(created),
        trigger=request.trigger,
        forced=request.forced,
        changed=live is None or live.manifest.content_sha256 != staged.content_sha256,
        source=request.origin or str(source),
        contents=target.watch.contents,
        component=chosen.component,
        factory=chosen.factory,
        labels=chosen.labels,
        spans_key=chosen.spans_key,
        threshold=chosen.threshold,
        lang=chosen.lang,
        pipeline=chosen.pipeline,
        spacy_version=chosen.spacy_version,
        verifier=verification.verifier,
        metrics=chosen.metrics,
        metrics_may_be_stale=chosen.metrics_may_be_stale,
        files=staged.files,
        model_sha256=staged.model_sha256,
        content_sha256=staged.content_sha256,
        previous=live.id if live else None,
        verification=verification.document,
        derived_from=staged.derived_from,
    )
