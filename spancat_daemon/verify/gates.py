"""The conditions of ``[watch.gate]``, and of the probes, and how a snapshot meets them; nothing is read here.

Every condition that is written yields a figure, met or not. What the snapshot can't show is not met: a score
that is missing, NaN or no number, a step that nothing tells, a time that was not taken. What the live release
can't show is never held against the snapshot: then there is nothing to compare with, and the figure says so.

Scores are those on the gold documents where there are some, the live release's too, else those of meta.json;
the two kinds are never compared with each other. Differences are those of the decimals that figures show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.checkpoint.progress import META_KEY, Progress
from spancat_daemon.verify.exact import difference, number, spelled, within
from spancat_daemon.verify.verdict import Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from fractions import Fraction

    from spancat_daemon.config.model import Gate
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.verify.verdict import Examination, LoadVerdict

_GOLD: Final = "gold"
_META: Final = "meta.json"
_NO_LIVE: Final = "there is no live release to compare with"

_MOST_NAMES: Final = 6
_LONGEST_NAME: Final = 60
_MOST_REASONS: Final = 4
_LONGEST_TEXT: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A snapshot, as far as conditions are concerned.

    Attributes:
        labels: of the span categorizer, in the order of the model's outputs.
        metrics: the scores in meta.json.
        metrics_may_be_stale: whether these may be of an earlier state of the training.
        spans_key: where in ``doc.spans`` it writes.
        bytes: the size of its files.
        steps: how far the training was; None if nobody looked.
        verdict: what the loader said; None if it was not asked.
        asked: what it was asked. Then a figure that its verdict lacks is missing; without it, such a figure
            counts as not asked for.
    """

    labels: tuple[str, ...]
    metrics: Mapping[str, Any]
    metrics_may_be_stale: bool
    spans_key: str
    bytes: int
    steps: Progress | None
    verdict: LoadVerdict | None
    asked: Examination | None = None


def judge(gate: Gate, *, min_pass: float, candidate: Candidate, live: Manifest | None) -> tuple[Figure, ...]:
    """Hold a snapshot against all conditions.

    Args:
        gate: the conditions.
        min_pass: the share of probes that must pass.
        candidate: the snapshot.
        live: the manifest of the release that is live; None if none is.

    Returns:
        A figure for each condition that is written, and with probes one for `min_pass`; a condition on
        labels has one for each label. The snapshot may go live if all of them passed.
    """
    scores = _scores(candidate, live)
    name = metric_of(gate, candidate.spans_key)
    figures: list[Figure] = []
    if gate.minimum is not None:
        figures.append(_minimum(gate.minimum, name, scores))
    if gate.max_drop is not None:
        figures.append(_max_drop(gate.max_drop, name, scores))
    if gate.per_label_minimum is not None:
        figures += _per_label(gate.per_label_minimum, candidate, scores)
    if gate.labels != "any":
        figures.append(_labels(gate.labels, candidate.labels, live))
    if gate.max_bytes is not None:
        size = candidate.bytes
        passed = size <= gate.max_bytes
        figures.append(
            Figure(gate="max_bytes", passed=passed, value=size, limit=gate.max_bytes, source="files")
        )
    if gate.min_step:
        figures.append(_min_step(gate.min_step, candidate.steps))
    if gate.max_latency_ms is not None:
        figures.append(_max_latency(gate.max_latency_ms, candidate, live))
    figures += _min_pass(min_pass, candidate)
    return tuple(figures)


def metric_of(gate: Gate, spans_key: str) -> str:
    """The name of the score that minimum and max_drop go by."""
    return gate.metric or f"spans_{spans_key}_f"


def refusal(figures: Iterable[Figure]) -> str:
    """Why these figures keep a snapshot from going live, in one line; empty if they don't."""
    failed = [_plain(str(figure)) for figure in figures if not figure.passed]
    more = f"; and {len(failed) - _MOST_REASONS} more" if len(failed) > _MOST_REASONS else ""
    return "; ".join(failed[:_MOST_REASONS]) + more


