"""What a release scores on gold documents: the figures of ``spacy evaluate``."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from spacy.scorer import Scorer
from spacy.tokens import Doc, DocBin
from spacy.training import Example

from .loading import Unfit, Unusable

if TYPE_CHECKING:
    from collections.abc import Sequence


class Gold:
    """The gold documents of a ``.spacy`` file, read once and given to as many pipelines as ask.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        """Read it; raises Unusable if that is impossible."""
        self.path = path
        try:
            with open(path, "rb") as file:  # noqa: PTH123  # as spaCy gets it, whatever its name is
                self._documents = DocBin().from_bytes(file.read())
        except MemoryError:
            raise
        except OSError as error:
            raise Unusable(f"can't read the gold documents {path}: {error.strerror or error}") from error
        except Exception as error:
            raise Unusable(
                f"{path} is not a .spacy file of this spaCy: {type(error).__name__}: {error}"
            ) from error

    def documents(self, nlp: Any) -> list[Any]:
        """Return them with a pipeline's vocabulary, those without tokens left out as spaCy does."""
        try:
            found = [doc for doc in self._documents.get_docs(nlp.vocab) if len(doc)]
        except MemoryError:
            raise
        except Exception as error:
            raise Unusable(f"{self.path} is damaged: {type(error).__name__}: {error}") from error
        if not found:
            raise Unusable(f"{self.path} holds no documents")
        return found


def evaluate(nlp: Any, pipe: Any, gold: Gold | str) -> dict[str, Any]:
    """Return how many gold documents there are, and a span categorizer's scores on them.

    They are what ``spacy evaluate`` gives for this component: the whole pipeline predicts, on the gold
    documents' texts, and the component's own scorer compares.

    Args:
        nlp: the pipeline.
        pipe: the component.
        gold: the documents, or the file they are in.

    Raises:
        Unusable: the file can't be read, or has no spans under the component's key.
        Unfit: predicting or scoring fails.
    """
    gold = Gold(gold) if isinstance(gold, str) else gold
    documents = gold.documents(nlp)
    _check_annotated(documents, pipe.key, gold.path)
    try:
        examples = _predicted(nlp, documents)
        scores = _scores(pipe, examples)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise Unfit(
            f"it loads, but can't be evaluated on {os.path.basename(gold.path)}:"  # noqa: PTH119
            f" {type(error).__name__}: {error}"
        ) from error
    return {"documents": len(documents), "scores": scores}


def _check_annotated(documents: Sequence[Any], key: str, path: str) -> None:
    if any(len(doc.spans.get(key, ())) for doc in documents):
        return
    others = sorted({str(other) for doc in documents for other in doc.spans if len(doc.spans[other])})
    there = f"only under {', '.join(map(repr, others))}" if others else "nor under any other"
    raise Unusable(f"{path} holds no spans under the key {key!r} that the component writes, {there}")


def _predicted(nlp: Any, documents: Sequence[Any]) -> list[Any]:
    # As spacy.training.Corpus does, which `spacy evaluate` reads with.
    blank = [
        Doc(nlp.vocab, words=[token.text for token in doc], spaces=[bool(token.whitespace_) for token in doc])
        if doc.has_unknown_spaces
        else nlp.make_doc(doc.text)
        for doc in documents
    ]
    predicted = list(nlp.pipe(blank))
    if len(predicted) != len(documents):
        raise ValueError(f"it gives {len(predicted)} documents for {len(documents)}")
    return [Example(found, doc) for found, doc in zip(predicted, documents)]  # noqa: B905  # Python 3.8


def _scores(pipe: Any, examples: Sequence[Any]) -> dict[str, Any]:
    """Return the component's figures; those of its spans are spaCy's, whatever scorer a release names."""
    prefix = "spans_"
    # First, while the documents are what was predicted: a release's scorer may do anything to them.
    of_spans = Scorer.score_spans(
        examples,
        attr=f"{prefix}{pipe.key}",
        allow_overlap=True,
        getter=lambda doc, attr: doc.spans.get(attr[len(prefix) :], []),
        has_annotation=lambda doc: pipe.key in doc.spans,
    )
    figures = {name: _plain(value) for name, value in of_spans.items()}
    _count_gold(figures.get(f"{prefix}{pipe.key}_per_type") or {}, pipe.key, examples)
    others = {str(name): _plain(value) for name, value in (pipe.score(examples) or {}).items()}
    return {name: value for name, value in {**others, **figures}.items() if value is not None}


def _count_gold(per_type: dict[str, Any], key: str, examples: Sequence[Any]) -> None:
    """Add to each label's figures how many gold spans have it: without any, a score of 0 says nothing."""
    gold = Counter(span.label_ for example in examples for span in example.reference.spans.get(key, ()))
    for label, figures in per_type.items():
        figures["gold"] = gold[label]


def _plain(value: Any) -> Any:
    """Return a figure as JSON has it: a number, or a table of such; None for all else."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
