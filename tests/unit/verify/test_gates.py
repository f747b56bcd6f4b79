"""Every condition of ``[watch.gate]``: what meets it, what doesn't, and what the figure says of it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.checkpoint.progress import Progress
from spancat_daemon.config.model import Gate
from spancat_daemon.release.manifest import FileDigest, Manifest, plain
from spancat_daemon.verify.gates import Candidate, judge, metric_of, recorded_steps, refusal
from spancat_daemon.verify.verdict import (
    Evaluated,
    Examination,
    Figure,
    LoadVerdict,
    Probe,
    Probed,
    Subject,
    Timed,
)
from tests.integration.release.fakes import manifest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

F = "spans_sc_f"
TYPES = "spans_sc_per_type"
GARBAGE = (math.nan, math.inf, -math.inf, True, "0.9", None, [0.9], {"f": 0.9}, 10**400)
ALL = Gate(
    minimum=0.5,
    max_drop=0.1,
    per_label_minimum=0.2,
    labels="same",
    max_bytes=100,
    min_step=1,
    max_latency_ms=2,
)
CONFIGURED = [
    *("minimum", "max_drop", "per_label_minimum", "labels", "max_bytes", "min_step", "max_latency_ms"),
    "min_pass",
]
ASKED = Examination(
    subject=Subject(path=Path("/staged"), component="spancat", model_sha256="0" * 64),
    probes=(Probe("a text", None, (), 1),),
    gold=Path("/gold.spacy"),
    latency=True,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
thousandths = st.integers(0, 1000)


def candidate(**facts: Any) -> Candidate:
    metrics = {F: 0.8, "spans_sc_p": 0.9, TYPES: {"A": {"f": 0.8}, "B": {"f": 0.7}}}
    usual: dict[str, Any] = {
        "labels": ("A", "B"),
        "metrics": metrics,
        "metrics_may_be_stale": False,
        "spans_key": "sc",
        "bytes": 100,
        "steps": Progress(None, 200, "its training had been evaluated before"),
        "verdict": None,
    }
    return Candidate(**(usual | facts))


def verdict(
    scores: Mapping[str, Any] | None = None, live: Mapping[str, Any] | None = None, **facts: Any
) -> Any:
    return LoadVerdict(
        ok=True,
        reason="",
        **{
            "evaluated": None if scores is None else Evaluated(10, scores),
            "live_evaluated": None if live is None else Evaluated(10, live),
            **facts,
        },
    )


def live(
    metrics: Mapping[str, Any] | None = None, *, labels: tuple[str, ...] = ("A", "B"), stale: bool = False
) -> Manifest:
    made = manifest_of(1, {"model.bin": FileDigest("1" * 64, 1)}, metrics=metrics)
    return replace(made, labels=labels, metrics_may_be_stale=stale)


def figures(gate: Gate, held: Candidate, against: Manifest | None = None, min_pass: float = 1.0) -> Any:
    return judge(gate, min_pass=min_pass, candidate=held, live=against)


def only(gate: Gate, held: Candidate, against: Manifest | None = None, min_pass: float = 1.0) -> Figure:
    (figure,) = figures(gate, held, against, min_pass)
    assert isinstance(figure, Figure)
    return figure


# -- all of them ---------------------------------------------------------------------------------------------


def test_no_condition_no_figure() -> None:
    assert figures(Gate(), candidate()) == ()
    assert figures(Gate(metric="spans_sc_p"), candidate(), live()) == ()


def test_each_condition_has_a_figure_met_or_not() -> None:
    good = verdict(
        {F: 0.8, TYPES: {"A": {"f": 0.8}, "B": {"f": 0.7}}},
        {F: 0.8},
        timed=Timed(5, 3.0, 2.0),
        probed=Probed(4, 4, 6, ()),
    )
    met = figures(ALL, candidate(verdict=good, asked=ASKED), live())
    assert list(dict.fromkeys(figure.gate for figure in met)) == CONFIGURED
    assert all(figure.passed for figure in met)
    assert refusal(met) == ""
    bad = verdict(
        {F: 0.4, TYPES: {"A": {"f": 0.1}, "B": {"f": 0.1}}},
        {F: 0.8},
        timed=Timed(5, 5.0, 2.0),
        probed=Probed(4, 3, 6, ("line 3: no A",)),
    )
    facts = {"bytes": 101, "labels": ("B", "A"), "steps": Progress(0, 0, "first"), "asked": ASKED}
    failed = figures(ALL, candidate(verdict=bad, **facts), live())
    assert list(dict.fromkeys(figure.gate for figure in failed)) == CONFIGURED
    assert not any(figure.passed for figure in failed)
    assert "and 5 more" in refusal(failed)


@pytest.mark.parametrize(
    "said",
    [None, LoadVerdict(ok=False, reason="E053", fault="release"), LoadVerdict(ok=True, reason="")],
    ids=["not asked", "not loaded", "silent about all"],
)
def test_what_was_asked_and_not_answered_is_not_met(said: LoadVerdict | None) -> None:
    held = candidate(verdict=said, asked=ASKED)
    found = {figure.gate: figure.passed for figure in figures(ALL, held, live({F: 0.1}))}
    assert found == dict.fromkeys(CONFIGURED, False) | {"labels": True, "max_bytes": True, "min_step": True}


@given(st.dictionaries(st.sampled_from([F, TYPES, "x"]), json_values), json_values, json_values)
def test_nonsense_is_never_met_and_never_raises(metrics: dict[str, Any], score: Any, live_score: Any) -> None:
    held = candidate(metrics=metrics | {F: score})
    for found in (
        figures(ALL, held, live({F: live_score})),
        figures(ALL, candidate(verdict=verdict(held.metrics, {F: live_score})), live()),
    ):
        is_number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        by_gate = {figure.gate: figure for figure in found}
        assert by_gate["minimum"].passed == (is_number and score >= 0.5)
        assert is_number or not by_gate["max_drop"].passed
        orjson.dumps([plain(asdict(figure)) for figure in found])
        assert refusal(found).isprintable()


# -- minimum and max_drop ------------------------------------------------------------------------------------


def test_the_default_metric_is_that_of_the_key() -> None:
    assert metric_of(Gate(), "sc") == "spans_sc_f"
    assert metric_of(Gate(metric="spans_sc_p"), "sc") == "spans_sc_p"
    held = candidate(spans_key="goods", metrics={"spans_goods_f": 0.6, F: 0.1})
    assert only(Gate(minimum=0.5), held).of == "spans_goods_f"


@pytest.mark.parametrize(("minimum", "passed"), [(0.8, True), (0.79, True), (0.80000001, False)])
def test_minimum(minimum: float, passed: bool) -> None:
    figure = only(Gate(minimum=minimum), candidate())
    assert (figure.passed, figure.value, figure.limit) == (passed, 0.8, minimum)
    assert (figure.of, figure.source, figure.note) == (F, "meta.json", "")


@pytest.mark.parametrize("score", GARBAGE)
def test_no_number_is_no_score(score: Any) -> None:
    for gate in (Gate(minimum=-1e300), Gate(max_drop=1e300)):
        for held in (candidate(metrics={F: score}), candidate(verdict=verdict({F: score}, {F: 0.1}))):
            figure = only(gate, held, live({F: 0.1}))
            assert (figure.passed, figure.value) == (False, None)
            assert figure.note


def test_a_limit_that_is_no_number_lets_nothing_through() -> None:
    gate = Gate.model_construct(minimum=math.nan, max_drop=math.nan)
    assert not any(figure.passed for figure in figures(gate, candidate(), live({F: 0.8})))
    limitless = Gate.model_construct(max_drop=math.inf)
    assert only(limitless, candidate(), live({F: 1e308})).passed


def test_a_misspelt_metric_is_named_with_those_there_are() -> None:
    for gate in (Gate(metric="span_sc_f", minimum=0.1), Gate(metric="span_sc_f", max_drop=0.1)):
        for against in (None, live({F: 0.9})):
            figure = only(gate, candidate(), against)
            assert not figure.passed
            assert figure.note == "meta.json has no such score, only spans_sc_f, spans_sc_p"
    assert "only none" in only(Gate(minimum=0.1), candidate(metrics={})).note


@given(thousandths, thousandths, thousandths)
def test_max_drop_is_exact_in_decimals(before: int, now: int, limit: int) -> None:
    held = candidate(metrics={F: now / 1000})
    figure = only(Gate(max_drop=limit / 1000), held, live({F: before / 1000}))
    assert figure.passed == (before - now <= limit)
    assert (figure.value, figure.live) == (now / 1000, before / 1000)


def test_max_drop_says_how_much() -> None:
    def note(before: float, now: float) -> str:
        return only(Gate(max_drop=1), candidate(metrics={F: now}), live({F: before})).note

    assert note(0.8, 0.75) == "0.05 lower"
    assert note(0.75, 0.8) == "0.05 higher"
    assert note(0.8, 0.8) == "the same"
    assert note(1.7e308, -1.7e308) == "more than 1e308 lower"


@pytest.mark.parametrize("score", [*GARBAGE, "absent"])
def test_the_live_release_is_never_held_against_it(score: Any) -> None:
    metrics = {} if score == "absent" else {F: score}
    for held in (candidate(), candidate(verdict=verdict({F: 0.0}, metrics))):
        figure = only(Gate(max_drop=0), held, live(metrics))
        assert (figure.passed, figure.live, figure.note) == (True, None, f"the live release has no {F}")


def test_without_a_live_release_there_is_nothing_to_compare_with() -> None:
    gate = Gate(max_drop=0, labels="same", max_latency_ms=1)
    for figure in figures(gate, candidate(verdict=verdict(timed=Timed(5, 9.0, None)))):
        assert figure.passed
        assert figure.note == "there is no live release to compare with"


def test_gold_and_meta_json_are_never_mixed() -> None:
    gate = Gate(minimum=0.5, max_drop=0.1)
    # With gold, neither meta.json counts.
    minimum, drop = figures(gate, candidate(verdict=verdict({F: 0.55}, {F: 0.6})), live({F: 0.99}))
    assert (minimum.source, minimum.value, minimum.passed) == ("gold", 0.55, True)
    assert (drop.source, drop.value, drop.live, drop.passed) == ("gold", 0.55, 0.6, True)
    # The live release wasn't evaluated: its meta.json is no substitute.
    said = verdict({F: 0.55}, live_reason="the live release can't load: E053")
    drop = figures(gate, candidate(verdict=said), live({F: 0.99}))[1]
    assert (drop.passed, drop.live, drop.note) == (True, None, "the live release can't load: E053")
    # A score that the gold documents don't give is not taken from meta.json.
    minimum, drop = figures(gate, candidate(verdict=verdict({"spans_sc_p": 1.0}, {F: 0.1})), live())
    assert not minimum.passed
    assert not drop.passed
    assert minimum.note == "gold has no such score, only spans_sc_p"
    # Nor where only the live release was evaluated, or no document.
    for said in (verdict(None, {F: 0.1}), verdict(evaluated=Evaluated(0, {F: 1.0}))):
        minimum, drop = figures(gate, candidate(verdict=said), live())
        assert (minimum.passed, drop.passed, minimum.source) == (False, False, "gold")


@given(st.dictionaries(st.sampled_from([F, TYPES]), json_values))
def test_with_gold_nothing_in_meta_json_matters(metrics: dict[str, Any]) -> None:
    said = verdict({F: 0.45, TYPES: {"A": {"f": 0.5}}}, {F: 0.5})
    gate = Gate(minimum=0.5, max_drop=0.1, per_label_minimum=0.1)
    found = [
        figures(gate, candidate(verdict=said, metrics=mine, metrics_may_be_stale=stale), live(mine))
        for mine, stale in (({}, False), (metrics, True))
    ]
    assert found[0] == found[1]


def test_scores_that_may_be_stale_are_said_to_be() -> None:
    held = candidate(metrics_may_be_stale=True)
    gate = Gate(minimum=0.5, max_drop=0.1, per_label_minimum=0.1)
    minimum, drop, *labels = figures(gate, held, live({F: 0.8}, stale=True))
    stale = "the score may be older than the weights"
    assert minimum.note == stale
    assert drop.note == f"the same; {stale}; the live release's score may be older than its weights"
    assert [figure.note for figure in labels] == [stale, stale]


# -- per_label_minimum ---------------------------------------------------------------------------------------


def per_label(minimum: Any, table: Any, **facts: Any) -> dict[str, tuple[bool, Any]]:
    held = candidate(verdict=verdict({F: 0.8, TYPES: table}), **facts)
    found = figures(Gate(per_label_minimum=minimum), held)
    assert {figure.gate for figure in found} == {"per_label_minimum"}
    assert all(figure.note or figure.value is not None for figure in found)
    return {figure.of: (figure.passed, figure.value) for figure in found}


def test_every_label_by_one_minimum() -> None:
    table = {"A": {"p": 1.0, "r": 0.4, "f": 0.5}, "B": {"p": 0.1, "r": 0.1, "f": 0.1}}
    assert per_label(0.5, table) == {"A": (True, 0.5), "B": (False, 0.1)}
    # A label that only the gold documents have is none of the model's.
    assert per_label(0.1, table | {"C": {"f": 0.0}}) == {"A": (True, 0.5), "B": (True, 0.1)}


def test_a_label_without_an_example() -> None:
    for nothing in ({}, {"B": None}, {"B": {"p": None, "r": None, "f": None}}, {"B": {"f": 0.0, "gold": 0}}):
        table = {"A": {"f": 0.5}, **nothing}
        # None of its business, where all labels are asked for …
        assert per_label(0.5, table) == {"A": (True, 0.5), "B": (True, None)}
        # … a hole in the gold documents, where it is asked for by name.
        assert per_label({"A": 0.5, "B": 0.1}, table) == {"A": (True, 0.5), "B": (False, None)}
    # Zeros without a count may as well be a label that is never found.
    assert per_label(0.5, {"A": {"f": 0.5}, "B": {"f": 0.0}})["B"] == (False, 0.0)
    assert per_label(0.5, {"A": {"f": 0.5}, "B": {"f": 0.0, "gold": 3}})["B"] == (False, 0.0)


def test_labels_by_name() -> None:
    table = {"A": {"f": 0.5}, "B": {"f": 0.1}, "C": {"f": 0.9}}
    assert per_label({"B": 0.1}, table) == {"B": (True, 0.1)}
    found = figures(Gate(per_label_minimum={"C": 0.1}), candidate(verdict=verdict({TYPES: table})))
    assert [(figure.passed, figure.note) for figure in found] == [
        (False, "the model has no such label, only A, B")
    ]


def test_documents_of_other_labels_let_nothing_through() -> None:
    table = {"X": {"f": 1.0}, "Y": {"f": 1.0}}
    assert per_label(0.1, table) == {TYPES: (False, None)}


@pytest.mark.parametrize("score", [math.nan, "1.0", True, [1.0], math.inf])
def test_no_number_is_no_score_of_a_label(score: Any) -> None:
    for entry in ({"f": score}, score, {"p": 1.0}, {}):
        assert per_label(0.0, {"A": {"f": 0.5}, "B": entry}) == {"A": (True, 0.5), "B": (False, None)}


def test_no_table_of_labels() -> None:
    gate = Gate(per_label_minimum=0.5)
    figure = only(gate, candidate(metrics={F: 0.8, TYPES: 0.0}))
    assert (figure.passed, figure.of, figure.limit) == (False, TYPES, 0.5)
    assert "spans_sc_per_type = null in [training.score_weights]" in figure.note
    assert not only(gate, candidate(verdict=verdict({F: 0.8}))).passed
    named = only(Gate(per_label_minimum={"A": 0.1}), candidate(metrics={}))
    assert (named.passed, named.limit) == (False, {"A": 0.1})


# -- labels, size, step --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "same", "superset", "note"),
    [
        ("A B C", True, True, ""),
        ("A C B", False, True, "in another order: A, C, B, live A, B, C"),
        ("A B", False, False, "removed C"),
        ("A B C D", False, True, "added D"),
        ("D A B C", False, True, "added D"),
        ("C D A", False, False, "added D; removed B; in another order: C, D, A, live A, B, C"),
    ],
)
def test_labels(labels: str, same: bool, superset: bool, note: str) -> None:
    held, against = candidate(labels=tuple(labels.split())), live(labels=("A", "B", "C"))
    found = [only(Gate(labels=rule), held, against) for rule in ("same", "superset")]
    assert [figure.passed for figure in found] == [same, superset]
    assert {figure.note for figure in found} == {note}
    assert {(figure.value, figure.live) for figure in found} == {(len(held.labels), 3)}


@given(st.permutations("ABCDE"), st.permutations("ABCDE"), st.integers(1, 5), st.integers(1, 5))
def test_labels_are_the_same_only_if_equal(
    mine: list[str], theirs: list[str], some: int, others: int
) -> None:
    held, against = candidate(labels=tuple(mine[:some])), live(labels=tuple(theirs[:others]))
    same, superset = (only(Gate(labels=rule), held, against) for rule in ("same", "superset"))
    assert same.passed == (held.labels == against.labels) == (not same.note)
    assert superset.passed == (set(held.labels) >= set(against.labels))


def test_max_bytes() -> None:
    assert only(Gate(max_bytes=100), candidate()).passed
    figure = only(Gate(max_bytes=99), candidate())
    assert (figure.passed, figure.value, figure.limit, figure.source) == (False, 100, 99, "files")


@pytest.mark.parametrize(
    ("steps", "most", "value"),
    [
        (Progress(400, 400, "its meta.json says so"), 400, 400),
        (Progress(0, 0, "it is the first save of its training"), 0, 0),
        (Progress(None, 1, "its training had saved before"), 1, 1),
        (Progress(None, 200, "its training had been evaluated before"), 200, 200),
        (Progress(None, 0, "times do not tell"), 0, None),
        (None, 0, None),
    ],
)
def test_min_step(steps: Progress | None, most: int, value: int | None) -> None:
    assert figures(Gate(min_step=0), candidate(steps=steps)) == ()
    for least in (1, 200, 201, 400, 401):
        figure = only(Gate(min_step=least), candidate(steps=steps))
        assert (figure.passed, figure.value) == (least <= most, value)
        if steps is not None:
            assert steps.how in figure.note
        # Whoever can't be told gets to know how it can be.
        told = steps is not None and steps.step is not None
        assert ('nlp.meta["spancat_daemon"] = {"step": args["step"]}' in figure.note) == (
            not figure.passed and not told
        )


def test_the_step_of_a_release_is_that_of_its_figures() -> None:
    def manifest(**figure: Any) -> Manifest:
        return replace(live(), verification={"gates": [{"gate": "minimum", "value": 7}, figure]})

    found = recorded_steps(manifest(gate="min_step", value=200))
    assert found is not None
    assert (found.step, found.at_least) == (None, 200)
    assert only(Gate(min_step=200), candidate(steps=found)).passed
    assert not only(Gate(min_step=201), candidate(steps=found)).passed
    for wrong in ({}, {"gate": "min_step"}, {"gate": "min_step", "value": True}):
        assert recorded_steps(manifest(**wrong)) is None
    for verification in ({}, {"gates": None}, {"gates": ["min_step"]}):
        assert recorded_steps(replace(live(), verification=verification)) is None


# -- latency and probes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("snapshot_ms", "live_ms", "passed", "note"),
    [
        (3.3, 1.3, True, "2.0 ms longer a document"),
        (3.31, 1.3, False, "2.01 ms longer a document"),
        (1.0, 3.0, True, "2.0 ms less a document"),
        (math.nan, 1.0, False, "it was not timed"),
        (math.inf, math.inf, False, "it was not timed"),
        (3.0, None, True, "the live release was not timed"),
        (3.0, math.nan, True, "the live release was not timed"),
    ],
)
def test_max_latency(snapshot_ms: float, live_ms: float | None, passed: bool, note: str) -> None:
    said = verdict(timed=Timed(5, snapshot_ms, live_ms))
    figure = only(Gate(max_latency_ms=2), candidate(verdict=said), live())
    assert figure.passed == passed
    assert note in figure.note


@pytest.mark.parametrize("said", [None, verdict(), verdict(timed=Timed(0, 0.0, 9.0))])
def test_what_was_not_timed_is_not_fast(said: LoadVerdict | None) -> None:
    assert not only(Gate(max_latency_ms=2), candidate(verdict=said), live()).passed


def test_why_the_live_release_was_not_timed() -> None:
    said = verdict(timed=Timed(5, 9.0, None), live_reason="the live release can't load: E053")
    figure = only(Gate(max_latency_ms=2), candidate(verdict=said), live())
    assert (figure.passed, figure.note) == (True, "the live release can't load: E053")


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 1000))
def test_min_pass_is_exact(total: int, passed: int, thousandth: int) -> None:
    said = verdict(probed=Probed(total, min(passed, total), 1, ()))
    figure = only(Gate(), candidate(verdict=said), min_pass=thousandth / 1000)
    assert figure.passed == (min(passed, total) * 1000 >= thousandth * total)


def test_probes_that_failed_are_said() -> None:
    said = verdict(probed=Probed(10, 9, 3, ("line 3: no A at 0-4\nin 'x'",)))
    figure = only(Gate(), candidate(verdict=said), min_pass=0.95)
    assert (figure.gate, figure.passed, figure.value, figure.limit) == ("min_pass", False, 0.9, 0.95)
    assert figure.note == "9 of 10 passed; line 3: no A at 0-4\\nin 'x'"
    assert only(Gate(), candidate(verdict=said), min_pass=0.9).passed


@pytest.mark.parametrize("probed", [Probed(0, 0, 0, ()), Probed(3, 4, 9, ()), Probed(-1, -1, 0, ())])
def test_impossible_counts_pass_nothing(probed: Probed) -> None:
    assert not only(Gate(), candidate(verdict=verdict(probed=probed)), min_pass=0.1).passed


# -- the reason ----------------------------------------------------------------------------------------------


def test_the_reason_is_one_short_line_of_what_failed() -> None:
    held = candidate(metrics={F: 0.02}, labels=("B", "A"))
    found = figures(Gate(minimum=0.5, labels="same", max_bytes=100), held, live())
    assert refusal(found) == (
        "minimum of spans_sc_f: 0.02, limit 0.5; "
        "labels: 2, limit same, live 2 (in another order: B, A, live A, B)"
    )
    assert refusal(()) == ""


def test_foreign_names_neither_break_nor_fill_the_line() -> None:
    labels = tuple(f"\x1b[31m\n\u2028{'x' * 5000}{number}" for number in range(500))
    gate = Gate(minimum=1, labels="same", per_label_minimum=dict.fromkeys(labels, 1.0))
    metrics = {**dict.fromkeys(labels, 0.5), TYPES: {label: {"f": 0.0} for label in labels}}
    found = figures(gate, candidate(labels=labels, metrics=metrics), live())
    reason = refusal(found)
    assert reason.isprintable()
    assert len(reason) < 3000
    assert all(f"{figure.of}{figure.note}".isprintable() for figure in found)
    assert all(len(figure.note) < 3000 for figure in found)
