"""What every measurement is of."""

from __future__ import annotations

import pytest

from tests.benchmarks.installed import program


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The program and the daemon are as pip installs them, also where Python writes no bytecode by itself."""
    program()
