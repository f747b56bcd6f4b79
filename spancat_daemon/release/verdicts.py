"""What retention says of the releases of a folder; only reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from spancat_daemon.release import lease
from spancat_daemon.release.retention import decide

if TYPE_CHECKING:
    from datetime import datetime

    from spancat_daemon.config.model import Keep
    from spancat_daemon.release.folder import Brief, DeploymentFolder, Survey
    from spancat_daemon.release.history import History
    from spancat_daemon.release.retention import Verdict
    from spancat_daemon.release.survey import R


@overload
def verdicts_on(
    folder: DeploymentFolder, keep: Keep, now: datetime, *, history: History | None = None
) -> list[Verdict[Brief]]: ...


@overload
def verdicts_on(
    folder: DeploymentFolder,
    keep: Keep,
    now: datetime,
    *,
    history: History | None = None,
    survey: Survey[R],
) -> list[Verdict[R]]: ...


def verdicts_on(
    folder: DeploymentFolder,
    keep: Keep,
    now: datetime,
    *,
    history: History | None = None,
    survey: Survey[Any] | None = None,
) -> list[Verdict[Any]]:
    """What retention says of each release of a folder, newest first.

    Args:
        folder: which.
        keep: what its rule keeps.
        now: an aware time.
        history: the folder's, where it is open.
        survey: what lies in it; by default the outline.
    """
    survey = survey or folder.outline()
    previous = folder.previous(history=history)
    live = next((release for release in survey.releases if release.live), None)
    return decide(
        survey.releases,
        keep,
        live_id=live.id if live else None,
        previous_id=previous.id if previous else None,
        pinned=folder.pins(),
        leased=lambda release: lease.is_leased(release.path),
        now=now,
    )
