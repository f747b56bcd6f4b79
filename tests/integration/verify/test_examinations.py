"""What the loader finds out beyond loading: probes, scores on gold documents, and how long it takes."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import spacy
from spacy.tokens import Doc, DocBin, SpanGroup
from spacy.training import Corpus, Example
from thinc.api import Config

from spancat_daemon.config.model import Gate
from spancat_daemon.verify.gates import Candidate, judge
from spancat_daemon.verify.inside import loading, probing, scoring, timing
from spancat_daemon.verify.inside.loading import Unfit
from spancat_daemon.verify.verdict import Evaluated, LoadVerdict, Probe, Probed, Span, Timed
from tests.examining import subject_of
from tests.pipelines import _examples, build, predictions, texts, train_more

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spancat_daemon.release.manifest import Manifest

ACME = "Acme Corp opened an office in Berlin."
MISPLACED = "does not begin and end with tokens"
GIVES = "it gives [0, 9] ORG 'Acme Corp', [30, 36] PLACE 'Berlin'"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build("default", tmp_path / "release")


@pytest.fixture
def probed(release: Path, examine: Callable[..., LoadVerdict]) -> Callable[..., Probed]:
    """Ask probes, given as their texts and lists, of a release whose predictions are known."""

    def ask(*probes: tuple[str, list[Span] | None, list[Span]], of: Path = release) -> Probed:
        numbered = tuple(
            Probe(text, None if spans is None else tuple(spans), tuple(absent), line)
            for line, (text, spans, absent) in enumerate(probes, 1)
        )
        verdict = examine(subject_of(of), probes=numbered)
        assert (verdict.ok, verdict.reason) == (True, "")
        assert verdict.probed is not None
        return verdict.probed

    return ask


def gold(path: Path, checkpoint: Path, *, key: str = "sc", more: bool = True) -> Path:
    """Write gold documents such that not all predictions on them are right, and tokens differ."""
    nlp = spacy.load(checkpoint)
    docs = [example.reference for example in _examples(nlp)]
    if more:
        unseen = nlp.make_doc("Globex opened an office in Köln and sells windows.")
        unseen.spans[key] = SpanGroup(unseen, spans=[unseen[0:1], unseen[5:6]], name=key)
        # Without spaces, other tokens than the tokenizer's, and a label that the model doesn't know.
        joined = Doc(nlp.vocab, words=["Acme Corp", "opened", "in", "Berlin"])
        joined.spans[key] = [spacy.tokens.Span(joined, 0, 1, label="FIRM"), joined[3:4]]
        bare = nlp.make_doc("Nobody has looked at Paris.")
        docs += [unseen, joined, bare, Doc(nlp.vocab)]
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def as_spacy_evaluates(checkpoint: Path, documents: Path, key: str) -> dict[str, Any]:
    nlp = spacy.load(checkpoint)
    examples = list(Corpus(documents)(nlp))
    scores = nlp.evaluate(examples)
    labels = [span.label_ for example in examples for span in example.reference.spans.get(key, ())]
    for label, figures in scores[f"spans_{key}_per_type"].items():
        figures["gold"] = labels.count(label)  # beside what spaCy says
    return {name: value for name, value in scores.items() if name.startswith(f"spans_{key}_")}


def test_probes_that_pass(probed: Callable[..., Probed], release: Path) -> None:
    nlp = spacy.load(release)
    everything: list[tuple[str, list[Span], list[Span]]] = []
    for text, found in zip(texts(), predictions(release, texts()), strict=True):
        doc = nlp.make_doc(text)
        spans = [(doc[start:end], label) for start, end, label, _ in found]
        everything.append((text, [Span(span.start_char, span.end_char, label) for span, label in spans], []))
    count = sum(len(one[1]) for one in everything)
    assert count > 10

    assert probed(*everything) == Probed(len(everything), len(everything), count, ())


@pytest.mark.parametrize(
    ("text", "spans", "absent", "why"),
    [
        (ACME, [Span(0, 9, "ORG")], [Span(0, 9, "PLACE"), Span(0, 4, "ORG")], ""),
        (ACME, None, [Span(10, 16, "ORG")], ""),
        (ACME, None, [], ""),
        ("Nothing of note happened today.", [], [], ""),
        ("", [], [], ""),
        (ACME, [Span(0, 9, "PLACE")], [], f"no [0, 9] PLACE 'Acme Corp' in {ACME!r}; {GIVES}"),
        (ACME, None, [Span(30, 36, "PLACE")], f"[30, 36] PLACE 'Berlin' must not be in {ACME!r}; {GIVES}"),
        (ACME, [], [], f"there must be no spans in {ACME!r}; {GIVES}"),
        (
            "Nothing of note happened today.",
            [Span(0, 7, "ORG")],
            [],
            "no [0, 7] ORG 'Nothing' in 'Nothing of note happened today.'; it gives none",
        ),
        (
            ACME,
            [Span(0, 8, "ORG")],
            [],
            f"[0, 8] ORG 'Acme Cor' {MISPLACED}, as [0, 9] 'Acme Corp' does in {ACME!r}; {GIVES}",
        ),
        (
            ACME,
            None,
            [Span(31, 36, "PLACE")],
            f"[31, 36] PLACE 'erlin' {MISPLACED}, as [30, 36] 'Berlin' does in {ACME!r}; {GIVES}",
        ),
    ],
)
def test_probe(
    text: str,
    spans: list[Span] | None,
    absent: list[Span],
    why: str,
    probed: Callable[..., Probed],
) -> None:
    found = probed((ACME, [Span(0, 9, "ORG")], []), (text, spans, absent))

    assert found.total == 2
    assert found.passed == (1 if why else 2)
    assert found.failures == ((f"line 2: {why}",) if why else ())


def test_only_the_first_failures_are_told(probed: Callable[..., Probed]) -> None:
    long = "Globex " * 200
    found = probed(*[(long, [Span(0, 6, "PLACE")], [])] * 12)

    assert (found.total, found.passed, len(found.failures)) == (12, 0, 10)
    assert found.failures[9].startswith("line 10: no [0, 6] PLACE 'Globex' in 'Globex ")
    assert all(len(failure) < 600 for failure in found.failures)


def test_texts_only_ask_for_a_single_span(
    probed: Callable[..., Probed], release: Path, tmp_path: Path
) -> None:
    some: list[tuple[str, None, list[Span]]] = [
        ("Nothing of note happened today.", None, []),
        (ACME, None, []),
        ("", None, []),
    ]
    assert probed(*some) == Probed(3, 3, 2, ())
    assert probed(some[0], some[2]) == Probed(2, 0, 0, ("none of the 2 texts gives a single span",))

    # The silent one: nothing is wrong with it that loading could show.
    nlp = spacy.load(release)
    nlp.get_pipe("spancat").cfg["threshold"] = 1.0  # type: ignore[attr-defined]  # typed as a mere callable
    nlp.to_disk(tmp_path / "silent")
    assert probed(*some, of=tmp_path / "silent").passed == 0


@pytest.mark.parametrize(
    ("variant", "key", "steps"),
    [("default", "sc", 8), ("custom_key", "xx", 8), ("singlelabel", "sc", 30), ("finder", "sc", 8)],
)
def test_scores_are_those_of_spacy_evaluate(
    variant: str, key: str, steps: int, examine: Callable[..., LoadVerdict], tmp_path: Path
) -> None:
    release = build(variant, tmp_path / "release", steps=steps)
    documents = gold(tmp_path / "gold.spacy", release, key=key)
    expected = as_spacy_evaluates(release, documents, key)

    verdict = examine(subject_of(release), gold=documents)

    assert verdict.ok
    assert verdict.live_evaluated is None
    assert verdict.evaluated == Evaluated(9, expected)
    assert 0 < verdict.evaluated.scores[f"spans_{key}_f"] < 1
    assert set(verdict.evaluated.scores[f"spans_{key}_per_type"]) >= {"ORG", "PLACE", "GÜTER", "FIRM"}


def test_the_live_release_is_evaluated_on_the_same_documents(
    release: Path, examine: Callable[..., LoadVerdict], tmp_path: Path
) -> None:
    live = build("default", tmp_path / "live", steps=8)
    documents = gold(tmp_path / "gold.spacy", release)

    verdict = examine(subject_of(release), live=subject_of(live), gold=documents)

    assert verdict.evaluated == Evaluated(9, as_spacy_evaluates(release, documents, "sc"))
    assert verdict.live_evaluated == Evaluated(9, as_spacy_evaluates(live, documents, "sc"))
    assert verdict.evaluated != verdict.live_evaluated
    assert verdict.live_reason == ""


def test_a_broken_live_release_is_not_held_against_the_snapshot(
    release: Path, examine: Callable[..., LoadVerdict], tmp_path: Path
) -> None:
    live = subject_of(train_more(release, tmp_path / "live"))
    documents = gold(tmp_path / "gold.spacy", release)
    (tmp_path / "live/tok2vec/model").unlink()

    verdict = examine(subject_of(release), live=live, gold=documents, latency=True)

    assert verdict.ok
    assert verdict.evaluated is not None
    assert verdict.live_evaluated is None
    assert verdict.timed is not None
    assert verdict.timed.live_ms is None
    assert verdict.live_reason.startswith("the live release can't load: ")


def test_gold_that_is_of_no_use(release: Path, examine: Callable[..., LoadVerdict], tmp_path: Path) -> None:
    path = tmp_path / "gold.spacy"

    def reason() -> str:
        verdict = examine(subject_of(release), gold=path)
        assert (verdict.ok, verdict.fault, verdict.evaluated) == (False, "verifier", None)
        return verdict.reason

    assert reason() == f"can't read the gold documents {path}: No such file or directory"
    path.write_bytes(b'{"text": "a"}')
    assert reason().startswith(f"{path} is not a .spacy file of this spaCy: ")
    DocBin().to_disk(path)
    assert reason() == f"{path} holds no documents"
    gold(path, build("custom_key", tmp_path / "other"), more=False)
    assert reason() == (
        f"{path} holds no spans under the key 'sc' that the component writes, only under 'xx'"
    )
    nlp = spacy.load(release)
    DocBin(docs=[nlp.make_doc(ACME)], store_user_data=True).to_disk(path)
    assert (
        reason() == f"{path} holds no spans under the key 'sc' that the component writes, nor under any other"
    )


def test_a_slower_one_is_seen_beside_the_live_one(
    release: Path, examine: Callable[..., LoadVerdict], tmp_path: Path
) -> None:
    # Twelve times the work, for the very same spans.
    nlp = spacy.load(release)
    for number in range(24):
        nlp.add_pipe("tok2vec", name=f"more_{number}", source=spacy.load(release) if not number else nlp)
    nlp.to_disk(tmp_path / "slow")
    probes = tuple(Probe(text, None, (), line) for line, text in enumerate(texts(), 1))
    slow, live = subject_of(tmp_path / "slow"), subject_of(release)

    verdict = examine(slow, live=live, probes=probes, latency=True)

    assert verdict.ok
    assert isinstance(verdict.timed, Timed)
    # What does not fit into two seconds is left out, as on a starved machine
    assert 0 < verdict.timed.documents <= len([text for text in texts() if text])
    assert verdict.timed.live_ms is not None
    assert verdict.timed.snapshot_ms > 2 * verdict.timed.live_ms > 0

    # And the gate keeps it out that allows half of that
    slower_ms = verdict.timed.snapshot_ms - verdict.timed.live_ms
    for most_ms, passes in ((slower_ms / 2, False), (slower_ms * 2, True)):
        (figure,) = judge(
            Gate(max_latency_ms=most_ms),
            min_pass=0.01,
            candidate=Candidate(
                labels=verdict.labels,
                metrics={},
                metrics_may_be_stale=False,
                spans_key="sc",
                bytes=1,
                steps=None,
                verdict=dataclasses.replace(verdict, probed=None),
            ),
            live=cast("Manifest", SimpleNamespace(metrics={}, metrics_may_be_stale=False)),
        )
        assert figure.passed is passes


def test_what_is_timed_without_texts_and_without_a_live_release(
    release: Path, examine: Callable[..., LoadVerdict], tmp_path: Path
) -> None:
    verdict = examine(subject_of(release), latency=True)
    assert verdict.timed is not None
    assert verdict.timed.live_ms is None
    assert verdict.timed.documents > 1

    many = tuple(Probe(f"{ACME} {number}", None, (), number) for number in range(1, 500))
    timed = examine(subject_of(release), probes=many, latency=True).timed
    assert timed is not None
    assert 40 <= timed.documents <= 50


def test_documents_that_get_lost_on_the_way_are_no_passes(release: Path, tmp_path: Path) -> None:
    documents = gold(tmp_path / "gold.spacy", release)
    nlp = spacy.load(release)

    class OnlyTheFirst:
        def __call__(self, doc: Doc) -> Doc:
            return doc

        def pipe(self, docs: Iterator[Doc], **_: Any) -> Iterator[Doc]:
            return itertools.islice(docs, 1)

    nlp._components.append(("lossy", OnlyTheFirst()))
    nlp._pipe_meta["lossy"] = nlp.get_factory_meta("sentencizer")
    nlp._pipe_configs["lossy"] = Config({"factory": "sentencizer"})
    pipe = nlp.get_pipe("spancat")
    never: list[dict[str, Any]] = [{"text": ACME, "spans": [], "absent": [], "line": line} for line in (1, 2)]

    with pytest.raises(Unfit, match="gives 1 documents for the 2 texts of the probes"):
        probing.probe(nlp, pipe, never)
    with pytest.raises(Unfit, match=r"can't be evaluated on gold.spacy: .*gives 1 documents for 9"):
        scoring.evaluate(nlp, pipe, str(documents))
    with pytest.raises(Unfit, match=r"'lossy' gives 1 documents for 3"):
        loading.check_predicts(nlp, pipe)


def test_scorer_of_a_release_does_not_judge_it(release: Path, tmp_path: Path) -> None:
    documents = gold(tmp_path / "gold.spacy", release)
    nlp = spacy.load(release)
    pipe: Any = nlp.get_pipe("spancat")
    honest = scoring.evaluate(nlp, pipe, str(documents))

    def scorer(examples: list[Example], **_: Any) -> dict[str, Any]:
        for example in examples:
            example.reference.spans.clear()
            example.predicted.spans.clear()
        nothing = {"one": True, "two": "0.9", "three": 10**400, "spans_sc_f": 1.0, "spans_sc_per_type": {}}
        return {**nothing, "ours": 0.5}

    pipe.scorer = scorer
    found = scoring.evaluate(nlp, pipe, str(documents))

    assert found["scores"] == {**honest["scores"], "ours": 0.5}


def test_who_fails_while_it_is_timed(release: Path) -> None:
    nlp = spacy.load(release)

    def fails(_: str) -> None:
        raise ValueError("now and then")

    with pytest.raises(timing.LiveFails) as raised:
        timing.time_both(nlp, fails, [ACME])
    assert str(raised.value.__cause__) == "now and then"
    with pytest.raises(ValueError, match="now and then"):
        timing.time_both(fails, nlp, [ACME])


def test_what_is_not_asked_is_not_done(release: Path, examine: Callable[..., LoadVerdict]) -> None:
    verdict = examine(subject_of(release), live=dataclasses.replace(subject_of(release), path=release / "no"))
    assert verdict.ok
    nothing = (verdict.probed, verdict.evaluated, verdict.live_evaluated, verdict.timed, verdict.live_reason)
    assert nothing == (None, None, None, None, "")
