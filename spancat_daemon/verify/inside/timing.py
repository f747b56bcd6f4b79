"""How long a release takes for a document, beside the live one."""

from __future__ import annotations

import time
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from .loading import smoke_texts
from .scoring import Gold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TEXTS = 50
_MOST_S = 2.0
_USUAL_PASSES, _MOST_PASSES = 3, 20


class LiveFails(Exception):  # noqa: N818  # a verdict on a release
    """The live release fails on a text; the cause says how."""


def texts_of(probes: Sequence[dict[str, Any]], gold: Gold | str | None, nlp: Any) -> list[str]:
    """Return the texts to time with: of probes and gold documents, evenly spread; else a few of our own."""
    texts = [one["text"] for one in probes]
    if gold:
        gold = Gold(gold) if isinstance(gold, str) else gold
        texts += [doc.text for doc in gold.documents(nlp)]
    texts = [text for text in texts if text] or smoke_texts(nlp)
    step = max(1, -(-len(texts) // _TEXTS))
    return texts[::step]


def time_both(nlp: Any, live: Any | None, texts: Sequence[str]) -> dict[str, Any]:
    """Time two pipelines in turns on the same texts, text by text, so that a busy machine slows down both.

    It takes about two seconds at most; what doesn't fit in is left out, at the end of the texts.

    Returns:
        ``documents``: how many texts; ``snapshot_ms`` and ``live_ms``: milliseconds a document, the mean
        over all texts of each one's median; ``live_ms`` is None without a live pipeline.

    Raises:
        LiveFails: it is the live one that fails. What the other one raises is passed on.
    """
    pipelines = [nlp] if live is None else [nlp, _blamed(live)]
    deadline = time.perf_counter() + _MOST_S
    chosen = _warm_up(pipelines, texts, deadline)
    taken: list[list[list[float]]] = [[[] for _ in chosen] for _ in pipelines]
    for done in range(_MOST_PASSES):
        if done and time.perf_counter() >= deadline:
            break
        for position, text in enumerate(chosen):
            # Who comes first takes turns, too: the second finds the text in the processor's cache.
            order = range(len(pipelines))
            for which in order if (done + position) % 2 else reversed(order):
                begun = time.perf_counter()
                pipelines[which](text)
                taken[which][position].append(time.perf_counter() - begun)
    figures = [1000 * fmean(median(times) for times in each) for each in taken]
    return {
        "documents": len(chosen),
        "snapshot_ms": figures[0],
        "live_ms": figures[1] if live is not None else None,
    }


def _blamed(live: Any) -> Callable[[str], None]:
    def predict(text: str) -> None:
        try:
            live(text)
        except MemoryError:
            raise
        except Exception as error:
            raise LiveFails from error

    return predict


def _warm_up(pipelines: Sequence[Any], texts: Sequence[str], deadline: float) -> Sequence[str]:
    """Let each predict each text once, and return as many texts as leave time for the usual passes."""
    begun = time.perf_counter()
    allowed = (deadline - begun) / (_USUAL_PASSES + 1)
    for count, text in enumerate(texts, 1):
        for pipeline in pipelines:
            pipeline(text)
        if time.perf_counter() - begun >= allowed:
            return texts[:count]
    return texts
