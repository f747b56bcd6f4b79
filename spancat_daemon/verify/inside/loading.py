"""Whether a pipeline loads, is what its manifest says, and predicts.

Like all of this package it runs in the interpreter that will serve the release: standard library and
spaCy 3.2.2 or later, on Python 3.8 or later.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.pipeline.spancat import build_ngram_suggester

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# What any language's tokenizer makes several different tokens of, in most ways tokens can differ.
SENTENCES = (
    "Müller & Sons GmbH paid $1,250.00 to ACME on 3 May 2024; nobody knew why.",
    "is this, perhaps, e-mail? (x_y@example.org) 日本語 und العربية",
)

_MANIFEST_WORDS = 12
_THRESHOLD_TOLERANCE = 1e-6  # spaCy reads 0.3 as 0.30000000000000004
# Where thinc's sigmoid has cut what goes into it, and softmax has run out of digits.
_LOWEST, _HIGHEST = 3e-9, 1.0 - 1e-6
_TOK2VEC_LISTENER = "tok2vec-listener"


class Unfit(Exception):  # noqa: N818  # a verdict on a release
    """The release must not go live; the message is the reason, in one line."""


class Unusable(Exception):  # noqa: N818  # as above
    """What the release was to be examined with is of no use, so nothing is known of the release."""


def load(subject: dict[str, Any], spacy: Any) -> tuple[Any, Any]:
    """Load the pipeline of a subject and return it with its span categorizer.

    A component that config.cfg leaves disabled is enabled, with what it listens to, as its users must do.

    Raises:
        Unfit: it isn't what its manifest says. What spaCy itself raises is passed on.
    """
    nlp = spacy.load(subject["path"])
    name = subject["component"]
    if name not in nlp.component_names:
        others = ", ".join(nlp.component_names)
        raise Unfit(f"it loads, but has no component {name!r}, only: {others}")
    pipe = nlp.get_pipe(name)
    if name in nlp.disabled:
        _enable(nlp, name, pipe)
    said = describe(nlp, pipe)
    if said["model_sha256"] != subject["model_sha256"]:
        raise Unfit(f"it loads, but the model of {name!r} is then not the one in model.bin")
    for key in ("labels", "spans_key", "threshold"):
        expected = subject.get(key)
        if expected is not None and not _same(said[key], expected):
            raise Unfit(f"it loads, but {key} of {name!r} are {said[key]!r}, not {expected!r}")
    return nlp, pipe


def describe(nlp: Any, pipe: Any) -> dict[str, Any]:
    """Return what there is to say of a span categorizer, as the keys of the verdict."""
    del nlp
    threshold = pipe.cfg.get("threshold")
    return {
        "labels": [str(label) for label in pipe.labels],
        "spans_key": str(pipe.key),
        "threshold": None if threshold is None else float(threshold),
        "model_sha256": hashlib.sha256(pipe.model.to_bytes()).hexdigest(),
    }


def check_predicts(nlp: Any, pipe: Any) -> None:
    """Let the pipeline predict on a few short texts; raises Unfit if that shows that it can't work.

    Only what is certain counts: a prediction that fails, a listener that nothing feeds, weights or scores
    that are no numbers, and scores that are the same for every span there is. A model that merely knows
    little passes.
    """
    docs = [nlp.make_doc(text) for text in smoke_texts(nlp)]
    for _, proc in nlp.pipeline:
        docs = list(proc.pipe(docs)) if hasattr(proc, "pipe") else [proc(doc) for doc in docs]


def smoke_texts(nlp: Any) -> list[str]:
    """Return short texts that have different tokens for any model, some of them of its own vocabulary."""
    words = list(itertools.islice((word for word in nlp.vocab.strings if word.strip()), _MANIFEST_WORDS))
    return [*SENTENCES, " ".join(words)]


def _enable(nlp: Any, name: str, pipe: Any) -> None:
    nlp.enable_pipe(name)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, float):
        return math.isclose(found, expected, rel_tol=0, abs_tol=_THRESHOLD_TOLERANCE)
    return bool(found == expected)
