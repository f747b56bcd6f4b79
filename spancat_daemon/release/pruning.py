"""Letting releases go that nothing wants any more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from spancat_daemon.release import lease, trash
from spancat_daemon.release.current import CannotSwap
from spancat_daemon.release.durability import DURABLE
from spancat_daemon.release.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spancat_daemon.release.durability import Durability
    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import History
    from spancat_daemon.release.retention import Verdict
    from spancat_daemon.release.survey import R


def prune(
    folder: DeploymentFolder,
    verdicts: Sequence[Verdict[R]],
    *,
    history: History,
    durability: Durability = DURABLE,
) -> list[R]:
    """Remove the releases without a reason to stay, oldest first. The folder is locked and recovered.

    What became live, pinned or held since the verdicts were made stays. A crash leaves a release either whole
    under its name or in the trash; what other releases share with it by hard links stays theirs.

    A history that can't be written doesn't keep them here, for a full disk is made less full by this:
    recovery records them.

    Returns:
        The releases that are gone.

    Raises:
        CannotSwap: a swap was not concluded, so it is not known yet what is live; nothing was removed.
        OSError: a release could not be moved or deleted, or no record of it be made; the rest stays.
    """
    if history.pending_intent() is not None:
        raise CannotSwap("a swap was not concluded", where=str(history.path), hint="recover first")
    gone: list[R] = []
    live_id = folder.current_state().id
    pins = folder.pins()
    for verdict in sorted(verdicts, key=lambda verdict: verdict.release.sequence):
        release = verdict.release
        if verdict.kept_because or release.id == live_id or release.id in pins:
            continue
        if release.path.parent != folder.releases_path:  # it was live, as ``current`` itself
            continue
        try:
            readers_out = lease.lock_out(release.path)
        except FileNotFoundError:
            continue
        if readers_out is None:
            continue
        try:
            thrown = trash.throw_away(folder.releases_path, release.path.name, folder.trash_path, durability)
            try:
                history.append("pruned", {"release": release.id, "reason": "retention"})
            finally:
                remove_tree(folder.trash_path / thrown)
        finally:
            os.close(readers_out)
        gone.append(release)
    return gone
