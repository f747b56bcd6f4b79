"""Which states a power cut may leave, by what was recorded and made to stay.

The model is weaker than any journaling file system, so what holds in it holds on them.

- A file's bytes that were not synced may be there, or be those of any moment since it was, or be torn: cut
  short half way, or zeros of full length. A file that never was may be empty.
- A directory's changes come to the disk in their order, but each directory's at its own time, and without a
  sync perhaps never.
- A rename is whole or not at all as long as neither of its directories is synced. The sync of one makes its
  half stay and says nothing of the other's. An exchange is whole or not at all in any case: no file system
  offers it otherwise, and without that nothing could rely on it.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tests.faults.crash_states_recording import ROOT, Event, Named, Node, Synced, Told, Written
from tests.faults.judge import STATE

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.faults.crash_states_recording import Kind, Recording
    from tests.faults.judge import Generation

EMPTIED: Final = frozenset({"staging", "trash"})
"""Recovery looks at no more than the names in these."""
_MOST_NAMINGS: Final = 400
"""Combinations of directories that are looked at after one call; beyond it they are drawn."""
_RANDOM = re.compile(r"(?:(?<=^\.current\.)|(?<=Z-[0-9a-f]{8}\.)|^)[0-9]*[-.]?[0-9a-f]{8,16}$")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a program did, from `since` on with the power at risk."""

    events: tuple[Event, ...]
    kinds: Mapping[Node, Kind]
    targets: Mapping[Node, str]
    generations: Sequence[Generation]
    since: int = 0

    @classmethod
    def of(cls, recording: Recording, generations: Sequence[Generation], since: int = 0) -> Trace:
        """What was recorded until now."""
        kinds, targets = dict(recording.kinds), dict(recording.targets)
        return cls(tuple(recording.events), kinds, targets, tuple(generations), since)

    @property
    def sites(self) -> set[str]:
        """The calls in the project that made something stay, each by file and line."""
        return {event.site for event in self.events[self.since :] if isinstance(event, Synced)}

    def made_by(self, site: str) -> set[Node]:
        """What one of these calls made to stay."""
        return {event.node for event in self.events if isinstance(event, Synced) and event.site == site}

    def without(self, site: str) -> Trace:
        """The same, had the project not made that call."""

        def left(events: Iterable[Event]) -> tuple[Event, ...]:
            return tuple(e for e in events if not (isinstance(e, Synced) and e.site == site))

        return replace(self, events=left(self.events), since=len(left(self.events[: self.since])))


@dataclass(frozen=True, slots=True)
class Relied:
    """What somebody relies on.

    Attributes:
        commits: digests of the records of the history, in their order.
        pinned: ids of releases that are pinned.
        unpinned: ids of releases that are not.
        number: the highest that was told, and must not be given again.
        prunes: whether releases are being removed.
    """

    commits: tuple[str, ...] = ()
    pinned: frozenset[str] = frozenset()
    unpinned: frozenset[str] = frozenset()
    number: int = 0
    prunes: bool = False

    def and_(self, told: Told) -> Relied:
        """The same, and what was told now; while it is being changed, a pin is relied on neither way."""
        value = told.value
        match told.what:
            case "commit":
                return self if value in self.commits else replace(self, commits=(*self.commits, value))
            case "pinned":
                return replace(self, pinned=self.pinned | {value})
            case "unpinned":
                return replace(self, unpinned=self.unpinned | {value})
            case "pinning":
                return replace(self, pinned=self.pinned - {value}, unpinned=self.unpinned - {value})
            case "number":
                return replace(self, number=max(self.number, int(value)))
            case "prunes":
                return replace(self, prunes=value == "begin")
            case "starts" | "stages":
                return self
        raise ValueError(told)


