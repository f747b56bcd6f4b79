"""What `check` looks at of verification and gates: whether what they ask for can be had."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spancat_daemon.checkpoint.layout import FACTORIES, read_outline, with_span_categorizers
from spancat_daemon.checkpoint.progress import META_KEY
from spancat_daemon.checkpoint.spool import open_checkpoint
from spancat_daemon.cli.finding import Finding
from spancat_daemon.cli.interpreter import Answer, ask
from spancat_daemon.config.expand import targets
from spancat_daemon.config.problems import Problem, nearest
from spancat_daemon.config.references import MOST_SHOWN, problems_of_match
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.verify.gates import metric_of
from spancat_daemon.verify.probes import BadProbes, read_probes, unknown_labels
from spancat_daemon.verify.verdict import Examination
from spancat_daemon.verify.verification import subject_of
from spancat_daemon.verify.warm import WarmLoaders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.checkpoint.layout import Layout, SpanCategorizer
    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.located import Located
    from spancat_daemon.config.model import Verify, Watch
    from spancat_daemon.config.places import Path as KeyPath
    from spancat_daemon.release.survey import Release

_SCORED: Final = "model-best"
_SHOWN_LABELS: Final = 10
_GOLD: Final = "name gold documents in [watch.verify]"


def inspect_conditions(located: Located) -> Iterator[Finding]:
    """Looks at what ``[watch.verify]`` and ``[watch.gate]`` need; changes nothing.

    Args:
        located: the configuration; what is wrong with the files it names for certain is told already, by
            ``references.problems``.
    """
    answers: dict[tuple[str, int], Answer] = {}
    able: set[int] = set()
    for index, watch in enumerate(located.configuration.watch):
        if watch.loads:
            found = _interpreter(located, index, watch, answers)
            if found.level == "ok":
                able.add(index)
            yield found
    index_of = {watch.name: index for index, watch in enumerate(located.configuration.watch)}
    with WarmLoaders(at_most=1) as loaders:
        for target in targets(located.configuration):
            looking = _Looking(located, index_of[target.watch.name], target)
            yield from looking.files_of_match()
            yield from looking.labels()
            yield from looking.scores()
            yield from looking.steps()
            if looking.index in able:
                yield from looking.gold(loaders)


def _interpreter(
    located: Located, index: int, watch: Watch, answers: dict[tuple[str, int], Answer]
) -> Finding:
    verify = watch.verify
    if verify.python is None:
        return _own_interpreter(watch)
    wanted = (str(verify.python), verify.memory)
    if wanted not in answers:
        answers[wanted] = ask(wanted[0], memory_bytes=wanted[1], timeout_s=verify.timeout)
    answer = answers[wanted]
    if answer.problem:
        problem = located.problem(("watch", index, "verify", "python"), f"{wanted[0]} {answer.problem}")
        return Finding.at("error", watch.name, problem, _remedy(answer, verify))
    return Finding("ok", watch.name, f"{wanted[0]} is Python {answer.python} with spaCy {answer.spacy}")


def _remedy(answer: Answer, verify: Verify) -> str:
    if "MemoryError" in answer.problem or "failed to map" in answer.problem:
        return "raise verify.memory"
    if answer.python and not answer.spacy:
        return f"install it there: {verify.python} -m pip install spacy"
    return "name the interpreter that serves the model, such as /opt/serving/bin/python"


def _own_interpreter(watch: Watch) -> Finding:
    """It runs this, so only spaCy is in question; what is installed is known without importing it."""
    python = platform.python_version()
    try:
        spacy = importlib.metadata.version("spacy")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "error",
            watch.name,
            f"the daemon's own Python {python} has no spaCy",
            "name another in verify.python",
        )
    return Finding("ok", watch.name, f"the daemon's own Python {python} with spaCy {spacy} verifies")


@dataclass(frozen=True, slots=True)
class _Model:
    """A span categorizer that is there, in the source or live."""

    layout: Layout
    component: SpanCategorizer


class _Looking:
    """At one target, with its checkpoint and live release as far as they can be read now."""

    def __init__(self, located: Located, index: int, target: Target) -> None:
        self.located = located
        self.at: KeyPath = ("watch", index)
        self.index = index
        self.target = target
        self.watch = target.watch
        self.model = _model(target)
        live = _live(target)
        found = [
            *(self.model.component.labels if self.model else ()),
            *(live.manifest.labels if live is not None else ()),
        ]
        self.known = tuple(dict.fromkeys(found))

    def warning(self, key: str, text: str, hint: str) -> Finding:
        problem = self.located.problem((*self.at, "gate", key), text, at_key=True)
        return Finding.at("warning", self.target.rule, problem, hint)

    def files_of_match(self) -> Iterator[Finding]:
        for problem in problems_of_match(self.located, self.index, self.watch):
            yield Finding.at("error", self.target.rule, problem)

    def labels(self) -> Iterator[Finding]:
        """Labels that are asked for, and that neither the checkpoint nor the live release has."""
        if not self.known:  # nothing is there yet that could have labels
            return
        probes = self.watch.verify.probes
        if probes is not None:
            yield from self._labels_of_probes(probes)
        minimum = self.watch.gate.per_label_minimum
        for label in minimum if isinstance(minimum, dict) else ():
            if label not in self.known:
                shown = ", ".join(self.known[:_SHOWN_LABELS])
                more = ", …" if len(self.known) > _SHOWN_LABELS else ""
                problem = self.located.problem(
                    (*self.at, "gate", "per_label_minimum", label),
                    f"{label!r} is not a label of the model ({shown}{more}){nearest(label, self.known)}",
                    at_key=True,
                )
                yield Finding.at("error", self.target.rule, problem)

    def _labels_of_probes(self, path: Path) -> Iterator[Finding]:
        try:
            probes = read_probes(path)
        except BadProbes:  # of a match, and told as such
            return
        wrong = unknown_labels(probes, self.known)
        for at in wrong[:MOST_SHOWN]:
            problem = Problem(at.line, at.column, at.message, at.text, str(path))
            yield Finding.at("error", self.target.rule, problem)
        if not wrong:
            yield Finding("ok", self.target.rule, f"{path}: {len(probes)} probes, all of known labels")

    def scores(self) -> Iterator[Finding]:
        """Conditions on scores that meta.json doesn't have, or has of an earlier state."""
        gate = self.watch.gate
        asked = [key for key in ("minimum", "max_drop") if getattr(gate, key) is not None]
        by_label = ["per_label_minimum"] if gate.per_label_minimum is not None else []
        if self.watch.verify.gold is not None or not (asked or by_label):
            return
        first = [*asked, *by_label][0]
        if self.target.source.name != _SCORED:
            yield self.warning(
                first,
                f"{first} goes by meta.json, and in {self.target.source.name} that may hold the scores of an "
                f"earlier state: only {_SCORED} is saved right after it was scored",
                f"{_GOLD}, or take {_SCORED}",
            )
        if self.model is None:
            return
        key, metrics = self.model.component.spans_key, self.model.layout.metrics
        metric = metric_of(gate, key)
        if asked and metric not in metrics:
            scores = sorted(name for name, value in metrics.items() if isinstance(value, int | float))
            there_are = f"only {', '.join(map(repr, scores[:_SHOWN_LABELS]))}" if scores else "none at all"
            yield self.warning(
                "metric" if gate.metric else asked[0],
                f"the checkpoint's meta.json has no score {metric!r}, {there_are}{nearest(metric, scores)}",
                _GOLD,
            )
        if by_label and not isinstance(metrics.get(f"spans_{key}_per_type"), dict):
            yield self.warning(
                "per_label_minimum",
                "the checkpoint's meta.json has no scores of single labels, so nothing will pass",
                f"{_GOLD}, or train with spans_{key}_per_type = null in [training.score_weights]",
            )

    def gold(self, loaders: WarmLoaders) -> Iterator[Finding]:
        """Gold documents that are of no use, as the live release shows that is evaluated on them."""
        verify, gate = self.watch.verify, self.watch.gate
        live = _live(self.target)
        if verify.gold is None or live is None:
            return
        verdict = loaders.examine(
            Examination(subject=subject_of(live.path, live.manifest), gold=verify.gold),
            python=str(verify.python or sys.executable),
            memory_bytes=verify.memory,
            timeout_s=verify.timeout,
            idle_s=verify.idle,
        )
        if verdict.evaluated is None:
            if verdict.fault == "verifier":
                problem = self.located.problem((*self.at, "verify", "gold"), verdict.reason)
                yield Finding.at("error", self.target.rule, problem)
            return
        metric, scores = metric_of(gate, live.manifest.spans_key), verdict.evaluated.scores
        if metric in scores:
            documents = f"{verify.gold}: {verdict.evaluated.documents} documents"
            text = f"{documents}, {metric} of the live release {scores[metric]:.3f}"
            yield Finding("ok", self.target.rule, text)
        elif gate.minimum is not None or gate.max_drop is not None:
            known = sorted(scores)
            text = f"there is no score {metric!r} on the gold documents, only {', '.join(known)}"
            problem = self.located.problem((*self.at, "gate", "metric"), text + nearest(metric, known))
            yield Finding.at("error", self.target.rule, problem)

    def steps(self) -> Iterator[Finding]:
        if self.watch.gate.min_step <= 1 or self.watch.writer == "spool":
            return
        said = self.model.layout.meta.get(META_KEY) if self.model else None
        if not (isinstance(said, dict) and isinstance(said.get("step"), int)):
            yield self.warning(
                "min_step",
                "spaCy writes no step into a checkpoint: it can be told from the first one, and from those "
                "after the first evaluation, but no further",
                "min_step = 1 skips the first; for more train with spancat_daemon.SnapshotLogger.v1, or "
                f'let a callback set nlp.meta["{META_KEY}"] = {{"step": …}}',
            )


def _model(target: Target) -> _Model | None:
    """The span categorizer of the checkpoint that is there; None if that can't be told, as in mid-save."""
    try:
        with open_checkpoint(target.source, writer=target.watch.writer) as source:
            files = source.scan().by_path
            outline = read_outline(
                source.read_small(files["config.cfg"]), source.read_small(files["meta.json"])
            )
            names = [name for name in outline.pipeline if outline.components[name].factory in FACTORIES]
            cfgs = {name: source.read_small(files[f"{name}/cfg"]) for name in names}
            layout = with_span_categorizers(outline, cfgs)
    except (SpancatDaemonError, OSError, KeyError):
        return None
    wanted = target.watch.component
    found = [one for one in layout.span_categorizers if wanted in {"auto", one.name}]
    return _Model(layout, found[0]) if len(found) == 1 else None


def _live(target: Target) -> Release | None:
    try:
        return DeploymentFolder(target.deploy).live()
    except (SpancatDaemonError, OSError):
        return None
