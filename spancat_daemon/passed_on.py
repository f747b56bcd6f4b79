"""What of the daemon's environment other programs get: what they need, and nothing that may be secret."""

from __future__ import annotations

import os
from typing import Final

# To be found, to find their user's files, and to speak the user's language. Everything else, where secrets
# for daemon.toml may be, is not passed on.
_NAMES: Final = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
)


def passed_on(*more: str) -> dict[str, str]:
    """The variables that are passed on, and those of `more`, as far as they are set."""
    return {name: os.environ[name] for name in (*_NAMES, *more) if name in os.environ}
