"""When watches that failed are tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from spancat_daemon.triggers.footprint import Fault, route
from spancat_daemon.triggers.watched import FIRST_RETRY_S, LONGEST_RETRY_S, Outbox, State, Watched

FULL = Fault("/runs", "the limit of inotify watches is reached", "")
UNREADABLE = Fault("/runs", "not readable", "")


@pytest.fixture
def state() -> State:
    path = Path("/runs/model-best")
    return State(Watched("products", path), route(path, None))


def test_what_fails_again_is_tried_later_and_later(state: State) -> None:
    now, delays = 100.0, []
    for _ in range(9):
        state.note_fault(FULL, Outbox(), now=now)
        delays.append(state.retry_at - now)
        now = state.retry_at
    assert delays[:4] == [FIRST_RETRY_S * factor for factor in (1, 2, 4, 8)]
    assert delays[-1] == LONGEST_RETRY_S


def test_looks_that_events_ask_for_put_nothing_off(state: State) -> None:
    state.note_fault(FULL, Outbox(), now=100.0)
    for number in range(10):
        state.note_fault(FULL, Outbox(), now=100.0 + number / 10)
    assert state.retry_at == 100.0 + FIRST_RETRY_S


def test_another_fault_is_told_and_begins_anew(state: State) -> None:
    now = 100.0
    for _ in range(4):
        state.note_fault(FULL, Outbox(), now=now)
        now = state.retry_at
    out = Outbox()
    state.note_fault(UNREADABLE, out, now=now)
    assert state.retry_at == now + FIRST_RETRY_S
    assert [(event.event, event.fields["reason"]) for event in out.events] == [
        ("watch.degraded", "not readable")
    ]
