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
from spacy.pipeline.tok2vec import Tok2Vec
from spacy.util import registry
from spacy.vectors import Vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Any language's tokenizer makes several tokens of them, which differ in most ways that tokens can.
SENTENCES = (
    "Müller & Sons GmbH paid $1,250.00 to ACME on 3 May 2024; nobody knew why.",
    "is this, perhaps, e-mail? (x_y@example.org) 日本語 und العربية",
)

_THRESHOLD_TOLERANCE = 1e-6  # spaCy keeps 0.3 as 0.30000000000000004
_WORDS = 12
_STRINGS_LOOKED_AT = 500
_ENOUGH_SPANS = 20
# Where thinc's sigmoid has cut off what goes in, and float32 has no more digits for what comes out.
_LOWEST, _HIGHEST = 3e-9, 1.0 - 1e-4
# The same sum differs by this share of it, depending on where in a matrix it stands.
_NOISE = 1e-6
_STATIC_VECTORS = "static_vectors"
_TOK2VEC_LISTENER = "tok2vec-listener"
_TRANSFORMER_DATA = "trf_data"


class Unfit(Exception):  # noqa: N818  # a verdict on a release
    """The release must not go live; the message says why in one line."""


class Unusable(Exception):  # noqa: N818  # a verdict on what examines, not on what is examined
    """What the release was to be examined with is of no use, so that nothing is known of the release."""


