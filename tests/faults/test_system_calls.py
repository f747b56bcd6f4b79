"""Every system call of everything that changes a deployment folder: killed before it, failing, or lying.

A first run records the calls; then each is hurt in a run of its own. `make test` does so to a fixed sample,
spread over all of them, `make faults` to all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.report import tally
from tests.faults.strace_calls import errors, kills, lies, untraceable
from tests.faults.strace_scenes import Actor, Stage, scenes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.strace_calls import Call, Fault

pytestmark = pytest.mark.skipif(bool(untraceable()), reason=untraceable())

SCENES = scenes()
CRASHED = [name for name in SCENES if name not in {"publish of 6 MB", "pin"}]
SAMPLE = [
    "first publish, exchange",
    "publish, symlink",
    "publish, exchange",
    "publish, exchange to symlink",
    "rollback, symlink",
    "retention, exchange",
    "rejected snapshot",
]
REMOVING = {"unlink", "unlinkat", "rmdir"}

KILLED = "`current` leads to what was live or to what was to be, whole; whoever comes next goes on from there"
FAILED = "as after a kill; it is said what failed and where, and the same process gets over it"
LIED = "nothing that is not there goes live or counts as recorded: it is read back, or missed as a hole"


@pytest.fixture(scope="module")
def actor() -> Iterator[Actor]:
    with Actor() as actor:
        yield actor


def kind_of(name: str) -> str:
    return name.partition(",")[0]


def spread(faults: list[Fault], most: int) -> list[Fault]:
    """Some of them, always the same, from the first to the last."""
    if len(faults) <= most:
        return faults
    return [faults[number * len(faults) // most + len(faults) // (2 * most)] for number in range(most)]


def must_survive(stage: Stage, faults: list[Fault]) -> None:
    wrong = {str(fault): found for fault in faults if (found := stage.survives(fault))}
    assert not wrong, "\n".join(f"{fault}:\n  " + "\n  ".join(found) for fault, found in wrong.items())


def hurt(stage: Stage, calls: list[Call], name: str, most: tuple[int, int, int] | None) -> None:
    """Kill, fail and lie to the calls of what is done; of each at `most` so many, all if that is None."""
    done = kind_of(name)
    families = (
        (f"`kill -9` before a system call of a {done}", list(kills(calls)), KILLED),
        (f"a failing system call of a {done}", list(errors(calls)), FAILED),
        (f"a lost write of a {done}", list(lies(calls)), LIED),
    )
    for number, (fault, all_of_them, promise) in enumerate(families):
        chosen = all_of_them if most is None else spread(all_of_them, most[number])
        must_survive(stage, chosen)
        tally(fault, len(chosen), promise)


@pytest.mark.parametrize("name", SAMPLE)
def test_some_calls(in_memory: Path, actor: Actor, name: str) -> None:
    stage = Stage(SCENES[name], in_memory, actor)
    calls = stage.record()
    assert sum(call.changes for call in calls) > 10
    hurt(stage, calls, name, (2, 3, 1))


def test_a_live_release_that_can_not_be_read_just_then(in_memory: Path, actor: Actor) -> None:
    """It was taken for gone, or for not swapped, and then for put there by hand."""
    stage = Stage(SCENES["rollback, exchange"], in_memory, actor)
    reading = [call for call in stage.record() if "current/release.json" in call.text]
    opening = [fault for fault in errors(reading) if fault.call.name == "openat" and "EMFILE" in fault.what]
    must_survive(stage, spread([fault for fault in opening if not fault.lasting], 6))
    must_survive(stage, [fault for fault in opening if fault.lasting][-3:])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SCENES)
def test_every_call(in_memory: Path, actor: Actor, name: str) -> None:
    stage = Stage(SCENES[name], in_memory, actor)
    hurt(stage, stage.record(), name, None)


def crashes(stage: Stage, faults: list[Fault]) -> Iterator[list[Call]]:
    """Leave the stage in the states that kills leave; yield what changes something in the recovery of each.

    States that are repaired by the same calls are one, however much there is to be removed.
    """
    found: dict[tuple[str, ...], Fault] = {}
    for fault in faults:
        names = [call.name for call in stage.crash(fault) if call.changes]
        found[tuple(name for name in names if name not in REMOVING)] = fault
    for fault in found.values():
        yield [call for call in stage.crash(fault) if call.changes]


@pytest.mark.parametrize("name", ["publish, symlink", "publish, exchange"])
def test_some_calls_of_recovery(in_memory: Path, actor: Actor, name: str) -> None:
    stage = Stage(SCENES[name], in_memory, actor)
    before_commit = [fault for fault in kills(stage.record()) if fault.call.name == "write"][-1:]
    for calls in crashes(stage, before_commit):
        hurt(stage, calls, "recovery", (5, 5, 1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CRASHED)
def test_every_call_of_recovery(in_memory: Path, actor: Actor, name: str) -> None:
    stage = Stage(SCENES[name], in_memory, actor)
    for calls in crashes(stage, list(kills(stage.record()))):
        hurt(stage, calls, "recovery", None)