class Disk:
    """What is in memory after the first calls of a trace, and what of it is sure to be on the disk."""

    def __init__(self, trace: Trace) -> None:
        self.relied = Relied()
        self._trace = trace
        self._steps: list[Named] = []
        self._chains: dict[Node, list[int]] = {ROOT: []}
        self._sure: dict[Node, int] = {}
        self._versions: dict[Node, list[bytes]] = {}
        self._stays: dict[Node, int] = {}

    def take(self, event: Event) -> None:
        """Let it happen."""
        match event:
            case Written():
                self._versions.setdefault(event.node, [b""]).append(event.content)
            case Named():
                for directory in dict.fromkeys(name[0] for name in event.names):
                    self._chains.setdefault(directory, []).append(len(self._steps))
                self._steps.append(event)
            case Synced():
                if self._trace.kinds[event.node] == "directory":
                    self._make_sure(event.node, len(self._chains.get(event.node, ())))
                else:
                    self._stays[event.node] = len(self._versions.get(event.node, (b"",))) - 1
            case Told():
                self.relied = self.relied.and_(event)

    def _make_sure(self, directory: Node, length: int) -> None:
        before = self._sure.get(directory, 0)
        if length <= before:
            return
        self._sure[directory] = length
        for step in self._chains[directory][before:length]:
            if not self._steps[step].splits:
                for other in {name[0] for name in self._steps[step].names} - {directory}:
                    self._make_sure(other, self._chains[other].index(step) + 1)

    def names(self, directory: Node, length: int) -> dict[str, Node]:
        """What a directory holds after the first changes of it."""
        found: dict[str, Node] = {}
        for step in self._chains.get(directory, [])[:length]:
            for where, name, node in self._steps[step].names:
                if where == directory:
                    found.pop(name, None)
                    if node is not None:
                        found[name] = node
        return found

    def tree(self, lengths: Mapping[Node, int]) -> dict[Node, dict[str, Node]]:
        """What each directory holds, if some have come no further than so many changes."""
        return {node: self.names(node, lengths.get(node, len(chain))) for node, chain in self._chains.items()}

    def in_sight(self) -> tuple[list[Node], list[Node]]:
        """Directories and files that recovery may look into, whatever came to the disk."""
        seen, unopened = {ROOT}, [ROOT]
        directories: list[Node] = []
        files: list[Node] = []
        while unopened:
            directory = unopened.pop()
            directories.append(directory)
            for name, node in self._ever(directory):
                if node in seen:
                    continue
                seen.add(node)
                kind = self._trace.kinds[node]
                if kind == "file":
                    files.append(node)
                elif kind == "directory":
                    (directories if name in EMPTIED else unopened).append(node)
        return directories, files

    def _ever(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """What a directory surely holds, and what it may hold."""
        sure = self._sure.get(directory, 0)
        yield from self.names(directory, sure).items()
        for step in self._chains.get(directory, [])[sure:]:
            for where, name, node in self._steps[step].names:
                if where == directory and node is not None:
                    yield name, node

    def unsure(self, directories: Iterable[Node]) -> dict[Node, range]:
        """How many of its changes may be on the disk, of each directory of which that is not known."""
        found: dict[Node, range] = {}
        for directory in directories:
            sure, length = self._sure.get(directory, 0), len(self._chains.get(directory, ()))
            if sure < length:
                found[directory] = range(sure, length + 1)
        return found

    def namings(self, chance: random.Random) -> Iterator[dict[Node, int]]:
        """The ways in which the directories in sight may have come to the disk."""
        ranges = self.unsure(self.in_sight()[0])
        every: Iterable[tuple[int, ...]] = itertools.product(*ranges.values())
        count = math.prod(len(some) for some in ranges.values())
        if count > _MOST_NAMINGS:
            values = list(ranges.values())
            ends = [tuple(lengths[end] for lengths in values) for end in (0, -1)]
            lagging = [tuple(lengths[0 if one is lengths else -1] for lengths in values) for one in values]
            drawn = [tuple(chance.choice(lengths) for lengths in values) for _ in range(_MOST_NAMINGS)]
            every = dict.fromkeys([*ends, *lagging, *drawn])
        for chosen in every:
            lengths = dict(zip(ranges, chosen, strict=True))
            if self.hangs_together(lengths):
                yield lengths

    def held_back(self, unsure: Mapping[Node, range], directory: Node, length: int) -> dict[Node, int]:
        """Lengths of which one directory's is this, and the others' the greatest that go with it."""
        lengths = {node: some[-1] for node, some in unsure.items()}
        lengths[directory] = length
        changed = [directory]
        while changed:
            back = changed.pop()
            for step in self._chains[back][lengths[back] :]:
                for other in {name[0] for name in self._steps[step].names} - {back}:
                    there = self._chains[other].index(step)
                    if self._sure.get(other, 0) <= there < lengths.get(other, 0):
                        lengths[other] = there
                        changed.append(other)
        return lengths

    def hangs_together(self, lengths: Mapping[Node, int]) -> bool:
        """Whether no rename is there by half that can't be."""
        for directory, length in lengths.items():
            chain = self._chains[directory]
            for place in range(self._sure.get(directory, 0), len(chain)):
                step = self._steps[chain[place]]
                for other in {name[0] for name in step.names} - {directory}:
                    there = self._chains[other].index(chain[place])
                    if there < self._sure.get(other, 0):
                        if not step.splits and place >= length:
                            return False
                    elif other in lengths and (place < length) != (there < lengths[other]):
                        return False
        return True

    def latest(self, node: Node) -> bytes:
        """What a file holds."""
        return self._versions.get(node, [b""])[-1]

    def others(self, node: Node) -> list[bytes]:
        """What else a file may hold after a power cut."""
        versions, sure = self._versions.get(node, [b""]), self._stays.get(node, 0)
        if sure == len(versions) - 1:
            return []
        old, new = versions[sure], versions[-1]
        torn = (new[: (len(old) + len(new)) // 2], old + bytes(max(len(new) - len(old), 0)))
        return [content for content in dict.fromkeys((*versions[sure:-1], *torn)) if content != new]

    def writings(self) -> Iterator[dict[Node, bytes]]:
        """What files in sight may hold: all the latest; or one of them, or all, something else."""
        others = {node: other for node in self.in_sight()[1] if (other := self.others(node))}
        yield {}
        for node, contents in others.items():
            for content in contents:
                yield {node: content}
        if len(others) > 1:
            yield {node: contents[0] for node, contents in others.items()}


@dataclass(frozen=True, slots=True)
class State:
    """What a power cut may leave.

    Attributes:
        after: how many calls of the trace had been made.
        tree: what each directory holds.
        contents: of each file.
        relied: what must hold in it.
        trace: what it comes from.
    """

    after: int
    tree: Mapping[Node, Mapping[str, Node]]
    contents: Mapping[Node, bytes]
    relied: Relied
    trace: Trace

    def key(self) -> tuple[Any, ...]:
        """What tells it from all others, but for random names."""
        return self._key(ROOT, {}), self.relied

    def _key(self, directory: Node, seen: dict[Node, int]) -> tuple[Any, ...]:
        found: list[Any] = []
        for name, node in sorted(self.tree.get(directory, {}).items()):
            kind = self.trace.kinds[node]
            plain = _RANDOM.sub("*", name)
            if kind == "directory":
                hidden = sorted(_RANDOM.sub("*", other) for other in self.tree.get(node, ()))
                found.append((plain, tuple(hidden) if name in EMPTIED else self._key(node, seen)))
            elif kind == "link":
                found.append((plain, self.trace.targets[node]))
            else:
                found.append((plain, seen.setdefault(node, len(seen)), self.contents.get(node, b"")))
        return tuple(found)

    def make(self, root: Path) -> None:
        """Make it real in an empty directory; a directory with two names becomes two."""
        self._make(ROOT, root, {})

    def _make(self, directory: Node, path: Path, made: dict[Node, Path]) -> None:
        for name, node in self.tree.get(directory, {}).items():
            here = path / name
            kind = self.trace.kinds[node]
            if kind == "directory":
                here.mkdir()
                self._make(node, here, made)
            elif kind == "link":
                here.symlink_to(self.trace.targets[node])
            elif node in made:
                here.hardlink_to(made[node])
            else:
                here.write_bytes(self.contents.get(node, b""))
                here.chmod(0o644 if STATE in {path.name, path.parent.name} else 0o444)
                made[node] = here

    def doubles(self) -> list[str]:
        """Names of the directories that are among what recovery empties, and elsewhere too."""
        elsewhere: dict[Node, str] = {}
        emptied: set[Node] = set()
        unopened = [ROOT]
        while unopened:
            for name, node in self.tree.get(unopened.pop(), {}).items():
                if self.trace.kinds[node] != "directory":
                    continue
                if name in EMPTIED:
                    emptied.update(self.tree.get(node, {}).values())
                else:
                    elsewhere.setdefault(node, name)
                    unopened.append(node)
        return [name for node, name in elsewhere.items() if node in emptied]


def in_memory(trace: Trace) -> State:
    """The state that lacks nothing: what was recorded, if it is all that was done."""
    disk = Disk(trace)
    for event in trace.events:
        disk.take(event)
    contents = {node: disk.latest(node) for node, kind in trace.kinds.items() if kind == "file"}
    return State(len(trace.events), disk.tree({}), contents, disk.relied, trace)


def states(trace: Trace, chance: random.Random) -> Iterator[State]:
    """Every state that the model allows, after each call."""
    for after, disk in _progress(trace):
        files = disk.in_sight()[1]
        for lengths in disk.namings(chance):
            tree = disk.tree(lengths)
            for changed in disk.writings():
                contents = {node: changed.get(node, disk.latest(node)) for node in files}
                yield State(after, tree, contents, disk.relied, trace)


def lacking(trace: Trace, suspects: Collection[Node]) -> Iterator[State]:
    """Of all states those that lack something of one suspect that was not synced, and what goes with that."""
    for after, disk in _progress(trace):
        directories, files = disk.in_sight()
        unsure = disk.unsure(directories)
        for suspect in suspects:
            contents = {node: disk.latest(node) for node in files}
            if suspect in unsure:
                for length in unsure[suspect][:-1]:
                    back = disk.held_back(unsure, suspect, length)
                    if disk.hangs_together(back):
                        yield State(after, disk.tree(back), contents, disk.relied, trace)
            for content in disk.others(suspect) if suspect in contents else ():
                yield State(after, disk.tree({}), {**contents, suspect: content}, disk.relied, trace)


def _progress(trace: Trace) -> Iterator[tuple[int, Disk]]:
    """The disk after each call from `since` on."""
    disk = Disk(trace)
    for after, event in enumerate(trace.events, 1):
        disk.take(event)
        if after >= trace.since:
            yield after, disk