def load(subject: dict[str, Any], spacy: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Load the pipeline of a subject.

    Returns:
        It, its span categorizer, and what there is to say of that under the keys of the verdict.

    Raises:
        Unfit: it isn't what the subject says of it. What spaCy itself raises is passed on.
    """
    nlp = spacy.load(subject["path"])
    name = subject["component"]
    if name not in nlp.component_names:
        others = ", ".join(nlp.component_names)
        raise Unfit(f"it loads, but has no component {name!r}, only: {others}")
    pipe = nlp.get_pipe(name)
    found = _described(pipe)
    if found["model_sha256"] != subject["model_sha256"]:
        raise Unfit(f"it loads, but the model of {name!r} is then not the one in model.bin")
    for key in ("labels", "spans_key", "threshold"):
        expected = subject.get(key)
        if expected is not None and not _same(found[key], expected):
            verb = "are" if key == "labels" else "is"
            raise Unfit(f"it loads, but {key} of {name!r} {verb} {found[key]!r}, not {_plain(expected)!r}")
    return nlp, pipe, found


def _described(pipe: Any) -> dict[str, Any]:
    threshold = pipe.cfg.get("threshold")
    return {
        "labels": [str(label) for label in pipe.labels],
        "spans_key": str(pipe.key),
        "threshold": None if threshold is None else float(threshold),
        "model_sha256": hashlib.sha256(pipe.model.to_bytes()).hexdigest(),
    }


def check_predicts(nlp: Any, pipe: Any) -> None:
    """Let the pipeline predict on a few short texts; raises Unfit where that shows that it can't work.

    Only what is certain counts: a prediction that fails, a listener that nothing feeds, vectors that are not
    there, weights or scores that are not finite, scores that are the same whatever the text is. To know
    little is no fault.
    """
    own = _name_of(nlp, pipe)
    if own in nlp.disabled:
        raise Unfit(f"it loads, but its config.cfg disables {own!r}: it would predict nothing, silently")
    if not pipe.labels:
        raise Unfit(f"it loads, but {own!r} has no labels: it was never initialised")
    docs = [nlp.make_doc(text) for text in smoke_texts(nlp)]
    reached = False
    for name, other in nlp.pipeline:
        if not reached:  # later ones have no part in the spans
            _check_weights(name, other)
            _check_vectors(nlp, name, other)
            _check_fed(nlp, name, other, docs)
        try:
            found = _annotate(nlp, pipe, own, docs) if other is pipe else _run(other, docs)
        except (Unfit, MemoryError, OSError):  # the latter say what they were refused
            raise
        except Exception as error:
            if _uninitialised(other):
                raise Unfit(
                    f"it loads, but the weights of {name!r} were never initialised: {_uninitialised(other)}"
                ) from error
            raise Unfit(
                f"it loads, but {name!r} fails to predict: {type(error).__name__}: {error}"
            ) from error
        if len(found) != len(docs):
            raise Unfit(f"it loads, but {name!r} gives {len(found)} documents for {len(docs)}")
        docs = found
        reached = reached or other is pipe


def smoke_texts(nlp: Any) -> list[str]:
    """Return short texts whose tokens differ to any model: also to one that knows nothing but its vectors."""
    known = nlp.vocab.strings
    keys = itertools.islice(nlp.vocab.vectors.keys(), _STRINGS_LOOKED_AT)
    words = (known[key] for key in keys if key in known)
    strings = itertools.islice(known, _STRINGS_LOOKED_AT)
    chosen = itertools.islice(filter(str.isalpha, itertools.chain(words, strings)), _WORDS)
    return [*SENTENCES, " ".join(chosen)]


def _name_of(nlp: Any, pipe: Any) -> str:
    return next(str(name) for name, other in nlp.components if other is pipe)


def _run(pipe: Any, docs: list[Any]) -> list[Any]:
    return list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(doc) for doc in docs]


def _annotate(nlp: Any, pipe: Any, name: str, docs: list[Any]) -> list[Any]:
    """Let the span categorizer do what it does in a pipeline, and look at its scores on the way."""
    suggested = 0
    preset = _preset_spans(nlp, name)
    if preset is None or all(preset in doc.spans for doc in docs):
        indices, scores = pipe.predict(docs)
        suggested = len(scores)
        if suggested:
            _check_scores(pipe, name, scores)
        pipe.set_annotations(docs, (indices, scores))
    # else: no pipe writes them, but the application that calls the pipeline can.
    if suggested < _ENOUGH_SPANS:
        suggest = registry.misc.get("spacy.ngram_suggester.v1")(sizes=[1, 2])
        _check_scores(pipe, name, pipe.model.predict((docs, suggest(docs, ops=pipe.model.ops))))
    return docs


def _preset_spans(nlp: Any, name: str) -> str | None:
    """Return the key of the spans that its suggester takes as they are, if it is such a one."""
    suggester = nlp.get_pipe_config(name).get("suggester")
    return suggester.get("spans_key") if isinstance(suggester, dict) else None


def _check_scores(pipe: Any, name: str, scores: Any) -> None:
    rows = pipe.model.ops.to_numpy(scores)
    if not np.isfinite(rows).all():
        raise Unfit(f"it loads, but {name!r} gives scores that are not finite (NaN or infinite)")
    classes = len(pipe.labels) + bool(getattr(pipe, "add_negative_label", False))
    if rows.shape[1] != classes:
        raise Unfit(f"it loads, but {name!r} gives {rows.shape[1]} scores a span for {classes} labels")
    if len(rows) < _ENOUGH_SPANS:
        return
    # What is cut off at its highest or lowest looks the same though it isn't.
    cut = (rows[0] <= _LOWEST) | (rows[0] >= _HIGHEST)
    same = np.ptp(rows, axis=0) <= _NOISE * rows.max(axis=0)
    if same.all() and not cut.all():
        raise Unfit(
            f"it loads, but {name!r} gives every span of every text the same scores:"
            " its weights are as good as uninitialised, or what it reads is not there"
        )


def _check_weights(name: str, pipe: Any) -> None:
    for node in _nodes(pipe):
        for parameter in node.param_names:
            if node.has_param(parameter):
                values = node.ops.to_numpy(node.get_param(parameter))
                if not np.isfinite(values).all():
                    raise Unfit(
                        f"it loads, but weights of {name!r} are not finite (NaN or infinite):"
                        f" {parameter!r} of its layer {node.name!r}"
                    )


def _check_vectors(nlp: Any, name: str, pipe: Any) -> None:
    """Raise Unfit if a part of the model reads vectors that say nothing of any word.

    It makes zeros of words that are not in the table, without a word.
    """
    vectors = nlp.vocab.vectors
    readers = [node for node in _nodes(pipe) if node.name == _STATIC_VECTORS]
    if not readers or not isinstance(vectors, Vectors):  # others need not have a table
        return
    values = readers[0].ops.to_numpy(vectors.data)
    if not vectors.n_keys or not values.any():
        raise Unfit(f"it loads, but {name!r} reads vectors, and there are none in its vocab")
    if not np.isfinite(values).all():
        raise Unfit(f"it loads, but {name!r} reads vectors that are not finite (NaN or infinite)")


def _uninitialised(pipe: Any) -> str:
    """Return which weights were never set; empty if none are missing."""
    missing = [
        f"{parameter!r} of its layer {node.name!r}"
        for node in _nodes(pipe)
        for parameter in node.param_names
        if node.has_param(parameter) is None
    ]
    return missing[0] if missing else ""


def _check_fed(nlp: Any, name: str, pipe: Any, docs: Sequence[Any]) -> None:
    """Raise Unfit if a part of the model listens, and the pipes that ran before it left it nothing.

    Such a listener makes zeros of it, without a word.
    """
    for node in _nodes(pipe):
        upstream = _upstream(node)
        if upstream is None:
            continue
        if not all(_feeds(node, doc) for doc in docs if len(doc)):
            raise Unfit(
                f"it loads, but {name!r} listens to {_whom(upstream)}, {_why_silent(nlp, name, upstream)}:"
                " it would predict nothing, silently"
            )
        other = _overheard(nlp, name, node, upstream, docs)
        if other:
            raise Unfit(
                f"it loads, but {name!r} listens to {upstream!r}, and hears {other!r}, which runs in between"
            )
        stranger = _stranger(nlp, name, upstream)
        if stranger:
            raise Unfit(
                f"it loads, but {name!r} listens to {_whom(upstream)}, which is not a pipe before it,"
                f" and hears {stranger!r}, which others listen to"
            )


def _upstream(node: Any) -> str | None:
    """Return the name of the pipe that a node of a model listens to; None if it isn't a listener."""
    if node.attrs.get("_USE_DOC_ANNOTATIONS_FOR_PREDICTION", True) is False:
        return None  # curated transformers: it has its own copy
    name = getattr(node, "upstream_name", None)
    return name if isinstance(name, str) else node.attrs.get("_upstream_name")


def _feeds(node: Any, doc: Any) -> bool:
    """Whether there is in a document what a listener reads there."""
    if node.name == _TOK2VEC_LISTENER:
        return bool(doc.tensor.size)
    if "transformer" in node.name:
        return bool(doc.has_extension(_TRANSFORMER_DATA)) and doc._.trf_data is not None
    return True  # unknown: the scores will tell


def _whom(upstream: str) -> str:
    return "any tok2vec or transformer" if upstream == "*" else repr(upstream)


def _why_silent(nlp: Any, name: str, upstream: str) -> str:
    names = list(nlp.component_names)
    if upstream == "*":
        return "and none runs before it"
    if upstream not in names:
        return "which is not in the pipeline"
    if upstream in nlp.disabled:
        return "which its config.cfg disables"
    if names.index(upstream) > names.index(name):
        return "which comes after it"
    return "which gives it nothing"


def _stranger(nlp: Any, name: str, upstream: str) -> str:
    """Return the pipe that a listener hears in place of the one it names, if that is certainly wrong.

    It is if others listen to that pipe by its name; if none do, it may have been renamed.
    """
    before = list(itertools.takewhile(lambda item: item[0] != name, nlp.pipeline))
    if upstream == "*" or upstream in dict(before):
        return ""
    sources = [other for other, pipe in before if hasattr(pipe, "add_listener")]
    named = {_upstream(node) for _, pipe in nlp.components for node in _nodes(pipe)}
    return sources[-1] if sources and sources[-1] in named else ""


def _overheard(nlp: Any, name: str, node: Any, upstream: str, docs: Sequence[Any]) -> str:
    """Return the pipe that a listener hears in place of the one it names, as that ran before this one.

    All of them write to the same place. While it is trained a listener does hear the one it names.
    """
    before = dict(itertools.takewhile(lambda item: item[0] != name, nlp.pipeline))
    writers = [other for other, pipe in before.items() if isinstance(pipe, Tok2Vec)]
    if node.name != _TOK2VEC_LISTENER or upstream not in writers[:-1]:
        return ""
    filled = [doc for doc in docs if len(doc)]
    wanted = before[upstream].predict(filled)
    ops = node.ops
    if all(
        rows.shape == doc.tensor.shape
        and np.allclose(ops.to_numpy(rows), ops.to_numpy(doc.tensor), rtol=1e-3, atol=1e-5)
        for rows, doc in zip(wanted, filled)  # noqa: B905  # Python 3.8
    ):
        return ""  # a copy of it
    return str(writers[-1])


def _nodes(pipe: Any) -> Iterator[Any]:
    """Yield the layers of a pipe's model; none if it has no model of thinc's."""
    walk = getattr(getattr(pipe, "model", None), "walk", None)
    if callable(walk):
        yield from walk()


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, float) and isinstance(expected, (int, float)):
        return math.isclose(found, expected, rel_tol=0, abs_tol=_THRESHOLD_TOLERANCE)
    return bool(found == _plain(expected))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
