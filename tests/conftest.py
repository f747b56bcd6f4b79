"""What all tests need: an environment that says nothing about the machine they run on."""

from __future__ import annotations

import pytest

_SAYS_SOMETHING = (
    "CONFIGURATION_DIRECTORY",
    "FORCE_COLOR",
    "JOURNAL_STREAM",
    "LOGS_DIRECTORY",
    "NOTIFY_SOCKET",
    "NO_COLOR",
    "RUNTIME_DIRECTORY",
    "SPANCAT_DAEMON_CONFIG",
    "STATE_DIRECTORY",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)


@pytest.fixture(autouse=True)
def _silent_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _SAYS_SOMETHING:
        monkeypatch.delenv(name, raising=False)
