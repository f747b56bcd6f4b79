"""What must not go live, built for real and examined by the real loader; and what must not be refused.

All are asked of one warm child, so that none of them leaves anything behind for the next.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spacy
from spacy.vectors import Vectors
from thinc.api import fix_random_seed

from spancat_daemon.verify.verdict import LoadVerdict, Probe, Span
from tests.examining import subject_of
from tests.pipelines import (
    VARIANTS,
    _assemble,
    _examples,
    _span_categorizer,
    _tok2vec,
    build,
    predictions,
    texts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spacy.language import Language


@pytest.fixture
def refused(examine: Callable[..., LoadVerdict]) -> Callable[..., str]:
    """Examine what must be refused, and return why it was."""

    def ask(path: Path, component: str = "spancat", **said: Any) -> str:
        verdict = examine(subject_of(path, component, **said))
        assert not verdict.ok
        assert verdict.fault == "release"
        assert "\n" not in verdict.reason
        return verdict.reason

    return ask


def changed(path: Path, change: Callable[[Language], object]) -> Path:
    """Load a pipeline, change it and save it in its place."""
    nlp = spacy.load(path)
    change(nlp)
    nlp.to_disk(path)
    return path


def edited(path: Path, *replacements: tuple[str, str]) -> Path:
    """Replace text in the config.cfg of a pipeline."""
    config = (path / "config.cfg").read_text()
    for old, new in replacements:
        assert old in config
        config = config.replace(old, new, 1)
    (path / "config.cfg").write_text(config)
    return path


def configured(path: Path, component: str, **values: Any) -> Path:
    """Replace values in the cfg of a component."""
    cfg = json.loads((path / component / "cfg").read_text())
    (path / component / "cfg").write_text(json.dumps(cfg | values))
    return path


def model_of(nlp: Language, name: str) -> Any:
    pipe: Any = nlp.get_pipe(name)
    return pipe.model


@pytest.mark.parametrize("variant", VARIANTS)
def test_healthy_ones_pass(variant: str, examine: Callable[..., LoadVerdict], tmp_path: Path) -> None:
    component = "products" if variant == "renamed" else "spancat"
    verdict = examine(subject_of(build(variant, tmp_path / "release"), component))
    assert (verdict.ok, verdict.reason, verdict.warnings) == (True, "", ())


@pytest.mark.parametrize("variant", ["default", "singlelabel", "bias", "finder"])
def test_hardly_trained_ones_pass(variant: str, examine: Callable[..., LoadVerdict], tmp_path: Path) -> None:
    path = build(variant, tmp_path / "release", steps=2)
    verdict = examine(subject_of(path))
    assert (verdict.ok, verdict.reason) == (True, "")


@pytest.mark.parametrize("language", ["zh", "ar", "xx"])
def test_other_languages_pass(language: str, examine: Callable[..., LoadVerdict], tmp_path: Path) -> None:
    source = spacy.load(build("vectors", tmp_path / "source"))
    nlp = spacy.blank(language)
    nlp.vocab.vectors = source.vocab.vectors
    for name in source.pipe_names:
        nlp.add_pipe(name, source=source)
    nlp.to_disk(tmp_path / "release")

    verdict = examine(subject_of(tmp_path / "release"))
    assert (verdict.ok, verdict.reason) == (True, "")


def test_one_that_knows_nothing_but_its_own_words_passes(
    examine: Callable[..., LoadVerdict], tmp_path: Path
) -> None:
    # Whatever has no vector is the same to it.
    nlp = spacy.blank("en")
    fix_random_seed(0)
    words = ["kumquat", "zebra", "walnut"]
    for word in words:
        nlp.vocab.strings.add(word)
    vectors = np.random.default_rng(0).standard_normal((3, 16), dtype=np.float32)
    nlp.vocab.vectors = Vectors(strings=nlp.vocab.strings, data=vectors, keys=words, name="few")
    tok2vec: Any = _tok2vec("vectors", 24, 120)
    tok2vec["embed"] |= {"attrs": ["LANG"], "rows": [120]}
    tok2vec["encode"]["window_size"] = 0
    nlp.add_pipe("spancat", config=_span_categorizer("own", tok2vec))
    examples = _examples(nlp)
    nlp.initialize(lambda: examples)
    nlp.to_disk(tmp_path / "release")

    verdict = examine(subject_of(tmp_path / "release"))
    assert (verdict.ok, verdict.reason) == (True, "")


def test_unusual_but_working_ones_pass(examine: Callable[..., LoadVerdict], tmp_path: Path) -> None:
    def passes(path: Path) -> bool:
        verdict = examine(subject_of(path))
        assert verdict.reason == ""
        return verdict.ok

    # A listener hears whatever runs before it, whatever its name has become.
    renamed = build("default", tmp_path / "renamed")
    before = predictions(renamed, texts())
    changed(renamed, lambda nlp: nlp.rename_pipe("tok2vec", "encoder"))
    assert predictions(renamed, texts()) == before
    assert passes(renamed)

    without_tagger = build("not_first", tmp_path / "disabled")
    assert passes(changed(without_tagger, lambda nlp: nlp.disable_pipe("tagger")))

    # Nothing is ever suggested.
    silent = configured(build("finder", tmp_path / "silent"), "span_finder", threshold=1.0)
    assert predictions(silent, texts()) == [[]] * len(texts())
    assert passes(silent)

    # What is suggested comes from the application.
    preset = build("finder", tmp_path / "preset")
    assert passes(changed(preset, lambda nlp: nlp.remove_pipe("span_finder")))

    # So certain that it gives hardly any score, or all are cut off at the same lowest or highest value.
    def shifted(by: float) -> Callable[[Language], None]:
        def shift(nlp: Language) -> None:
            linear = next(node for node in model_of(nlp, "spancat").walk() if node.name == "linear")
            linear.set_param("b", linear.get_param("b") + by)

        return shift

    for by in (-500, -13, 13, 500):
        assert passes(changed(build("default", tmp_path / f"certain{by}"), shifted(by)))


@pytest.mark.parametrize(
    ("variant", "change", "whom"),
    [
        ("default", lambda nlp: nlp.remove_pipe("tok2vec"), "'tok2vec', which is not in the pipeline"),
        ("default", lambda nlp: nlp.disable_pipe("tok2vec"), "'tok2vec', which its config.cfg disables"),
        (
            "star",
            lambda nlp: nlp.remove_pipe("tok2vec"),
            "any tok2vec or transformer, and none runs before it",
        ),
        ("singlelabel", lambda nlp: nlp.remove_pipe("tok2vec"), "'tok2vec', which is not in the pipeline"),
        ("vectors", lambda nlp: nlp.remove_pipe("tok2vec"), "'tok2vec', which is not in the pipeline"),
    ],
)
def test_listener_that_hears_nothing(
    variant: str,
    change: Callable[[Language], object],
    whom: str,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    path = changed(build(variant, tmp_path / "release"), change)
    assert predictions(path, texts())  # it loads and predicts without an error

    reason = refused(path)

    assert reason == f"it loads, but 'spancat' listens to {whom}: it would predict nothing, silently"


def test_listener_before_what_it_listens_to(refused: Callable[..., str], tmp_path: Path) -> None:
    path = edited(
        build("default", tmp_path / "release"), ('["tok2vec", "spancat"]', '["spancat", "tok2vec"]')
    )
    assert "listens to 'tok2vec', which comes after it" in refused(path)


def test_listener_that_hears_somebody_elses(refused: Callable[..., str], tmp_path: Path) -> None:
    path = edited(
        build("two_upstreams", tmp_path / "release"),
        ('["tok2vec", "spancat", "tagger_tok2vec", "tagger"]', '["tagger_tok2vec", "tagger", "spancat"]'),
    )
    reason = refused(path)
    assert "listens to 'tok2vec', which is not a pipe before it" in reason
    assert "hears 'tagger_tok2vec', which others listen to" in reason


def test_listener_that_hears_another_one_than_it_names(
    examine: Callable[..., LoadVerdict], refused: Callable[..., str], tmp_path: Path
) -> None:
    # What ran last is heard, whatever a listener is called; while it was trained it did hear its own.
    path = edited(
        build("two_upstreams", tmp_path / "release"),
        ('["tok2vec", "spancat", "tagger_tok2vec", "tagger"]', '["tok2vec", "tagger_tok2vec", "spancat"]'),
    )
    reason = refused(path)
    assert "'spancat' listens to 'tok2vec', and hears 'tagger_tok2vec', which runs in between" in reason

    # Of a copy it hears the same.
    copied = build("default", tmp_path / "copied")
    expected = predictions(copied, texts())
    nlp = spacy.load(copied)
    nlp.add_pipe("tok2vec", name="copy", source=spacy.load(copied), before="spancat")
    nlp.to_disk(copied)
    assert predictions(copied, texts()) == expected
    assert examine(subject_of(copied)).reason == ""


def test_suggester_of_what_hears_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    path = changed(build("finder", tmp_path / "release"), lambda nlp: nlp.remove_pipe("tok2vec"))
    assert "'span_finder' listens to 'tok2vec', which is not in the pipeline" in refused(path)


def test_disabled_component(refused: Callable[..., str], tmp_path: Path) -> None:
    path = changed(build("default", tmp_path / "release"), lambda nlp: nlp.disable_pipe("spancat"))
    assert "its config.cfg disables 'spancat'" in refused(path)


@pytest.mark.parametrize("variant", ["default", "own", "singlelabel", "finder"])
def test_weights_never_initialised(variant: str, refused: Callable[..., str], tmp_path: Path) -> None:
    nlp = _assemble(variant, 0.05, 24, 120)
    nlp.to_disk(tmp_path / "bare")
    assert "'spancat' has no labels: it was never initialised" in refused(tmp_path / "bare")

    pipe: Any = nlp.get_pipe("spancat")
    pipe.add_label("ORG")
    nlp.to_disk(tmp_path / "labelled")
    first = "spancat" if variant == "own" else "tok2vec"
    assert f"the weights of {first!r} were never initialised: " in refused(tmp_path / "labelled")


def test_weights_of_nothing_but_zeros(refused: Callable[..., str], tmp_path: Path) -> None:
    # Softmax starts with zeros: saved before the first update that has a learning rate, it knows nothing.
    nlp = _assemble("singlelabel", 0.05, 24, 120)
    examples = _examples(nlp)
    nlp.initialize(lambda: examples)
    nlp.to_disk(tmp_path / "first")
    assert "gives every span of every text the same scores" in refused(tmp_path / "first")

    def clear(nlp: Language) -> None:
        for node in model_of(nlp, "spancat").walk():
            for name in node.param_names:
                node.set_param(name, np.zeros_like(node.get_param(name)))

    assert "the same scores" in refused(changed(build("own", tmp_path / "own"), clear))
    # Also where its suggester happens to suggest nothing.
    silent = configured(build("finder", tmp_path / "silent"), "span_finder", threshold=1.0)
    assert "the same scores" in refused(changed(silent, clear))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "layer"), [("spancat", "linear"), ("tok2vec", "hashembed")])
def test_weights_that_are_no_numbers(
    value: float, name: str, layer: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    # A single one of them, which hardly any text comes across.
    def spoil(nlp: Language) -> None:
        node = next(node for node in model_of(nlp, name).walk() if node.name == layer)
        (parameter, *_) = node.param_names
        values = node.get_param(parameter).copy()
        values.flat[-1] = value
        node.set_param(parameter, values)

    reason = refused(changed(build("default", tmp_path / "release"), spoil))
    assert f"weights of {name!r} are not finite" in reason
    assert f"of its layer {layer!r}" in reason


def test_vectors_that_say_nothing(
    examine: Callable[..., LoadVerdict], refused: Callable[..., str], tmp_path: Path
) -> None:
    def spoilt(name: str, change: Callable[[Vectors], object]) -> Path:
        return changed(build("vectors", tmp_path / name), lambda nlp: change(nlp.vocab.vectors))

    def fill(value: float) -> Callable[[Vectors], object]:
        return lambda vectors: vectors.data.fill(value)

    none = "it loads, but 'tok2vec' reads vectors, and there are none in its vocab"
    keys = build("vectors", tmp_path / "keys")
    (keys / "vocab/key2row").write_bytes(b"\x80")
    assert predictions(keys, texts()) != predictions(build("vectors", tmp_path / "whole"), texts())
    assert refused(keys) == none
    assert refused(spoilt("cleared", lambda vectors: vectors.clear())) == none
    assert refused(spoilt("zeros", fill(0))) == none
    # A single one, of a word that hardly any text has.
    nan = spoilt("nan", lambda vectors: vectors.data.put([-1], np.nan))
    assert refused(nan) == "it loads, but 'tok2vec' reads vectors that are not finite (NaN or infinite)"
    # Nobody reads these, and hashed vectors have no words of their own.
    assert examine(subject_of(changed(build("default", tmp_path / "unread"), _add_nothing))).ok
    floret = build("vectors", tmp_path / "floret")
    assert examine(subject_of(changed(floret, _hashed))).reason == ""


def _add_nothing(nlp: Language) -> None:
    nlp.vocab.vectors = Vectors(strings=nlp.vocab.strings, shape=(3, 4), name="zeros")


def _hashed(nlp: Language) -> None:
    nlp.vocab.vectors = Vectors(
        strings=nlp.vocab.strings,
        data=nlp.vocab.vectors.data,
        name="hashed",
        mode="floret",
        minn=2,
        maxn=3,
        hash_count=2,
        bow="<",
        eow=">",
    )


def test_another_number_of_labels_than_of_scores(refused: Callable[..., str], tmp_path: Path) -> None:
    path = configured(
        build("default", tmp_path / "release"), "spancat", labels=["ORG", "PLACE", "GÜTER", "NEW"]
    )
    assert "'spancat' gives 3 scores a span for 4 labels" in refused(path)


def test_another_pipe_that_fails(refused: Callable[..., str], tmp_path: Path) -> None:
    path = changed(build("default", tmp_path / "release"), lambda nlp: nlp.add_pipe("tagger"))
    assert "the weights of 'tagger' were never initialised" in refused(path)


def test_labels_swapped_on_the_way(refused: Callable[..., str], tmp_path: Path) -> None:
    path = build("default", tmp_path / "release")
    trained = subject_of(path)
    configured(path, "spancat", labels=["GÜTER", "PLACE", "ORG"])

    reason = refused(path, labels=trained.labels)

    assert reason == (
        "it loads, but labels of 'spancat' are ['GÜTER', 'PLACE', 'ORG'], not ['ORG', 'PLACE', 'GÜTER']"
    )


def test_labels_swapped_in_the_checkpoint(examine: Callable[..., LoadVerdict], tmp_path: Path) -> None:
    # Nothing but what it predicts can tell.
    path = build("default", tmp_path / "release")
    probe = Probe("Acme Corp opened an office in Berlin.", (Span(0, 9, "ORG"), Span(30, 36, "PLACE")), (), 1)
    right = examine(subject_of(path), probes=(probe,))
    configured(path, "spancat", labels=["PLACE", "ORG", "GÜTER"])
    wrong = examine(subject_of(path), probes=(probe,))

    assert right.ok
    assert wrong.ok
    assert right.probed is not None
    assert wrong.probed is not None
    assert (right.probed.passed, wrong.probed.passed) == (1, 0)
    (failure,) = wrong.probed.failures
    assert failure == (
        "line 1: no [0, 9] ORG 'Acme Corp', no [30, 36] PLACE 'Berlin' in"
        " 'Acme Corp opened an office in Berlin.';"
        " it gives [0, 9] PLACE 'Acme Corp', [30, 36] ORG 'Berlin'"
    )


@pytest.mark.parametrize(("name", "variant"), [("spancat", "own"), ("tok2vec", "default")])
def test_truncated_model(name: str, variant: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = build(variant, tmp_path / "release")
    model = (path / name / "model").read_bytes()
    (path / name / "model").write_bytes(model[: len(model) // 2])
    assert refused(path).startswith("spacy.load fails: ")


def test_flipped_bit(refused: Callable[..., str], tmp_path: Path) -> None:
    path = build("own", tmp_path / "release")
    model = path / "spancat/model"
    good = model.read_bytes()
    staged = subject_of(path).model_sha256

    def flipped(at: int) -> None:
        model.write_bytes(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])

    # In a weight: it loads, and only the digest tells.
    flipped(len(good) // 2)
    assert "is then not the one in model.bin" in refused(path, model_sha256=staged)
    # In the structure.
    flipped(0)
    assert refused(path).startswith("spacy.load fails: ")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('factory = "spancat"', 'factory = "spancat_of_ours"', "spancat_of_ours"),
        ("spacy.SpanCategorizer.v1", "ours.SpanCategorizer.v1", "ours.SpanCategorizer.v1"),
        ("spacy.ngram_suggester.v1", "ours.suggester.v1", "ours.suggester.v1"),
        ('lang = "en"', 'lang = "qq"', "qq"),
    ],
)
def test_configuration_of_what_is_not_installed(
    old: str, new: str, said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    path = edited(build("default", tmp_path / "release"), (old, new))
    reason = refused(path)
    assert reason.startswith("spacy.load fails: ")
    assert said in reason


def test_model_of_a_newer_spacy(refused: Callable[..., str], tmp_path: Path) -> None:
    path = build("default", tmp_path / "release")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"spacy_version": ">=99.1.0,<99.2.0"}))
    newer = "the checkpoint needs spaCy >=99.1.0,<99.2.0 (its meta.json says so), and "
    assert refused(path).startswith(newer)

    # And where nothing tells but that it uses a registry which this spaCy does not have.
    edited(path, ('@layers = "spacy.mean_max_reducer.v1"', '@reducers = "spacy.mean_max_reducer.v9"'))
    assert refused(path).startswith(newer)
    (path / "meta.json").write_text(json.dumps(meta))
    assert "[E892] Unknown function registry: 'reducers'" in refused(path)
