"""What must hold at the end of a soak."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import spacy

from tests.faults.judge import Generation, commits, generation, judge, live
from tests.pipelines import texts

from .writer import content

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .actors import Actors
    from .place import Place, Rule

Event = dict[str, Any]


@dataclass
class Found:
    """What was seen in a soak.

    Attributes:
        violations: what is not allowed, each a sentence.
        reads: by readers.
        read_releases: how many releases they saw.
    """

    violations: list[str] = field(default_factory=list)
    reads: int = 0
    read_releases: int = 0


class Spooled:
    """The entries that a spool ever had, looked at while they are there."""

    def __init__(self, spool: Path) -> None:
        self._new = spool / "new"
        self._known: dict[str, Generation] = {}

    def look(self) -> None:
        """To be called more often than the training removes what it has just written."""
        for entry in sorted(self._new.glob("*")):
            if entry.name in self._known:
                continue
            try:
                files = generation(entry)
            except OSError:  # removed meanwhile
                continue
            del files["entry.json"]
            self._known[entry.name] = files

    @property
    def generations(self) -> list[Generation]:
        return list(self._known.values())


def events(place: Place) -> Iterator[Event]:
    """All that was ever logged; raises ValueError if a line is not whole."""
    for path in place.logs():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise ValueError(f"{path.name}:{number} is no event: {line[:200]!r}") from None


def written(place: Place, rule: Rule) -> Iterator[Event]:
    """What the journal of a rewritten checkpoint says, but for a line that its writer was killed in."""
    path = place.journal(rule)
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def judge_all(actors: Actors, spooled: Spooled, log: list[Event]) -> Found:
    """Judge every folder, the log, and what the readers saw. The daemon is stopped, and so is everyone."""
    found = Found()
    for rule in actors.place.rules:
        known = generations(actors, spooled, rule)
        told = [event for event in log if event.get("rule") == rule.name]
        deploy = actors.place.deploy(rule)
        faults = judge(deploy, known if rule.contents == "pipeline" else None, log=told)
        if rule.contents == "pipeline":
            faults += _ever_unknown(deploy, known)
        faults += _stale(actors.place, rule, known)
        found.violations += [f"{rule.name}: {fault}" for fault in faults]
    for event in log:
        if "exception" in event:
            found.violations.append(f"the daemon logged a fault of its own: {json.dumps(event)[:2000]}")
    found.violations += [f"the daemon: {said}" for said in actors.daemon.unexpected]
    found.violations += [said for actor in actors.all for said in actor.unexpected]
    _read(actors, found)
    return found


def generations(actors: Actors, spooled: Spooled, rule: Rule) -> list[Generation]:
    """All that was ever whole in the source of a rule, or was saved into its folder by force."""
    if rule.writer == "training":
        return list(actors.training.generations())
    if rule.writer == "spool":
        return spooled.generations
    return [line["files"] for line in written(actors.place, rule) if "files" in line]


def _ever_unknown(deploy: Path, known: list[Generation]) -> list[str]:
    """Also of the releases that are long gone, as the history remembers them."""
    contents = {content(files) for files in known}
    return [
        f"history: {line['release']} was live, and its bytes are no generation"
        for line in commits(deploy)
        if line["content_sha256"] not in contents
    ]


def _stale(place: Place, rule: Rule, known: list[Generation]) -> list[str]:
    """Whether what is in the source at last, if it is whole, is live at last."""
    source = place.source(rule)
    if rule.writer == "spool":
        source = max((source / "new").iterdir())
    last = generation(source)
    last.pop("entry.json", None)
    manifest = live(place.deploy(rule))
    if last not in known:  # of a training that was killed while it wrote
        return [] if rule.writer == "training" else ["its writer left half a checkpoint"]
    if manifest is None:
        return ["nothing is live"]
    if rule.contents == "pipeline":
        return [] if manifest["content_sha256"] == content(last) else ["what was written last is not live"]
    if rule.contents == "component":
        model = last["spancat/model"]
        return [] if manifest["model_sha256"] == model else ["what was written last is not live"]
    same = _predictions(place.deploy(rule) / "current") == _predictions(source)
    return [] if same else ["what was written last is not live, or predicts something else"]


def _predictions(pipeline: Path) -> list[list[tuple[int, int, str, float]]]:
    nlp = spacy.load(pipeline)
    return [
        [
            (span.start, span.end, span.label_, round(float(score), 5))
            for span, score in zip(doc.spans["sc"], doc.spans["sc"].attrs.get("scores", ()), strict=True)
        ]
        for doc in nlp.pipe(texts())
    ]


def _read(actors: Actors, found: Found) -> None:
    seen = set()
    for path in sorted(actors.place.reports.glob("reader-*.jsonl")):
        reads = 0
        for line in path.read_text().splitlines():
            try:
                said = json.loads(line)
            except ValueError:  # its reader was killed in it
                continue
            if "torn" in said:
                when = datetime.fromtimestamp(said["at"]).astimezone().isoformat()
                found.violations.append(f"{path.stem} at {when}: {said['torn']}")
            else:
                reads += said["reads"]
                seen |= set(said["releases"])
        found.reads += reads
    for reader in actors.readers:
        if not reader.report.exists():
            found.violations.append(f"{reader.name} read nothing: {reader.said()}")
    found.read_releases = len(seen)
