"""What all tests need: an environment that says nothing about the machine they run on."""

from __future__ import annotations

import signal

import pytest

from tests import serving_python as old_server
from tests.once import of_this_run

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


def pytest_configure() -> None:
    of_this_run()  # before there are workers, which share it
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell without job control; what tests start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def serving_python() -> old_server.ServingPython:
    """The interpreter of a server with an old spaCy; see there."""
    return old_server.find_or_install()


@pytest.fixture(autouse=True)
def _silent_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _SAYS_SOMETHING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")  # what tests do is not to be remembered
