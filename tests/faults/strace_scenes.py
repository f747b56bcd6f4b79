"""What is done to a deployment folder, from which state, and what is to come of it whatever fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from tests.faults.judge import commits, generation, judge, live
from tests.faults.strace_calls import happened, recorded, recording
from tests.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from tests.faults.strace_calls import Call, Fault

ROOT: Final = Path(__file__).resolve().parents[2]
ATTEMPTS: Final = 3

Kind = Literal["symlink", "exchange"]
Told = dict[str, Any]
Step = tuple[str, int, Kind]
"""An action, the generation that the checkpoint has meanwhile, and how it is swapped."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that is done, and what was done before.

    Attributes:
        before: the steps that lead to it.
        action: what is done: "publish", "rollback", "prune", "pin" or "recover".
        source: the generation that the checkpoint has.
        kind: how it is swapped.
        ends: how it ends where nothing fails.
        more: tables of the rule.
        size: of the checkpoint, as `build` takes it.
    """

    before: tuple[Step, ...]
    action: str
    source: int
    kind: Kind
    ends: tuple[str, ...] = ("done",)
    more: str = ""
    size: Mapping[str, int] = field(default_factory=dict)


def _publish(*steps: tuple[int, Kind]) -> tuple[Step, ...]:
    return tuple(("publish", number, kind) for number, kind in steps)


_PUBLISHED: Final = ("published", "unchanged")
_KEEP_ONE: Final = "[watch.keep]\nlast = 1\n"
_REFUSE: Final = 'keep_rejected = 1\n[watch.gate]\nmax_bytes = "1KiB"\n'
_OTHER: Final[Mapping[Kind, Kind]] = {"symlink": "exchange", "exchange": "symlink"}


def scenes() -> dict[str, Scene]:
    """All of them, by name."""
    found: dict[str, Scene] = {}
    for kind, other in _OTHER.items():
        three = _publish((0, kind), (1, kind), (2, kind))
        found |= {
            f"first publish, {kind}": Scene((), "publish", 0, kind, _PUBLISHED),
            f"publish, {kind}": Scene(_publish((0, kind), (1, kind)), "publish", 2, kind, _PUBLISHED),
            f"publish, {other} to {kind}": Scene(
                _publish((0, other), (1, other)), "publish", 2, kind, _PUBLISHED
            ),
            f"rollback, {kind}": Scene(three, "rollback", 2, kind),
            f"rollback, {other} to {kind}": Scene(
                _publish((0, other), (1, other), (2, other)), "rollback", 2, kind
            ),
            f"retention, {kind}": Scene((*three, *_publish((3, kind))), "prune", 3, kind, more=_KEEP_ONE),
        }
    before = (*_publish((0, "symlink")), ("reject", 1, "symlink"))
    found["rejected snapshot"] = Scene(before, "publish", 2, "symlink", ("rejected",), more=_REFUSE)
    # Of more than one piece, so that it is copied by the kernel
    size = {"width": 96, "rows": 3300}
    found["publish of 6 MB"] = Scene(_publish((0, "symlink")), "publish", 1, "symlink", _PUBLISHED, size=size)
    found["pin"] = Scene(_publish((0, "symlink"), (1, "symlink")), "pin", 1, "symlink")
    return found


class Actor:
    """The process that acts; a context manager."""

    def __enter__(self) -> Self:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.faults.strace_actor"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=120)

    def play(self, case: Told) -> Told:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        answer: Told = json.loads(self._process.stdout.readline())
        assert "untraceable" not in answer, answer
        return answer


@dataclass
class Stage:
    """Where one scene is played again and again, each time from the same state.

    Attributes:
        scene: which.
        root: a folder of its own.
        actor: who acts.
        events: what was logged up to that state.
    """

    scene: Scene
    root: Path
    actor: Actor
    events: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(4):
            build("default", self.root / f"runs/{number}", generation=number, **self.scene.size)
        self.generations = [generation(self.root / f"runs/{number}") for number in range(4)]
        self.folder = self.root / "case"
        self.log = self.root / "calls"
        for action, source, kind in self.scene.before:
            more = _REFUSE if action == "reject" else ""
            ends = ("rejected",) if action == "reject" else _PUBLISHED
            answer = self._play("publish", source, kind, more, ends, attempts=1)
            assert (answer["attempts"] or [[""]])[-1][0] in ends, answer
            self.events = answer["events"]
        self._keep("whole")
        self._origin = (self.scene, self.events)

    @property
    def deploy(self) -> Path:
        return self.folder / "models/products"

    def _keep(self, name: str) -> None:
        """Make the folder, as it is now, the state that every case begins with."""
        self.template = self.root / name
        shutil.rmtree(self.template, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self.template)
        else:
            self.template.mkdir()
        self.before = live(self.template / "models/products")

    def reset(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        # Hard links within it stay what they are, and none leads out of it.
        subprocess.run(["cp", "-a", self.template, self.folder], check=True)

    def record(self) -> list[Call]:
        """The system calls of the scene where nothing fails."""
        self.reset()
        answer = self.play(recording(self.log))
        assert answer["attempts"][-1][0] in self.scene.ends, answer
        assert self.unwell(answer["events"]) == []
        return recorded(self.log, self.deploy)

    def play(
        self,
        strace: Sequence[str] | None = None,
        *,
        attempts: int = 1,
        events: list[Told] | None = None,
        action: str = "",
    ) -> Told:
        scene = self.scene
        return self._play(
            action or scene.action,
            scene.source,
            scene.kind,
            scene.more,
            ("done",) if action else scene.ends,
            attempts=attempts,
            strace=strace,
            events=events,
        )

    def _play(
        self,
        action: str,
        source: int,
        kind: Kind,
        more: str,
        ends: Sequence[str],
        *,
        attempts: int,
        strace: Sequence[str] | None = None,
        events: list[Told] | None = None,
    ) -> Told:
        rule = {"source": str(self.root / f"runs/{source}"), "swap": kind}
        return self.actor.play(
            {
                "folder": str(self.folder),
                "rule": rule,
                "more": more,
                "action": action,
                "ends": ends,
                "attempts": attempts,
                "events": self.events if events is None else events,
                "strace": strace,
            }
        )

    def unwell(self, events: list[Told] | None, *, recovered: bool = True) -> list[str]:
        if not self.deploy.exists():
            return []
        return judge(self.deploy, self.generations, recovered=recovered, log=events)

    def crash(self, fault: Fault) -> list[Call]:
        """Let the recovery of what a kill leaves be what every case is from now on; return its calls."""
        self.scene, self.events = self._origin
        self.template = self.root / "whole"
        self.reset()
        self.events = self.play(fault.options(self.log))["events"]
        self._keep("crashed")
        self.scene = replace(self.scene, action="recover", ends=("done",))
        return self.record()

    def survives(self, fault: Fault) -> list[str]:
        """Put a fault in; return what is wrong afterwards, at once and after a fresh process went on."""
        self.reset()
        killed = "SIGKILL" in fault.what
        attempts = 1 if killed or fault.lasting else ATTEMPTS
        answer = self.play(fault.options(self.log), attempts=attempts)
        wrong = [f"a bug: {answer['bug']}"] if "bug" in answer else []
        if not happened(self.log):
            wrong.append("the fault did not happen")
        if killed and answer["status"] != -9:
            wrong.append(f"it was not killed: {answer}")
        wrong += self.unwell(None, recovered=False)
        if not killed and "bug" not in answer:
            wrong += self._unclear(answer["attempts"], fault)
            if not fault.lasting and answer["attempts"][-1][0] not in self.scene.ends:
                wrong.append(f"the same process did not get over it: {answer['attempts']}")
        return wrong + self._goes_on(answer.get("events", self.events))

    def _goes_on(self, events: list[Told]) -> list[str]:
        """Let a fresh process do what was to be done, if one would; judge what it leaves."""
        swaps_again = self.scene.action == "rollback"  # that would be one further back
        again = self.play(events=events, action="recover" if swaps_again else "")
        wrong = [f"a fresh process has a bug: {again['bug']}"] if "bug" in again else []
        ends = ("done",) if swaps_again else self.scene.ends
        if again["attempts"] and again["attempts"][-1][0] not in ends:
            wrong.append(f"a fresh process did not get over it: {again['attempts']}")
        wrong += self.unwell(again["events"])
        now, made = live(self.deploy), commits(self.deploy)
        if any(line["kind"] == "recovered" for line in made):
            wrong.append("a fault was taken for a change by hand, or for a lost history")
        if self.scene.action == "publish" and "published" in self.scene.ends:
            files = self.generations[self.scene.source]
            if now is None or now["model_sha256"] != files["spancat/model"]:
                wrong.append("what was to be published is not live")
        elif swaps_again:
            allowed = [line["release"] for line in made[-2:]] if self.before else []
            if now is None or now["id"] not in allowed:
                wrong.append("neither what was live nor what was before it is live")
        elif now != self.before:
            wrong.append("something else is live")
        return wrong

    def _unclear(self, attempts: list[list[str]], fault: Fault) -> list[str]:
        """Failures that do not say what failed, and where."""
        number = getattr(errno, fault.what.removeprefix("error="), None)
        wrong = []
        for status, reason in attempts:
            if status in self.scene.ends:
                continue
            if number is not None and os.strerror(number) not in reason:
                wrong.append(f"{status} does not say {os.strerror(number)!r}: {reason!r}")
            if str(self.root) not in reason:
                wrong.append(f"{status} names no place: {reason!r}")
        return wrong
