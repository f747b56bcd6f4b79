"""The model of a span categorizer with its own copy of what it listens to, seen to predict the same."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.util import load_config_from_str, load_model_from_config, registry

from .loading import SENTENCES, Unfit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TOLERANCE = 1e-6  # of scores, which lie between 0 and 1
_TEXTS, _WORDS = 25, 12


def grafted(nlp: Any, name: str, graft: dict[str, Any]) -> bytes:
    """Return the model of a component with a copy of its upstream's in place of its listener.

    The component is changed by it: afterwards it is of no use in its pipeline.

    Args:
        nlp: a pipeline of the two.
        name: the component's.
        graft: see `Grafting`.

    Raises:
        Unfit: what came of it does not predict what the pipeline did. What spaCy raises is passed on.
    """
    texts = [*graft["texts"], *SENTENCES, *_known_words(nlp)]
    pipe = nlp.get_pipe(name)
    before = _predicted(nlp, pipe, texts)
    nlp.replace_listeners(graft["upstream"], name, [graft["listener"]])
    # As it will be loaded, but for the files; what is not copied is the same.
    alone = load_model_from_config(load_config_from_str(graft["config"]), vocab=nlp.vocab)
    alone.tokenizer = nlp.tokenizer
    if alone.component_names != [name]:
        raise Unfit(f"its pipeline would be {alone.component_names}")
    copy: Any = alone.get_pipe(name)
    copy.from_bytes(pipe.to_bytes(exclude=["vocab"]), exclude=["vocab"])
    # Not the first one's: what is copied within a model loses the names of its parts.
    model = copy.model.to_bytes()
    copy.model.from_bytes(model)
    if copy.model.to_bytes() != model:
        raise Unfit("its model would be another one once it is loaded")
    _check_same(before, _predicted(alone, copy, texts))
    return bytes(model)


def _known_words(nlp: Any) -> Iterator[str]:
    """Yield texts of words that the pipeline has met."""
    words = filter(str.isalpha, iter(nlp.vocab.strings))
    for _ in range(_TEXTS):
        text = " ".join(itertools.islice(words, _WORDS))
        if text:
            yield text


def _predicted(nlp: Any, pipe: Any, texts: Sequence[str]) -> list[tuple[str, Any]]:
    """Return what there is to compare of a component's predictions, each with its name."""
    docs = [nlp.make_doc(text) for text in texts]
    for _, other in itertools.takewhile(lambda item: item[1] is not pipe, nlp.pipeline):
        docs = list(other.pipe(docs))
    to_numpy = pipe.model.ops.to_numpy
    indices, scores = pipe.predict(docs)
    pipe.set_annotations(docs, (indices, scores))
    found = [[(span.start, span.end, span.label_) for span in doc.spans[pipe.key]] for doc in docs]
    # It may suggest nothing at all in so few texts, or nothing that is worth a span.
    pairs = registry.misc.get("spacy.ngram_suggester.v1")(sizes=[1, 2])(docs, ops=pipe.model.ops)
    return [
        ("number of suggestions", to_numpy(indices.lengths)),
        ("suggestions", to_numpy(indices.dataXd)),
        ("scores", to_numpy(scores)),
        ("spans", found),
        ("scores", to_numpy(pipe.model.predict((docs, pairs)))),
    ]


def _check_same(before: Sequence[tuple[str, Any]], after: Sequence[tuple[str, Any]]) -> None:
    for (what, one), (_, other) in zip(before, after):  # noqa: B905  # Python 3.8
        if what != "scores":
            same = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        else:
            same = one.shape == other.shape and np.allclose(one, other, rtol=0, atol=_TOLERANCE)
        if not same:
            raise Unfit(f"its {what} would be others than the pipeline's")
