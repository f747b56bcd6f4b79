"""What a checkpoint does not hold as it is released: made of a staged copy, into another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.checkpoint.contents import standing_alone
from spancat_daemon.checkpoint.reduce import USE_COMPONENT
from spancat_daemon.deploying.refusal import Underivable
from spancat_daemon.errors import Rejected
from spancat_daemon.release.staging import copies, stage_derived
from spancat_daemon.verify.verdict import Grafted, Grafting
from spancat_daemon.verify.verification import answer

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.checkpoint.standalone import Derivation
    from spancat_daemon.deploying.snapshot import Tools
    from spancat_daemon.release.folder import Release
    from spancat_daemon.release.staging import Staged
    from spancat_daemon.verify.verdict import Subject
    from spancat_daemon.verify.verification import Terms


def derive(
    staged: Staged,
    derivation: Derivation,
    subject: Subject,
    terms: Terms,
    *,
    staging_path: Path,
    previous: Release | None,
    min_free_bytes: int,
    tools: Tools,
) -> Staged:
    """Makes a span categorizer that stands alone of a staged copy, which stays as it is.

    The loader makes the weights, and sees that they predict the same; all else is in the derivation.

    Args:
        staged: the copy.
        derivation: what is to be made of it.
        subject: what it must turn out to be when it is loaded.
        terms: of its rule.
        staging_path: where the other one is staged.
        previous: the release that unchanged files are linked to.
        min_free_bytes: what must stay free.
        tools: clocks, durability and loaders.

    Raises:
        Underivable: it does not load, or does not predict the same afterwards, or came to a limit; or what
            was made of it is no model.
        CannotVerify: there is no loader.
        Moved: the folder was let go meanwhile.
        Lacking, Abandoned, OSError: as `stage_derived`. In any case nothing is left behind.
    """
    grafting = Grafting(
        subject=subject,
        upstream=derivation.upstream,
        listener=derivation.listener,
        config=derivation.config.decode("utf-8"),
        texts=tuple(probe.text for probe in terms.probes),
        most_bytes=derivation.most_bytes,
    )
    with tools.verifying(staged.path.name):
        verdict = answer(grafting, terms.watch.verify, tools.loaders, tools.abandoned)
    if not isinstance(verdict, Grafted):
        reason = verdict.reason or "for no reason given"
        raise _underivable(subject, reason, by_limit=verdict.fault == "limit")
    try:
        return stage_derived(
            staged,
            standing_alone(staged.plan, copies(staged.path, staged.files), verdict.model),
            staging_path=staging_path,
            previous=previous,
            min_free_bytes=min_free_bytes,
            durability=tools.durability,
            abandoned=tools.abandoned,
        )
    except Rejected as error:  # its place is one that nobody can look into
        raise _underivable(subject, f"what was made of it {error.reason}") from error


def _underivable(subject: Subject, reason: str, *, by_limit: bool = False) -> Underivable:
    return Underivable(
        f"{subject.component!r} could not be made standalone: {reason}",
        by_limit=by_limit,
        where="",
        hint=USE_COMPONENT,
    )
