"""Going back: an earlier release becomes live again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spancat_daemon.deploying.swap_details import UNMEASURED, follow_up, measured, overwrite_details
from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.release.staging import Abandoned
from spancat_daemon.release.swap import Swapped, make_live
from spancat_daemon.verify.digests import faults_of
from spancat_daemon.verify.last_good import good_release

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.snapshot import Tools
    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.release.history import History
    from spancat_daemon.verify.digests import Finding


def go_back(
    target: Target,
    folder: DeploymentFolder,
    history: History,
    *,
    name: str | None,
    leaving: str | None,
    tools: Tools,
    passed_over: Callable[[Release, Sequence[Finding]], None],
    trigger: Literal["rollback", "recovery"] = "rollback",
    reason: str = "",
    unwell: bool = False,
) -> Swapped:
    """Makes an earlier release live, after reading all of it: a corrupted one never is.

    Args:
        target: whose release.
        folder: its deployment folder, locked and recovered.
        history: its history, open for writing.
        name: which release; None: the last one before the live one that is whole.
        leaving: id of the release that whoever asks wants to get away from; another one may have gone live
            since, and the one before it is just that one.
        tools: clocks and durability.
        passed_over: told of each release that would have been gone back to, had it been whole.
        trigger: "rollback" bars what it leaves from going live again unforced; "recovery" does not.
        reason: why, for the log and the history.
        unwell: whether the content of what is live is at fault: then it is no target in another release, and
            what was not seen to do well itself is only where there is nothing else.

    Raises:
        UsageError: there is nothing to go back to, or the named release is live already.
        NoSuchRelease: there is no release of that name.
        Abandoned: `tools.abandoned` said so.
        SpancatDaemonError: another release than `leaving` is live, or the named one is corrupted.
        OSError: the folder could not be written; what was live still is, or the history says what is.
    """

    def proceed(_bytes: int) -> None:
        if tools.abandoned():
            raise Abandoned("going back was given up", where=where)

    began = tools.monotonic()
    where = str(folder.path)
    live = folder.live()
    live_id = live.id if live is not None else folder.current_state().id or history.live
    if live_id is not None and leaving is not None and live_id != leaving:
        raise SpancatDaemonError(
            f"{live_id} went live meanwhile, in place of {leaving}",
            where=where,
            hint="roll back again if it is to go too, or name the release to go back to",
        )
    chosen: Release | None
    if name is not None:
        chosen = folder.find(name, history=history)
    else:
        not_content = live.manifest.content_sha256 if live is not None and unwell else ""
        chosen = _last_whole(
            folder,
            history,
            not_content=not_content,
            rather_not=history.doubtful() if unwell else (),
            pace=proceed,
            passed_over=passed_over,
        )
    if live_id is None or chosen is None:
        raise UsageError(
            "there is no earlier release to roll back to", where=where, hint="`list` shows what there is"
        )
    if chosen.id == live_id:
        raise UsageError(f"{chosen.id} is live already", where=where)
    if name is not None:
        _must_be_whole(chosen, proceed)
    return make_live(
        folder,
        chosen,
        kind=target.watch.swap,
        history=history,
        details=overwrite_details(chosen.manifest, live.manifest if live is not None else None)
        | {
            "rule": target.rule,
            "trigger": trigger,
            "forced": True,
            "bytes_written": 0,
            "settle_s": 0.0,
            "stage_s": 0.0,
            "verify_s": 0.0,
            **({"reason": reason} if reason else {}),
            **follow_up(target.watch, back=True),
            **UNMEASURED,
        },
        durability=tools.durability,
        monotonic=tools.monotonic,
        finish=measured(tools.monotonic, began),
    )


def _last_whole(
    folder: DeploymentFolder,
    history: History,
    *,
    not_content: str,
    rather_not: Collection[str],
    pace: Callable[[int], None],
    passed_over: Callable[[Release, Sequence[Finding]], None],
) -> Release | None:
    """Find what to go back to; None if nothing was live before. Raises if none of what was is whole."""
    passed: list[str] = []

    def pass_over(release: Release, findings: Sequence[Finding]) -> None:
        passed.append(f"{release.path}: {findings[0]}")
        passed_over(release, findings)

    chosen = good_release(
        folder, history, not_content=not_content, rather_not=rather_not, pace=pace, passed_over=pass_over
    )
    if chosen is None:
        passed += [reason for _, reason in folder.broken()]
        if passed:
            raise SpancatDaemonError(
                f"no earlier release is whole: {passed[0]}",
                where=str(folder.path),
                hint="`verify --all` shows them all",
            )
    return chosen


def _must_be_whole(release: Release, pace: Callable[[int], None]) -> None:
    findings = faults_of(release, pace=pace)
    if findings:
        raise SpancatDaemonError(
            f"is corrupted: {findings[0]}",
            where=str(release.path),
            hint="`verify --all` shows which releases are whole",
        )
