"""Who gets the next turn, and that nothing piles up while lanes are put off."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from spancat_daemon.daemon.lanes import Agenda, Flag, Lane

if TYPE_CHECKING:
    from spancat_daemon.deploying.deployment import Deployment


def lane(name: str, *, due_s: float | None = None, routine: bool = False) -> Lane:
    deployment = cast("Deployment", SimpleNamespace(target=SimpleNamespace(rule=name)))
    return Lane(deployment, flag=Flag("change", forced=False, since_s=0.0, routine=routine), due_s=due_s)


def turns(agenda: Agenda, now_s: float) -> list[str]:
    names = []
    while (following := agenda.next(now_s)) is not None:
        names.append(following.deployment.target.rule)
    return names


def test_what_happened_comes_before_what_is_routine_and_first_come_is_first_served() -> None:
    agenda = Agenda()
    for one in (lane("r1", routine=True), lane("a"), lane("r2", routine=True), lane("b")):
        agenda.enter(one)
    assert turns(agenda, 0.0) == ["a", "b", "r1", "r2"]


def test_what_is_put_off_comes_when_it_is_due_and_not_before() -> None:
    agenda = Agenda()
    for one in (
        lane("late", due_s=20.0),
        lane("soon", due_s=10.0),
        lane("routine", due_s=10.0, routine=True),
    ):
        agenda.enter(one)
    assert (turns(agenda, 9.9), agenda.soonest_s()) == ([], 10.0)
    assert (turns(agenda, 10.0), agenda.soonest_s()) == (["soon", "routine"], 20.0)
    assert (turns(agenda, 20.0), agenda.soonest_s()) == (["late"], None)


def test_a_lane_has_one_place_however_often_it_enters() -> None:
    agenda = Agenda()
    moved = lane("moved", due_s=10.0)
    agenda.enter(moved)
    moved.due_s = None
    agenda.enter(moved)
    assert turns(agenda, 0.0) == ["moved"]
    assert turns(agenda, 100.0) == []
    assert agenda.soonest_s() is None


@pytest.mark.parametrize("due_s", [None, 10.0])
def test_a_lane_that_left_gets_no_turn(due_s: float | None) -> None:
    agenda = Agenda()
    gone, stays = lane("gone", due_s=due_s), lane("stays", due_s=30.0)
    agenda.enter(gone)
    agenda.enter(stays)
    agenda.leave(gone)
    assert agenda.soonest_s() == 30.0
    assert turns(agenda, 20.0) == []
    assert turns(agenda, 30.0) == ["stays"]


def test_without_a_flag_it_has_no_place() -> None:
    agenda = Agenda()
    idle = lane("idle")
    idle.flag = None
    agenda.enter(idle)
    assert turns(agenda, 0.0) == []


@pytest.mark.parametrize("routine", [False, True])
def test_lanes_that_are_put_off_again_and_again_do_not_pile_up(routine: bool) -> None:
    agenda = Agenda()
    chance = random.Random(0)  # noqa: S311  # an order, not secrets
    lanes = [lane(str(number), routine=routine) for number in range(100)]
    for _ in range(10_000):
        one = chance.choice(lanes)
        one.due_s = chance.choice([None, chance.uniform(1, 1000)])
        agenda.enter(one)
    assert len(agenda) <= 3 * len(lanes)
    entered = {str(number) for number, one in enumerate(lanes) if one.ticket}
    found = turns(agenda, 1000.0)
    assert set(found) == entered
    assert len(found) == len(entered)
    assert len(agenda) == 0
