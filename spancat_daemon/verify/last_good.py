"""Which release to go back to: the last one that is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.release.history import History
from spancat_daemon.verify.digests import faults_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.verify.digests import Finding


def good_release(
    folder: DeploymentFolder,
    history: History | None,
    *,
    not_content: str,
    rather_not: Collection[str] = (),
    pace: Callable[[int], None] = lambda _: None,
    passed_over: Callable[[Release, Sequence[Finding]], None] = lambda _release, _findings: None,
) -> Release | None:
    """Return the release to go back to from the live one; None if there is none.

    What was live before comes first, then what lies below; contents that somebody went back from are no
    target. Each candidate is read from the disk as a whole: one that is damaged, or can't be read, is no
    target either. The live one itself may be damaged beyond recognition. Changes nothing.

    Args:
        folder: held by the caller, so that nothing is pruned meanwhile.
        history: the folder's; None: it is read.
        not_content: digest of a content that is no target, in whatever release: the one to get away from.
            Empty, where nothing is wrong with the content itself: none.
        rather_not: ids of releases that are a target only if no other is.
        pace: is told of each piece that was read, and may raise to give up.
        passed_over: is told of each candidate that is not whole.

    Raises:
        NotOurs, FolderBusy: see `DeploymentFolder.survey`.
        OSError: the folder or its history can't be read.
    """
    history = history or History.reading(folder.history_path)
    back = folder.before_live(history=history)
    for release in sorted(back, key=lambda release: release.id in rather_not):
        content = release.manifest.content_sha256
        if content == not_content or content in history.barred():
            continue
        findings = faults_of(release, pace=pace)
        if not findings:
            return release
        passed_over(release, findings)
    return None
