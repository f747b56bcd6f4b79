"""A power cut after any call, as the enumeration of what it may leave on the disk; and each fsync, left out.

The calls of the real ``release/`` are recorded, killed or not, and every state of the disk that
`crash_states` allows after each of them is made real, recovered and judged. That none of the calls which make
things stay can be spared is shown by sparing each of them.
"""

from __future__ import annotations

import ast
import itertools
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import spancat_daemon
from spancat_daemon.release import durability
from tests.faults.crash_states import Trace, in_memory, lacking, states
from tests.faults.crash_states_judging import DEPLOY, faults_of
from tests.faults.crash_states_recording import Died, Recording
from tests.faults.power_protocol import Publisher, ticking
from tests.faults.report import tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from spancat_daemon.release.swap import Kind
    from tests.faults.crash_states import State

PROMISE = "what is live is the old or the new release, whole; no reported swap, pin or number is lost"


def everything(kind: Kind, other: Kind) -> Callable[[Publisher], None]:
    """All that is done to a folder, with both kinds of swap."""

    def work(publisher: Publisher) -> None:
        publisher.publish(kind)
        publisher.publish(kind)
        publisher.pin()
        publisher.publish(other)
        publisher.reject()
        publisher.unpin()
        publisher.prune()
        publisher.rollback(kind)
        publisher.reject()
        publisher.reject()
        publisher.promote(kind)
        publisher.let_go()
        publisher.reject(last=0)

    return work


def published(*kinds: Kind) -> Callable[[Publisher], None]:
    """What is there before."""

    def work(publisher: Publisher) -> None:
        for kind in kinds:
            publisher.publish(kind)

    return work


def rejected(publisher: Publisher) -> None:
    """A release, and two snapshots that may not be one."""
    publisher.publish("symlink")
    publisher.reject()
    publisher.reject()


KILLED: Final[dict[str, tuple[Callable[[Publisher], None], Callable[[Publisher], None]]]] = {
    "first release, symlink": (published(), lambda p: p.publish("symlink")),
    "first release, exchange": (published(), lambda p: p.publish("exchange")),
    "symlink": (published("symlink"), lambda p: p.publish("symlink")),
    "exchange": (published("exchange", "exchange"), lambda p: p.publish("exchange")),
    "symlink to exchange": (published("symlink"), lambda p: p.publish("exchange")),
    "exchange to symlink": (published("exchange"), lambda p: p.publish("symlink")),
    "rollback, symlink": (published("symlink", "symlink"), lambda p: p.rollback("symlink")),
    "rollback, exchange": (published("exchange", "exchange"), lambda p: p.rollback("exchange")),
    "prune": (published("symlink", "symlink", "exchange", "symlink"), lambda p: p.prune()),
    "reject": (published("symlink"), lambda p: p.reject()),
    "let go": (rejected, lambda p: p.let_go()),
}
"""What was done before, and what is killed."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder in memory, where there is one: what is looked at here is what would be on a disk."""
    memory = Path("/dev/shm")  # noqa: S108  # a fresh folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def recorded(base: Path, work: Callable[[Publisher], None]) -> Trace:
    """What is done from an empty disk on."""
    with tempfile.TemporaryDirectory(dir=base) as folder:
        recording, publisher = _recording(Path(folder))
        with recording.held():
            publisher.start()
            work(publisher)
        publisher.close()
        _assert_complete(recording, publisher, Path(folder) / "tree")
        return Trace.of(recording, publisher.generations)


def killed(base: Path, name: str) -> Iterator[Trace]:
    """What is done after `kill -9` before each of the calls, by a process that begins anew."""
    before, work = KILLED[name]
    for call in range(1, 1000):
        with tempfile.TemporaryDirectory(dir=base) as folder:
            recording, publisher = _recording(Path(folder))
            died = False
            with recording.held():
                publisher.start()
                before(publisher)
                recording.dies_at(call)
                try:
                    work(publisher)
                except Died:
                    died = True
                publisher.close()
                recording.revive()
                since = len(recording.events)
                publisher.start()
                publisher.publish("symlink")
                publisher.prune()
            publisher.close()
            _assert_complete(recording, publisher, Path(folder) / "tree")
            yield Trace.of(recording, publisher.generations, since)
        if not died:
            return
    raise AssertionError("it never ends")


def _recording(folder: Path) -> tuple[Recording, Publisher]:
    tree = folder / "tree"
    tree.mkdir()
    recording = Recording(tree)
    publisher = Publisher(
        tree / DEPLOY, folder / "checkpoint", durability=recording, clock=ticking(), told=recording.tell
    )
    return recording, publisher


