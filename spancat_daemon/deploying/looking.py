"""The checkpoint of a rule, looked at again and again: what came of each look, and what is known since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from spancat_daemon.checkpoint.settle import Unsettled
from spancat_daemon.deploying.refusal import LIMIT_AGAIN_S, Refusal, Refused, Underivable
from spancat_daemon.deploying.snapshot import Known, Request, Unchanged, take
from spancat_daemon.errors import Moved, Rejected, SpancatDaemonError, Vanished
from spancat_daemon.release.copying import UnreadableSourceError
from spancat_daemon.release.staging import Abandoned, Lacking
from spancat_daemon.verify.verification import stamps_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.checkpoint.tree import Tree
    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.deploying.workplace import Workplace
    from spancat_daemon.release.history import History
    from spancat_daemon.verify.verification import Stamps

Status = Literal[
    "published", "unchanged", "unsettled", "vanished", "rejected", "failed", "abandoned", "probation"
]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one request for a snapshot.

    Attributes:
        status: how it ended.
        release: id of the release that is live now, if one is.
        reason: why it was not published, for a user; empty if it was.
        retry_after_s: look again after this long even if nothing changes; None: only a change helps.
        kind: of an unsettled checkpoint, what is the matter: "torn", "incomplete" or "busy".
        tree: the stamps that were judged, where the checkpoint could be read.
    """

    status: Status
    release: str | None
    reason: str = ""
    retry_after_s: float | None = None
    kind: str = ""
    tree: Tree | None = None


class Looking:
    """Takes a rule's checkpoint into production, judging the same files once; any thread may ask for it."""

    def __init__(
        self, place: Workplace, *, held: Callable[[], History], live_id: Callable[[], str | None]
    ) -> None:
        """Knows nothing yet.

        Args:
            place: where releases are made.
            held: the history of the folder, once that is held and no swap is left to be concluded.
            live_id: id of the live release; None if there is none, or the folder can't be read.
        """
        self._place = place
        self._held = held
        self._live_id = live_id
        self._known = Known()
        self._known_of: Target | None = None
        self._judged: Tree | None = None
        self._judged_by: Stamps = ()

    def forget(self) -> None:
        """What is live, or was rejected, may be otherwise now."""
        self._known = Known()

    def look(self, trigger: Trigger, *, force: bool, since_s: float | None) -> Result:
        """Take it, if it is settled and not live already; see `Deployment.snapshot`."""
        place = self._place
        request = Request(trigger, force, place.tools.monotonic() if since_s is None else since_s)
        with place.alone:
            try:
                history = self._held()
                if not request.explicit and (waits_for := place.on_probation()) is not None:
                    return Result(
                        "probation", waits_for, f"{waits_for} is on probation; --force does not wait for it"
                    )
                try:
                    return self._taken(request, history)
                except Lacking:
                    if not place.make_room():
                        raise
                    return self._taken(request, history)
            except Vanished as error:
                return self._result("vanished", error)
            except Moved as error:
                return self._result("unsettled", error, kind="busy", retry_after_s=0.05)
            except Abandoned as error:
                return self._result("abandoned", error)
            except Rejected as error:
                return self._rejected(error, request)
            except (OSError, SpancatDaemonError) as error:
                reason = place.chronicle.failed(error, trigger)
                return Result("failed", self._live_id(), reason, tree=self._judged)

    def _taken(self, request: Request, history: History) -> Result:
        place, target = self._place, self._place.target()
        self._judged = None
        # Before they are read: what changes meanwhile was not asked.
        self._judged_by = stamps_of(target.watch)
        if target != self._known_of:
            self._known_of, self._known = target, Known()
        outcome = take(
            request,
            target,
            place.folder,
            history,
            min_free_bytes=place.min_free_bytes(),
            known=self._known,
            tools=replace(
                place.tools,
                on_settled=lambda tree: self._judge(request, tree),
                on_staging=lambda: place.chronicle.started(request),
            ),
        )
        if isinstance(outcome, Unsettled):
            if outcome.tree != self._known.glimpse:
                now_s = place.tools.monotonic()
                self._known = replace(self._known, glimpse=outcome.tree, glimpsed_s=now_s)
            return Result(
                "unsettled",
                self._live_id(),
                outcome.reason,
                retry_after_s=outcome.retry_after_s,
                kind=outcome.kind,
                tree=outcome.tree,
            )
        if isinstance(outcome, Unchanged):
            self._known = Known(live=(outcome.tree, outcome.live))
            place.chronicle.unchanged(request, outcome)
            return Result("unchanged", outcome.live, "the content is live already", tree=outcome.tree)
        self._known = Known(live=(outcome.tree, outcome.swapped.release.id))
        place.published(outcome.swapped.record)
        return Result("published", outcome.swapped.release.id, tree=outcome.tree)

    def _rejected(self, error: Rejected, request: Request) -> Result:
        self._place.chronicle.rejected(error, request, self._judged)
        # What could not be read may be readable the next time, though nothing has changed.
        if self._judged is not None and not isinstance(error.__cause__, (OSError, UnreadableSourceError)):
            by_limit = isinstance(error, Refused | Underivable) and error.by_limit
            until_s = self._place.tools.monotonic() + LIMIT_AGAIN_S if by_limit else None
            refused = Refusal(self._judged, self._judged_by, self._live_id(), error, until_s)
            self._known = replace(self._known, refused=refused)
        return self._result("rejected", error)

    def _result(self, status: Status, error: SpancatDaemonError, **more: Any) -> Result:
        return Result(status, self._live_id(), str(error), tree=self._judged, **more)

    def _judge(self, request: Request, tree: Tree) -> None:
        self._judged = tree
        live, refused = self._known.live, self._known.refused
        known = (live[0] if live else None, refused.tree if refused else None)
        if request.trigger == "change" and tree not in known:
            self._place.chronicle.changed(tree)
