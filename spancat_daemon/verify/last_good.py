"""Which release to go back to: the last one that is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.release.history import History
from spancat_daemon.release.manifest import parse_release_id
from spancat_daemon.verify.digests import faults_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.verify.digests import Finding


def good_release(
    folder: DeploymentFolder,
    history: History | None,
    *,
    not_content: str,
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
        passed_over: is told of each candidate that is not whole.

    Raises:
        NotOurs, FolderBusy: see `DeploymentFolder.survey`.
        OSError: the folder or its history can't be read.
    """
    history = history or History.reading(folder.history_path)
    for release in _back(folder, history):
        content = release.manifest.content_sha256
        if content == not_content or content in history.barred():
            continue
        findings = faults_of(release)
        if not findings:
            return release
        passed_over(release, findings)
    return None


def _back(folder: DeploymentFolder, history: History) -> Iterator[Release]:
    """Yield the releases before the live one, which needs no readable manifest, in the order of going back.

    It is the order of ``@1``, ``@2``, …: by the history, then by sequence.
    """
    survey = folder.survey()
    by_id = {release.id: release for release in survey.releases}
    live = survey.current.id or history.live
    if live is None:
        return
    order = list(history.live_order())
    if live in order:
        del order[order.index(live) :]
    sequences = [parse_release_id(live) or 0]
    for name in reversed(order):
        if name in by_id:
            sequences.append(by_id[name].sequence)
            yield by_id[name]
    lowest = min(sequences)
    yield from (release for release in survey.releases if release.sequence < lowest)
