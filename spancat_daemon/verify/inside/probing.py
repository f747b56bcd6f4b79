"""Whether a release gives the spans it must give, and none that it must not."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from .loading import Unfit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FAILURES = 10
_SPANS_SHOWN = 8
_TEXT_SHOWN = 60


def probe(nlp: Any, pipe: Any, probes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Predict on the text of every probe and compare.

    A probe passes if its text gives all spans it must and none that it must not; an empty list of spans
    says that it must give none at all. One that says nothing passes if predicting does not fail. If none
    of them says anything, they all pass if there is at least one span in all texts together, else none.

    Returns:
        ``total``, ``passed``, the number of predicted ``spans``, and ``failures``: a sentence for each of
        the first probes that failed.
    """
    spans = failed = 0
    failures: list[str] = []
    for one, doc in zip(probes, _predict(nlp, [one["text"] for one in probes])):  # noqa: B905  # Python 3.8
        if isinstance(doc, Exception):
            why = f"predicting fails: {type(doc).__name__}: {doc}"
        else:
            found = list(doc.spans.get(pipe.key, ()))
            spans += len(found)
            why = _compare(one, doc, found)
        if why:
            failed += 1
            if len(failures) < _FAILURES:
                failures.append(f"line {one['line']}: {why}")
    total = len(probes)
    silent = all(one["spans"] is None and not one["absent"] for one in probes)
    if silent and not spans and total:
        failed = total
        failures.insert(0, f"none of the {total} texts gives a single span")
    return {"total": total, "passed": total - failed, "spans": spans, "failures": failures[:_FAILURES]}


def _predict(nlp: Any, texts: Sequence[str]) -> Iterable[Any]:
    """Return a document for each text, or what predicting it raised."""
    try:
        docs = list(nlp.pipe(texts))
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001  # whose text it was is found out one by one
        return (_predict_one(nlp, text) for text in texts)
    if len(docs) != len(texts):
        raise Unfit(f"it loads, but gives {len(docs)} documents for the {len(texts)} texts of the probes")
    return docs


def _predict_one(nlp: Any, text: str) -> Any:
    try:
        return nlp(text)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  # a probe's failure
        return error


def _compare(one: dict[str, Any], doc: Any, found: Sequence[Any]) -> str:
    """Return why a probe failed; empty if it passed."""
    given = {(span.start_char, span.end_char, span.label_) for span in found}
    wanted, unwanted = one["spans"] or [], one["absent"]
    problems = [why for span in itertools.chain(wanted, unwanted) for why in _misplaced(doc, span)]
    if not problems:
        problems += [f"no {_shown(doc, *_key(span))}" for span in wanted if _key(span) not in given]
        problems += [f"{_shown(doc, *_key(span))} must not be" for span in unwanted if _key(span) in given]
        if one["spans"] == [] and given:
            problems.append("there must be no spans")
    if not problems:
        return ""
    return f"{', '.join(problems)} in {_cut(doc.text)!r}; it gives {_list(doc, sorted(given))}"


def _key(span: dict[str, Any]) -> tuple[int, int, str]:
    return span["start"], span["end"], span["label"]


def _misplaced(doc: Any, span: dict[str, Any]) -> list[str]:
    """Say it if a span can't be predicted because it doesn't begin and end where tokens do."""
    start, end, label = _key(span)
    if doc.char_span(start, end) is not None:
        return []
    wider = doc.char_span(start, end, alignment_mode="expand")
    hint = "" if wider is None else f", as [{wider.start_char}, {wider.end_char}] {_cut(wider.text)!r} does"
    shown = f"[{start}, {end}] {label} {_cut(doc.text[start:end])!r}"
    return [f"{shown} does not begin and end with tokens{hint}"]


def _list(doc: Any, spans: Sequence[tuple[int, int, str]]) -> str:
    if not spans:
        return "none"
    more = f" and {len(spans) - _SPANS_SHOWN} more" if len(spans) > _SPANS_SHOWN else ""
    return ", ".join(_shown(doc, *span) for span in spans[:_SPANS_SHOWN]) + more


def _shown(doc: Any, start: int, end: int, label: str) -> str:
    return f"[{start}, {end}] {label} {_cut(doc.text[start:end])!r}"


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 1]}…"
