"""Where what is saved goes: refused if that is in the place of a folder whose disk is not mounted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spancat_daemon.deploying.ownership import taken_over_from
from spancat_daemon.deploying.whereabouts import Whereabouts, place_of

if TYPE_CHECKING:
    from spancat_daemon.release.folder import DeploymentFolder


def checked(folder: DeploymentFolder) -> Whereabouts | None:
    """Refuse an empty mount point that a history lay on when this user saved there; makes nothing.

    Returns:
        What remembers, for the next time, where the folder lies; None if that would be in vain, for it lies
        on the disk that it would be remembered on.

    Raises:
        Elsewhere: its disk is not mounted; says what to do if it is to begin anew.
        OSError: it can't be looked at.
    """
    state = _state_dir()
    if state is None:
        return None
    try:
        device = place_of(state).device
    except OSError:  # another user's home: $HOME is what it was before the user changed
        return None
    whereabouts = Whereabouts(state, folder.path)
    whereabouts.check(folder)
    in_vain = place_of(folder.path).device == device or taken_over_from(state) is not None
    return None if in_vain else whereabouts


def _state_dir() -> Path | None:
    """The user's own, by the XDG Base Directory Specification; None for a user without a home."""
    given = os.environ.get("XDG_STATE_HOME", "")
    with suppress(RuntimeError):
        base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
        return base / "spancat-daemon"
    return None
