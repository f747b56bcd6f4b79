"""Making a rejected snapshot live after all: because it passes now, or by somebody's word."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from spancat_daemon.deploying.snapshot import still_live
from spancat_daemon.deploying.swap_details import UNMEASURED, follow_up, measured, overwrite_details
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import rejects
from spancat_daemon.release.history import rfc3339
from spancat_daemon.release.manifest import release_id
from spancat_daemon.release.staging import discard, restage, seal
from spancat_daemon.release.swap import Swapped, publish
from spancat_daemon.verify.verification import examine_release, terms_of

if TYPE_CHECKING:
    from spancat_daemon.config.expand import Target
    from spancat_daemon.deploying.snapshot import Tools
    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.release.history import History
    from spancat_daemon.verify.verdict import Verification


def promote(
    target: Target,
    folder: DeploymentFolder,
    history: History,
    *,
    name: str,
    force: bool,
    reason: str,
    tools: Tools,
) -> Swapped:
    """Publishes a rejected snapshot under a new id; it is forgotten among the rejected ones once it is live.

    Args:
        target: whose snapshot.
        folder: its deployment folder, locked and recovered.
        history: its history, open for writing.
        name: which, as `find_rejected` takes it.
        force: whatever its verification said. Else it is verified anew, by today's terms.
        reason: why, for the log and the manifest.
        tools: clocks, durability and loaders.

    Raises:
        NoSuchRelease: there is no rejected snapshot of that name.
        Moved: what is live changed while it was verified.
        Abandoned: `tools.abandoned` said so.
        Rejected: its files are not what they were, or it does not pass.
        SpancatDaemonError: it could not be verified.
        OSError: the folder could not be written; nothing is live that was not before.
    """
    began = tools.monotonic()
    rejected, live = rejects.find_rejected(folder, name), folder.live()
    staged = restage(
        rejected, staging_path=folder.staging_path, durability=tools.durability, abandoned=tools.abandoned
    )
    try:
        verifier, verification = rejected.manifest.verifier, rejected.manifest.verification
        if not force:
            fresh = _verified_anew(target, replace(rejected, path=staged.path), live, tools)
            verifier, verification = fresh.verifier, fresh.document
        still_live(folder, live)
        verified_at, created = tools.monotonic(), tools.now()
        sequence = folder.next_sequence(history=history)
        promoted = {
            "snapshot": rejected.id,
            "overruled": str(verification.get("reason", "")),
            "reason": reason,
        }
        manifest = replace(
            rejected.manifest,
            id=release_id(sequence, created, rejected.manifest.content_sha256),
            rule=target.rule,
            sequence=sequence,
            created_at=rfc3339(created),
            trigger="manual",
            forced=force,
            changed=live is None or live.manifest.content_sha256 != rejected.manifest.content_sha256,
            previous=live.id if live else None,
            verifier=verifier,
            verification={**verification, "promoted": promoted},
        )
        seal(staged, manifest, tools.durability)
        swapped = publish(
            folder,
            staged,
            manifest,
            kind=target.watch.swap,
            history=history,
            details=overwrite_details(manifest, live.manifest if live else None)
            | {
                "promoted": promoted,
                "bytes_written": 0,
                "settle_s": 0.0,
                "stage_s": 0.0,
                "verify_s": round(verified_at - began, 6),
                **follow_up(target.watch),
                **UNMEASURED,
            },
            durability=tools.durability,
            monotonic=tools.monotonic,
            finish=measured(tools.monotonic, began),
        )
    finally:
        discard(staged)
    with contextlib.suppress(OSError):  # it is live: at worst it stays listed as rejected, too
        rejects.forget(folder, rejected.id, tools.durability)
    return swapped


def _verified_anew(target: Target, staged: Release, live: Release | None, tools: Tools) -> Verification:
    terms = terms_of(target.watch, live)
    with tools.verifying(staged.path.name):
        fresh = examine_release(terms, staged, live, tools.loaders, abandoned=tools.abandoned)
    if not fresh.passed:
        raise SpancatDaemonError(
            f"it does not pass now either: {fresh.reason}",
            where=staged.id,
            hint="--force overrules that",
        )
    return fresh
