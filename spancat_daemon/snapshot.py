"""The way of a checkpoint, top to bottom: settle, plan, stage, judge, publish.

Retention and the log follow in :mod:`spancat_daemon.deployment`, after the swap is in the history. Nothing
here knows of threads, schedules or sockets: a trigger becomes a :class:`Request`, and what came of it is an
:data:`Outcome` or an exception of :mod:`spancat_daemon.errors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from spancat_daemon.checkpoint.contents import plan
from spancat_daemon.checkpoint.settle import Unsettled, examine
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import RolledBack
from spancat_daemon.release.durability import DURABLE, Durability
from spancat_daemon.release.manifest import Manifest, release_id
from spancat_daemon.release.recovery import recover
from spancat_daemon.release.staging import discard, seal, stage
from spancat_daemon.release.swap import Swapped, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spancat_daemon.checkpoint.contents import Plan
    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.config.expand import Target
    from spancat_daemon.errors import Rejected
    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.release.history import History
    from spancat_daemon.release.recovery import Recovered
    from spancat_daemon.release.staging import Staged

Trigger = Literal["change", "schedule", "signal", "manual", "startup", "rollback", "recovery"]


@dataclass(frozen=True, slots=True)
class Request:
    """Why a checkpoint is to be taken.

    Attributes:
        trigger: what asked for it.
        forced: publish even if the content equals the live release's, or was rolled back.
        since_s: monotonic time at which the asking began; the figures of the release count from it.
    """

    trigger: Trigger
    forced: bool
    since_s: float


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
        refused: stamps of the one that was rejected last, and why.
        glimpse: stamps an unsettled checkpoint had at the last look; ``writer = "any"`` compares with them.
        glimpsed_s: monotonic time of the first look in a row that saw them.
    """

    live: tuple[Tree, str] | None = None
    refused: tuple[Tree, Rejected] | None = None
    glimpse: Tree | None = None
    glimpsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Tools:
    """What the way of a checkpoint takes from outside, so that tests can hold and break it.

    Attributes:
        monotonic: seconds that never step.
        now_ns: the wall clock that the file system stamps files with.
        durability: how bytes are made to stay.
        on_recovered: told what recovery found before the publish.
        on_settled: told the stamps of a checkpoint that is proven settled.
        on_staging: told the moment it begins to be staged.
        abandoned: asked while bytes are copied; True gives the snapshot up by :class:`Abandoned`.
    """

    monotonic: Callable[[], float]
    now_ns: Callable[[], int]
    on_recovered: Callable[[Recovered], None]
    on_settled: Callable[[Tree], None]
    on_staging: Callable[[], None]
    abandoned: Callable[[], bool]
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
        Rejected: this checkpoint must not go live.
        Moved: it changed while it was copied.
        Lacking: the file system has too little space.
        OSError: the deployment folder could not be written; nothing is live that was not before.
    """
    watch = target.watch
    with Source.open(target.source) as source:
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
        recovered = recover(folder, history=history, durability=tools.durability, kind=watch.swap)
        tools.on_recovered(recovered)
        live = folder.live()
        if not request.forced:
            if live is not None and known.live == (settled.tree, live.id):
                return Unchanged(live.id, settled.tree, read=False)
            if known.refused is not None and settled.tree == known.refused[0]:
                raise known.refused[1].with_traceback(None)  # else each time adds to it, and keeps its frames
        planned = plan(settled, contents=watch.contents, component=watch.component)
        tools.on_staging()
        staged = stage(
            planned,
            source,
            settled.tree,
            staging_path=folder.staging_path,
            previous=live,
            min_free_bytes=min_free_bytes,
            durability=tools.durability,
            abandoned=tools.abandoned,
        )
    staged_at = tools.monotonic()
    try:
        if live is not None and not request.forced and staged.content_sha256 == live.manifest.content_sha256:
            return Unchanged(live.id, settled.tree, read=True)
        _refuse_rolled_back(request, staged, history)
        manifest = _describe(
            request, target, staged, live, folder.next_sequence(history=history), tools.now()
        )
        seal(staged, manifest, tools.durability)
        sealed_at = tools.monotonic()
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
                "verify_s": round(sealed_at - staged_at, 6),
                **UNMEASURED,
            },
            durability=tools.durability,
            monotonic=tools.monotonic,
            finish=lambda swap_s: {
                "swap_s": round(swap_s, 6),
                "total_s": round(tools.monotonic() - request.since_s, 6),
            },
        )
    finally:
        discard(staged)  # what became a release is no longer there to discard
    return Published(swapped, settled.tree)


UNMEASURED: Final = {"swap_s": None, "total_s": None}
"""What a commit says until its end is known, and for good if recovery has to make it from the intent."""


def overwrite_details(manifest: Manifest, previous: Manifest | None) -> dict[str, Any]:
    """What ``release.overwrite`` and the history say of a swap, without its figures of time.

    The fields are a contract (DESIGN section 6).
    """
    before = set(previous.labels) if previous else set()
    return {
        "rule": manifest.rule,
        "release": manifest.id,
        "previous_release": previous.id if previous else None,
        "trigger": manifest.trigger,
        "forced": manifest.forced,
        "changed": previous is None or previous.content_sha256 != manifest.content_sha256,
        "component": manifest.component,
        "model_sha256": manifest.model_sha256,
        "previous_model_sha256": previous.model_sha256 if previous else None,
        "content_sha256": manifest.content_sha256,
        "previous_content_sha256": previous.content_sha256 if previous else None,
        "bytes": manifest.content_bytes,
        "labels_added": [label for label in manifest.labels if label not in before],
        "labels_removed": sorted(before - set(manifest.labels)),
        "metrics": dict(manifest.metrics),
        "source": manifest.source,
    }


def _refuse_rolled_back(request: Request, staged: Staged, history: History) -> None:
    if not request.forced and staged.content_sha256 in history.barred():
        raise RolledBack(
            "its content was live and was rolled back", hint="`snapshot --force` makes it live again"
        )


def _describe(
    request: Request,
    target: Target,
    staged: Staged,
    live: Release | None,
    sequence: int,
    created: datetime,
) -> Manifest:
    chosen: Plan = staged.plan
    verification: Mapping[str, Any] = {"level": "structure", "passed": True}
    return Manifest(
        id=release_id(sequence, created, staged.content_sha256),
        sequence=sequence,
        rule=target.rule,
        created_at=created.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        trigger=request.trigger,
        forced=request.forced,
        changed=live is None or live.manifest.content_sha256 != staged.content_sha256,
        source=str(target.source),
        contents=target.watch.contents,
        component=chosen.component,
        factory=chosen.factory,
        labels=chosen.labels,
        spans_key=chosen.spans_key,
        threshold=chosen.threshold,
        lang=chosen.lang,
        pipeline=chosen.pipeline,
        spacy_version=chosen.spacy_version,
        verifier=None,
        metrics=chosen.metrics,
        metrics_may_be_stale=chosen.metrics_may_be_stale,
        files=staged.files,
        model_sha256=staged.model_sha256,
        content_sha256=staged.content_sha256,
        previous=live.id if live else None,
        verification=verification,
    )
