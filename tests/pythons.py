"""Other versions of Python that this machine may have."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROOF: Final = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"


def find(version: str, *, what_for: str) -> str:
    """Return an interpreter of this version ("3.10") that runs and can make environments.

    Skips the test if there is none, and says so; fails if ``$SPANCAT_DAEMON_TEST_PYTHON310`` names another.
    """
    variable = f"SPANCAT_DAEMON_TEST_PYTHON{version.replace('.', '')}"
    named = os.environ.get(variable)
    looked = []
    for candidate in [named] if named else _candidates(version):
        looked.append(candidate)
        if run(candidate, "-I", "-c", _PROOF).stdout.strip() == version:
            return candidate
    assert not named, f"${variable} is {named}, not a Python {version} that can make environments"
    tried = ", ".join(looked) or "nothing"
    pytest.skip(f"no Python {version} for {what_for} (tried: {tried}); name one in ${variable}")


def _candidates(version: str) -> Iterator[str]:
    if found := shutil.which(f"python{version}"):
        yield found  # perhaps one of pyenv's, which may run nothing
    yield from map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True))


def run(*command: str, stdin: str = "", timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run it without what this Python's environment says, and without the coverage of processes."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    try:
        return subprocess.run(
            command, input=stdin, env=environ, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