def recorded_steps(manifest: Manifest) -> Progress | None:
    """How far the training of a release, or a rejected snapshot, was, if its figures say."""
    gates = manifest.verification.get("gates")
    for figure in gates if isinstance(gates, Sequence) else ():
        if isinstance(figure, Mapping) and figure.get("gate") == "min_step":
            step = figure.get("value")
            if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
                return Progress(None, step, "as its release.json says")
    return None


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of one kind, of the snapshot and of the live release.

    Attributes:
        source: what kind: ``gold`` or ``meta.json``.
        snapshot: the snapshot's; None if there are none.
        live: the live release's; None if there are none to compare with.
        no_live: why there are none.
        stale: what is to be said of those of the snapshot; empty if nothing.
        live_stale: likewise of those of the live release.
    """

    source: str
    snapshot: Mapping[str, Any] | None
    live: Mapping[str, Any] | None
    no_live: str
    stale: str = ""
    live_stale: str = ""


def _scores(candidate: Candidate, live: Manifest | None) -> _Scores:
    verdict = candidate.verdict
    evaluated = verdict.evaluated if verdict else None
    live_evaluated = verdict.live_evaluated if verdict else None
    wanted = candidate.asked is not None and candidate.asked.gold is not None
    if wanted or evaluated is not None or live_evaluated is not None:
        if live is None:
            no_live = _NO_LIVE
        else:
            reason = verdict.live_reason if verdict else ""
            no_live = _plain(reason) or "the live release was not evaluated on the gold documents"
        return _Scores(
            _GOLD,
            snapshot=evaluated.scores if evaluated and evaluated.documents > 0 else None,
            live=live_evaluated.scores if live and live_evaluated else None,
            no_live=no_live,
        )
    return _Scores(
        _META,
        snapshot=candidate.metrics,
        live=live.metrics if live else None,
        no_live=_NO_LIVE,
        stale="the score may be older than the weights" if candidate.metrics_may_be_stale else "",
        live_stale="the live release's score may be older than its weights"
        if live and live.metrics_may_be_stale
        else "",
    )


def _minimum(minimum: float, name: str, scores: _Scores) -> Figure:
    value, problem = _score(name, scores)
    return Figure(
        gate="minimum",
        passed=value is not None and value >= minimum,
        value=value,
        limit=minimum,
        of=_plain(name),
        source=scores.source,
        note=_notes(problem, scores.stale),
    )


def _max_drop(max_drop: float, name: str, scores: _Scores) -> Figure:
    value, problem = _score(name, scores)
    before = number(scores.live.get(name)) if scores.live is not None else None
    stale = scores.stale
    if value is None:
        passed = False  # else a misspelt metric would never keep anything from going live
    elif before is None:
        passed, problem = True, scores.no_live if scores.live is None else f"the live release has no {name}"
    else:
        drop = difference(before, value)
        passed = within(drop, max_drop)
        problem, stale = _lower(drop), _notes(stale, scores.live_stale)
    return Figure(
        gate="max_drop",
        passed=passed,
        value=value,
        limit=max_drop,
        live=before,
        of=_plain(name),
        source=scores.source,
        note=_notes(_plain(problem), stale),
    )


def _score(name: str, scores: _Scores) -> tuple[float | None, str]:
    """The snapshot's score, or why there is none."""
    if scores.snapshot is None:
        return None, "it was not evaluated on the gold documents"
    value = number(scores.snapshot.get(name))
    if value is not None:
        return value, ""
    if scores.snapshot.get(name) is not None:
        return None, f"its {_plain(name)} is not a finite number"
    if name in scores.snapshot and scores.source == _GOLD:
        return None, "the gold documents say nothing about it"
    known = [other for other, score in scores.snapshot.items() if number(score) is not None]
    return None, f"{scores.source} has no such score, only {_named(known)}"


def _per_label(
    minimum: float | Mapping[str, float], candidate: Candidate, scores: _Scores
) -> Iterator[Figure]:
    """A figure for each label, or a single one where no label has a score.

    A label that no document has an example of can't have a score. Where every label is asked for, that is
    said and let pass, as long as another one has a score; where it is asked for by name, it fails.
    """
    name = f"spans_{candidate.spans_key}_per_type"
    table = scores.snapshot.get(name) if scores.snapshot is not None else None
    named = isinstance(minimum, Mapping)
    limits = dict(minimum) if isinstance(minimum, Mapping) else dict.fromkeys(candidate.labels, minimum)
    if not isinstance(table, Mapping) or not (named or any(_example(table, label) for label in limits)):
        yield Figure(
            gate="per_label_minimum",
            passed=False,
            value=None,
            limit=minimum,
            of=_plain(name),
            source=scores.source,
            note=_no_table(name, scores, none_of_them=isinstance(table, Mapping)),
        )
        return
    for label, limit in limits.items():
        entry = _example(table, label)
        value = number(entry.get("f")) if entry is not None else None
        if label not in candidate.labels:
            passed, note = False, f"the model has no such label, only {_named(candidate.labels)}"
        elif entry is None:
            passed, note = not named, "no document has an example of it, so it has no score"
        else:
            passed = value is not None and value >= limit
            note = "" if value is not None else "its F-score is not a finite number"
        yield Figure(
            gate="per_label_minimum",
            passed=passed,
            value=value,
            limit=limit,
            of=_plain(label),
            source=scores.source,
            note=_notes(note, scores.stale),
        )


def _example(table: Mapping[str, Any], label: str) -> Mapping[str, Any] | None:
    """The scores of a label; None if no gold document has an example of it.

    spaCy has no entry for a label that is neither in the gold documents nor predicted. For one that is only
    predicted it has zeros, as for one that was never found: ``gold``, the number of its gold spans, tells
    them apart where the loader counted them.
    """
    entry = table.get(label)
    if not isinstance(entry, Mapping):
        return None if entry is None else {"f": entry}
    return None if entry.get("f", "") is None or entry.get("gold") == 0 else entry


