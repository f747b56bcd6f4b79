"""Bytes of config.cfg and meta.json without the pipes that go."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.checkpoint.configuration import parse_config
from spancat_daemon.checkpoint.layout import Layout, read_layout
from spancat_daemon.checkpoint.reduce import (
    reduce_config,
    reduce_meta,
    reduce_metrics,
    standalone_config,
)
from spancat_daemon.errors import Rejected

CONFIG = """\
[paths]
train = null

[nlp]
lang = "en"
pipeline = ["tok2vec","tagger","spancat","ner"]
disabled = ["ner"]
batch_size = 1000
tokenizer = {"@tokenizers":"spacy.Tokenizer.v1"}

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.HashEmbedCNN.v2"
width = 24

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"
width = ${components.tok2vec.model:width}

[components.ner]
factory = "ner"

[components.spancat]
factory = "spancat"
spans_key = "sc"
threshold = 0.30000000000000004
scorer = {"@scorers":"spacy.spancat_scorer.v1"}

[components.spancat.model]
@architectures = "spacy.SpanCategorizer.v1"

[components.spancat.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = ${components.tok2vec.model.width}
upstream = "tok2vec"

[components.spancat.suggester]
@misc = "spacy.ngram_suggester.v1"
sizes = [1,2,
\t3]

[training]
seed = ${system.seed}
frozen_components = ["tagger", "tok2vec"]
annotating_components = []

[training.score_weights]
tag_acc = 0.3
ents_f = 0.2
spans_sc_f = 0.4
my_own_score = 0.1

[initialize]
vectors = ${paths.vectors}

[initialize.components]

[initialize.components.tagger]

[initialize.components.tagger.labels]
@readers = "spacy.read_labels.v1"

[initialize.components.spancat]
"""
KEPT = ("tok2vec", "spancat")


def meta(**more: Any) -> bytes:
    return json.dumps({"spacy_version": ">=3.8.7,<3.9.0", **more}).encode()


def layout(config: str = CONFIG, meta_json: bytes = b"{}") -> Layout:
    cfg = json.dumps({"labels": ["A", "B"], "spans_key": "sc", "threshold": 0.5}).encode()
    return read_layout(config.encode(), meta_json, {"spancat": cfg})


def reduced(config: str = CONFIG) -> dict[str, Any]:
    return parse_config(reduce_config(config.encode(), layout(config), KEPT))


def test_only_what_belongs_to_kept_pipes_stays() -> None:
    config = reduced()

    assert config["nlp"]["pipeline"] == ["tok2vec", "spancat"]
    assert config["nlp"]["disabled"] == []
    assert list(config["components"]) == ["tok2vec", "spancat"]
    assert config["training"]["frozen_components"] == ["tok2vec"]
    assert config["training"]["score_weights"] == {"spans_sc_f": 0.4, "my_own_score": 0.1}
    assert config["initialize"]["components"] == {"spancat": {}}


def test_values_that_stay_keep_their_text() -> None:
    text = reduce_config(CONFIG.encode(), layout(), KEPT).decode()

    for line in (
        "threshold = 0.30000000000000004",
        "width = ${components.tok2vec.model.width}",
        'scorer = {"@scorers":"spacy.spancat_scorer.v1"}',
        "sizes = [1,2,\n\t3]",
        "vectors = ${paths.vectors}",
    ):
        assert f"\n{line}\n" in text
    assert list(parse_config(text.encode())) == ["paths", "nlp", "components", "training", "initialize"]


def test_reducing_again_changes_nothing() -> None:
    once = reduce_config(CONFIG.encode(), layout(), KEPT)
    assert reduce_config(once, layout(once.decode()), KEPT) == once


@pytest.mark.parametrize(
    ("reference", "section"),
    [
        ("${components.tagger.model.width}", "components.spancat.model"),
        ("${components.tagger.model:width}", "training"),
        ("${components:tagger}", "components.spancat"),
        ('{"a": [1, "${components.ner.x}"]}', "paths"),
        ("${initialize.components.tagger.labels}", "initialize.components.spancat"),
    ],
)
def test_reference_to_a_dropped_pipe_is_refused(reference: str, section: str) -> None:
    config = CONFIG.replace(f"[{section}]\n", f"[{section}]\nextra = {reference}\n")

    with pytest.raises(
        Rejected, match=r"extra refers to \[components\.(tagger|ner)\].*contents = \"pipeline\""
    ):
        reduced(config)


def test_pipe_whose_name_begins_like_a_dropped_one_stays() -> None:
    config = CONFIG.replace('"spancat","ner"', '"spancat","span"').replace(
        "components.ner]", "components.span]"
    )
    config = config.replace(
        "[components.spancat]\n", "[components.spancat]\nwidth = ${components.spancat.model.x}\n"
    )

    assert list(reduced(config)["components"]) == ["tok2vec", "spancat"]


def test_sections_of_pipes_that_never_run_go_too() -> None:
    config = CONFIG.replace("[components.ner]", '[components.unused]\nfactory = "x"\n\n[components.ner]')
    assert list(reduced(config)["components"]) == ["tok2vec", "spancat"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20), max_size=5))
def test_any_value_spacy_can_write_survives(lines: list[str]) -> None:
    value = json.dumps("\n".join(lines), ensure_ascii=False).replace("${", "$ {")
    config = CONFIG.replace("train = null", f"train = {value}")

    assert reduced(config)["paths"]["train"] == json.loads(value)


META = {
    "lang": "en",
    "name": "pipeline — naïve \ud800",
    "pipeline": ["tok2vec", "tagger", "spancat"],
    "components": ["tok2vec", "tagger", "spancat", "ner"],
    "disabled": ["ner"],
    "labels": {"tok2vec": [], "tagger": ["X"], "spancat": ["A", "B"], "ner": []},
    "_sourced_vectors_hashes": {"ner": 1, "spancat": 2},
    "performance": {
        "token_acc": 1.0,
        "tag_acc": 0.9,
        "ents_f": 0.1,
        "ents_per_type": {"A": {"p": 1}},
        "spans_sc_f": 0.30000000000000004,
        "spans_sc_per_type": {"A": {"p": 1}},
        "tagger_loss": 1.5,
        "spancat_loss": 2.5,
        "tok2vec_loss": 3.5,
        "my_own_score": 12345678901234567890,
    },
    "requirements": ["extra>=1"],
}


def alone(config: str) -> dict[str, Any]:
    whole = layout(config)
    return parse_config(standalone_config(config.encode(), whole, "spancat", "tok2vec", "model.tok2vec"))


@pytest.mark.parametrize("width", ["components.tok2vec.model.width", "components.tok2vec.model:width"])
def test_copy_takes_the_place_of_the_listener_and_what_is_referred_to_follows(width: str) -> None:
    whole = parse_config(CONFIG.encode())

    found = alone(CONFIG + f"\n[custom]\nwidth = ${{{width}}}\nall = ${{components.tok2vec.model}}\n")

    assert list(found["components"]) == found["nlp"]["pipeline"] == ["spancat"]
    model = found["components"]["spancat"]["model"]
    assert model == {
        "@architectures": "spacy.SpanCategorizer.v1",
        "tok2vec": whole["components"]["tok2vec"]["model"],
    }
    place = "components.spancat.model.tok2vec"
    assert found["custom"] == {
        "width": "${" + width.replace("components.tok2vec.model", place) + "}",
        "all": "${" + place + "}",
    }


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (CONFIG + "\n[custom]\nname = ${components.tok2vec.factory}\n", "refers to [components.tok2vec]"),
        (
            CONFIG.replace("spancat.model.tok2vec]", "spancat.model.t2v]"),
            "has no section [components.spancat",
        ),
    ],
)
def test_what_can_not_be_copied_is_refused(config: str, problem: str) -> None:
    with pytest.raises(Rejected, match=re.escape(problem)):
        alone(config)


def test_meta_keeps_what_concerns_kept_pipes() -> None:
    found = json.loads(reduce_meta(json.dumps(META).encode(), layout(), KEPT))

    assert found == META | {
        "pipeline": ["tok2vec", "spancat"],
        "components": ["tok2vec", "spancat"],
        "disabled": [],
        "labels": {"tok2vec": [], "spancat": ["A", "B"]},
        "_sourced_vectors_hashes": {"spancat": 2},
        "performance": {
            "token_acc": 1.0,
            "spans_sc_f": 0.30000000000000004,
            "spans_sc_per_type": {"A": {"p": 1}},
            "spancat_loss": 2.5,
            "tok2vec_loss": 3.5,
            "my_own_score": 12345678901234567890,
        },
    }
    assert list(found) == list(META)


def test_score_that_a_kept_pipe_has_too_stays() -> None:
    second = CONFIG.replace('factory = "ner"', 'factory = "span_finder"\nspans_key = "sc"')
    other = CONFIG.replace('factory = "ner"', 'factory = "span_finder"\nspans_key = "sc_x"')
    scores = {"spans_sc_f": 1.0, "spans_sc_x_f": 2.0}

    assert reduce_metrics(scores, layout(second), KEPT) == scores
    assert reduce_metrics(scores, layout(other), KEPT) == {"spans_sc_f": 1.0}