def _assert_complete(recording: Recording, publisher: Publisher, tree: Path) -> None:
    """Nothing was done that was not recorded: the model's disk is the real one."""
    copy = tree.parent / "model"
    copy.mkdir()
    in_memory(Trace.of(recording, publisher.generations)).make(copy)
    assert _listing(copy) == _listing(tree)


def _listing(tree: Path) -> dict[str, object]:
    return {
        str(path.relative_to(tree)): path.readlink()
        if path.is_symlink()
        else path.is_dir() or path.read_bytes()
        for path in tree.rglob("*")
    }


class Judge:
    """Looks at each state once, however it came about.

    Attributes:
        cases: how many different ones it has seen.
    """

    def __init__(self, base: Path) -> None:
        self.cases = 0
        self._base = base
        self._seen: set[object] = set()

    def fault(self, some: Iterable[State], *, one_in: int = 1) -> str:
        """The first thing that is not allowed in any of them, or in one in so many; empty: none is."""
        for state in some:
            key = state.key()
            if key in self._seen:
                continue
            self._seen.add(key)
            if len(self._seen) % one_in:
                continue
            self.cases += 1
            if found := faults_of(state, self._base / "state"):
                event = str(state.trace.events[state.after - 1])
                return f"after call {state.after}, {event[:80]}: {found}"
        return ""


def calls_that_make_stay() -> set[str]:
    """Every place in the project where something is made to stay."""
    package = Path(spancat_daemon.__file__).parent
    return {
        f"{path.name}:{node.lineno}"
        for path in package.rglob("*.py")
        if path != Path(durability.__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"sync_file", "sync_data", "sync_directory", "sync_directory_at"}
    }


EACH_CALL = "power cut: every state that it may leave after each call, by enumeration"
BOTH: Final[list[tuple[Kind, Kind]]] = [("symlink", "exchange"), ("exchange", "symlink")]
KINDS = pytest.mark.parametrize(("kind", "other"), BOTH)


def _after_each_call(base: Path, kind: Kind, other: Kind, *, one_in: int) -> None:
    judge = Judge(base)
    trace = recorded(base, everything(kind, other))
    fault = judge.fault(states(trace, random.Random(0)), one_in=one_in)  # noqa: S311
    assert not fault
    assert judge.cases > 600 // one_in
    tally(EACH_CALL, judge.cases, PROMISE)


@KINDS
def test_states_after_each_call(base: Path, kind: Kind, other: Kind) -> None:
    _after_each_call(base, kind, other, one_in=6)


@pytest.mark.exhaustive
@KINDS
def test_every_state_after_each_call(base: Path, kind: Kind, other: Kind) -> None:
    _after_each_call(base, kind, other, one_in=1)


def _after_kills(base: Path, names: Iterable[str], *, most_calls: int, one_in: int = 1) -> int:
    judge = Judge(base)
    for name in names:
        calls = list(killed(base, name))
        chance = random.Random(name)  # noqa: S311  # the same ones at each run
        for trace in chance.sample(calls, min(most_calls, len(calls))):
            fault = judge.fault(states(trace, chance), one_in=one_in)
            assert not fault, f"{name}: {fault}"
    return judge.cases


AFTER_A_KILL = "power cut while a killed publisher's successor recovers and goes on, by enumeration"


def test_after_a_kill(base: Path) -> None:
    cases = _after_kills(base, ["exchange", "symlink to exchange", "prune"], most_calls=3, one_in=6)
    assert cases > 30
    tally(AFTER_A_KILL, cases, PROMISE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", KILLED)
def test_after_every_kill(base: Path, name: str) -> None:
    tally(AFTER_A_KILL, _after_kills(base, [name], most_calls=1000), PROMISE)


def test_no_call_that_makes_something_stay_can_be_spared(base: Path) -> None:
    """Removing any one of them leaves, after some call, a state that must not be."""
    judge = Judge(base)  # of all: what is well once is well however it came about
    whole = [
        recorded(base, everything(*kinds)) for kinds in (("symlink", "exchange"), ("exchange", "symlink"))
    ]
    spared = calls_that_make_stay()
    for trace in itertools.chain(whole, *(killed(base, name) for name in KILLED)):
        for site in sorted(spared & trace.sites):
            if judge.fault(lacking(trace.without(site), trace.made_by(site))):
                spared.discard(site)
        if not spared:
            break
    assert not spared, "the project makes these calls for nothing, or nothing here shows what for"
    tally("one fsync of the protocol left out", len(calls_that_make_stay()), "the enumeration finds each")
