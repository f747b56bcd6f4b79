"""The program as it is once it is installed."""

from __future__ import annotations

import compileall
import sys
from pathlib import Path

from tests.service import ROOT


def program() -> Path:
    """The command `spancat-daemon`, its modules compiled as pip compiles what it installs.

    Python compiles them at their first import only where it may write beside them, and not at all with
    PYTHONDONTWRITEBYTECODE; a command would then take half as long again.
    """
    assert compileall.compile_dir(ROOT / "spancat_daemon", quiet=1)
    return Path(sys.executable).with_name("spancat-daemon")
