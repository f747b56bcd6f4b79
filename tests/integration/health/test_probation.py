"""Whether all is well after a swap, asked of real programs and servers."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.after.outcome import STOPPED
from spancat_daemon.config.model import Health
from spancat_daemon.health.check import check
from spancat_daemon.health.probation import Observed, observe
from tests.integration.after.peers import ID, a_swap, receiver, rude, until_gone

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def health(**values: object) -> Health:
    return Health.model_validate(values)


class Watch:
    """`observe` with a clock that only pauses move."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.clock_s = 1000.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.clock_s += seconds
        self.pauses.append(seconds)

    def __call__(self, asked: Health, deadline_s: float) -> Observed:
        return observe(
            asked,
            a_swap(),
            deadline_s=deadline_s,
            monotonic=lambda: self.clock_s,
            stopping=self.stopping,
            pause=self.pause,
        )


def test_a_command_says_by_its_status_whether_all_is_well(tmp_path: Path) -> None:
    expected = tmp_path / "serves"
    asked = health(
        command=["sh", "-c", f'echo "asked for $SPANCAT_RELEASE"; cmp -s {expected} - <<E\n{ID}\nE']
    )
    stopping = threading.Event()
    assert check(asked, a_swap(), stopping=stopping) == f"sh …: ended with status 2: asked for {ID}"
    expected.write_text(f"{ID}\n")
    assert check(asked, a_swap(), stopping=stopping) == ""
    hangs = health(command=["sleep", "60"], timeout=0.1)
    assert check(hangs, a_swap(), stopping=stopping) == "sleep …: did not end within 0.1 s"


def test_an_address_says_by_its_status_whether_all_is_well() -> None:
    stopping = threading.Event()
    with receiver(204, 500, (307, {"Location": "/health/"})) as server:
        asked = health(url=server.url + "/health?key=hunter2")
        assert check(asked, a_swap(), stopping=stopping) == ""
        shown = f"{server.url}/health"
        assert check(asked, a_swap(), stopping=stopping) == f"{shown}: answered 500 Internal Server Error"
        assert check(asked, a_swap(), stopping=stopping) == (
            f"{shown}: answered 307 Temporary Redirect; redirects are not followed"
        )
        assert [(asked.method, asked.path) for asked in server.received] == [
            ("GET", "/health?key=hunter2")
        ] * 3
    gone = check(asked, a_swap(), stopping=stopping)
    assert gone == f"{shown}: the connection failed: Connection refused"


def test_all_must_be_well_so_many_times_in_a_row() -> None:
    watch = Watch()
    with receiver(503, 200, 503, 200, 200, 503) as server:
        asked = health(url=server.url, every=2.0, passes=2)
        assert watch(asked, 1060.0) == Observed("well", "", 5)
        assert len(server.received) == 5
    assert watch.pauses == [2.0] * 4


def test_at_the_deadline_it_is_not_well() -> None:
    watch = Watch()
    with receiver(*[503] * 9) as server:
        asked = health(url=server.url, every=2.0)
        why = f"{server.url}: answered 503 Service Unavailable"
        assert watch(asked, 1006.0) == Observed("unwell", why, 3)
        assert watch.clock_s < 1006.0
        server.answers.clear()
        assert watch(asked, 900.0) == Observed("well", "", 1)  # looked at, though the time is over
        asked = health(url=server.url, every=2.0, passes=9)
        assert Watch()(asked, 1006.0) == Observed("unwell", "well 3 times in a row, not 9", 3)


@pytest.mark.timeout(60)
def test_a_server_that_hangs_can_not_stretch_the_deadline() -> None:
    with rude(until_gone) as url:
        asked = health(url=url, timeout=3600.0)
        deadline_s = time.monotonic() + 0.3
        seen = observe(asked, a_swap(), deadline_s=deadline_s, stopping=threading.Event())
    assert (seen.outcome, seen.checks) == ("unwell", 1)
    assert "no answer within 0." in seen.reason


@pytest.mark.timeout(60)
def test_a_stop_ends_a_check_and_a_pause_soon() -> None:
    watch = Watch()

    def hang(connection: socket.socket) -> None:
        watch.stopping.set()
        until_gone(connection)

    with rude(hang) as url:
        asked = health(url=url, timeout=3600.0)
        assert watch(asked, 1e6) == Observed("stopped", STOPPED, 0)
        assert watch(asked, 1e6) == Observed("stopped", STOPPED, 0)  # nobody is asked any more

    stopping = threading.Event()
    with receiver(*[503] * 9) as server:
        asked = health(url=server.url, every=3600.0)
        timer = threading.Timer(0.05, stopping.set)
        timer.start()
        seen = observe(asked, a_swap(), deadline_s=time.monotonic() + 1e6, stopping=stopping)
        timer.join()
    assert seen.outcome == "stopped"