def _no_table(name: str, scores: _Scores, *, none_of_them: bool) -> str:
    if none_of_them:
        return "no document has an example of any of its labels"
    if scores.snapshot is None:
        return "it was not evaluated on the gold documents"
    if scores.source == _GOLD:
        return "the gold documents have no spans under its key"
    return (
        "meta.json has no scores of single labels: set `gold` in [watch.verify], "
        f"or {_plain(name)} = null in [training.score_weights]"
    )


def _labels(rule: str, labels: tuple[str, ...], live: Manifest | None) -> Figure:
    before = live.labels if live is not None else None
    if before is None:
        passed, note = True, _NO_LIVE
    else:
        mine, theirs = set(labels), set(before)
        added = [label for label in labels if label not in theirs]
        removed = [label for label in before if label not in mine]
        moved = [x for x in labels if x in theirs] != [x for x in before if x in mine]
        passed = not removed if rule == "superset" else labels == before
        note = _notes(
            f"added {_named(added)}" if added else "",
            f"removed {_named(removed)}" if removed else "",
            f"in another order: {_named(labels)}, live {_named(before)}" if moved else "",
        )
    return Figure(
        gate="labels",
        passed=passed,
        value=len(labels),
        limit=rule,
        live=None if before is None else len(before),
        source="checkpoint",
        note=note,
    )


def _min_step(min_step: int, steps: Progress | None) -> Figure:
    steps = steps or Progress(None, 0, "nobody looked")
    reached = steps.at_least if steps.step is None else steps.step
    passed = reached >= min_step
    known = steps.step is not None or steps.at_least > 0
    note = steps.how
    if steps.step is None and known:
        note = f"that or a later step: {note}"
    if not passed and steps.step is None:
        # Not told is not reached: a condition that nobody can see to be met is no reason to go live.
        note += (
            "; a training tells its step if a [training.before_update] callback sets "
            f'nlp.meta["{META_KEY}"] = {{"step": args["step"]}}'
        )
    return Figure(
        gate="min_step",
        passed=passed,
        value=reached if known else None,
        limit=min_step,
        source="checkpoint",
        note=_plain(note),
    )


def _max_latency(most_ms: float, candidate: Candidate, live: Manifest | None) -> Figure:
    verdict = candidate.verdict
    timed = verdict.timed if verdict is not None else None
    value = number(timed.snapshot_ms) if timed is not None and timed.documents > 0 else None
    before = number(timed.live_ms) if timed is not None and live is not None else None
    if live is None:
        passed, note = True, _NO_LIVE
    elif value is None:
        passed, note = False, 'it was not timed; that takes level = "load" in [watch.verify]'
    elif before is None:
        reason = verdict.live_reason if verdict is not None else ""
        passed, note = True, reason or "the live release was not timed"
    else:
        slower = difference(value, before)
        passed = within(slower, most_ms)
        note = f"{spelled(slower)} ms {'longer' if slower > 0 else 'less'} a document"
    return Figure(
        gate="max_latency_ms",
        passed=passed,
        value=value,
        limit=most_ms,
        live=before,
        source="timing",
        note=_plain(note),
    )


def _min_pass(min_pass: float, candidate: Candidate) -> Iterator[Figure]:
    probed = candidate.verdict.probed if candidate.verdict is not None else None
    if probed is None and not (candidate.asked is not None and candidate.asked.probes):
        return
    share, note = None, "the probes were not tried"
    if probed is not None and 0 <= probed.passed <= probed.total and probed.total > 0:
        share = probed.passed / probed.total
        failures = probed.failures[:_MOST_NAMES] if probed.passed < probed.total else ()
        note = "; ".join([f"{probed.passed} of {probed.total} passed", *failures])
    yield Figure(
        gate="min_pass",
        passed=share is not None and share >= min_pass,
        value=share,
        limit=min_pass,
        source="probes",
        note=_plain(note),
    )


def _lower(drop: Fraction) -> str:
    return f"{spelled(drop)} {'lower' if drop > 0 else 'higher'}" if drop else "the same"


def _notes(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _named(names: Iterable[str]) -> str:
    """Names from foreign files, fit for a sentence."""
    all_of_them = [_plain(str(name), _LONGEST_NAME) for name in names]
    shown = ", ".join(all_of_them[:_MOST_NAMES])
    more = len(all_of_them) - _MOST_NAMES
    return (f"{shown} and {more} more" if more > 0 else shown) or "none"


def _plain(text: str, most: int = _LONGEST_TEXT) -> str:
    """Text on one line, without control characters, and not longer than `most`."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:most])
    return line if len(text) <= most else f"{line}…"
