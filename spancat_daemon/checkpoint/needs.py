"""What a span categorizer needs of its pipeline to predict exactly as it does there.

Only what is known for certain is left out. Whatever could make the predictions differ without an error, and
be it only because nobody here knows it, is refused: the whole pipeline can always be deployed instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

from spancat_daemon.checkpoint.configuration import resolve
from spancat_daemon.checkpoint.layout import FACTORIES
from spancat_daemon.checkpoint.reduce import USE_COMPONENT, USE_PIPELINE, spans_key_of
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spancat_daemon.checkpoint.layout import Component, Layout, SpanCategorizer

# Suggesters that look at nothing but how long the text is.
_SUGGESTERS: Final = frozenset({"spacy.ngram_suggester.v1", "spacy.ngram_range_suggester.v1"})
_PRESET_SUGGESTER: Final = "spacy.preset_spans_suggester.v1"

# Packages whose architectures read attributes only where an `attrs` or `feature` says which.
_ARCHITECTURES: Final = ("spacy.", "spacy-legacy.", "spacy-transformers.", "spacy-curated-transformers.")

# Attributes that tokenizer and vocab give (spacy/attrs.pyx); all others are set by pipes.
# fmt: off
_LEXICAL: Final = frozenset((
    "ORTH", "TEXT", "LOWER", "NORM", "SHAPE", "PREFIX", "SUFFIX", "LENGTH", "LANG", "SPACY",
    "CLUSTER", "PROB", "ID", "IS_ALPHA", "IS_ASCII", "IS_DIGIT", "IS_LOWER", "IS_PUNCT", "IS_SPACE",
    "IS_TITLE", "IS_UPPER", "IS_STOP", "IS_OOV", "IS_BRACKET", "IS_QUOTE", "IS_LEFT_PUNCT",
    "IS_RIGHT_PUNCT", "IS_CURRENCY", "LIKE_URL", "LIKE_NUM", "LIKE_EMAIL",
))
# fmt: on

# spaCy's factories that change neither tokens nor what the above read. What they do write is looked after:
# doc.tensor by tok2vec, doc.spans by those with a spans_key. Not among them: merge_* and token_splitter
# (tokens), doc_cleaner (doc.tensor), and everything unknown; attribute_ruler is looked into.
_HARMLESS: Final = FACTORIES | {
    "beam_ner",
    "beam_parser",
    "curated_transformer",
    "entity_linker",
    "entity_ruler",
    "future_entity_ruler",
    "lemmatizer",
    "morphologizer",
    "ner",
    "parser",
    "senter",
    "sentencizer",
    "span_finder",
    "span_ruler",
    "tagger",
    "textcat",
    "textcat_multilabel",
    "tok2vec",
    "trainable_lemmatizer",
    "transformer",
}
_RULER: Final = "attribute_ruler"
_LISTENER: Final = "spacy.Tok2VecListener."
_DEEPEST: Final = 16


def needed_pipes(layout: Layout, component: SpanCategorizer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the pipes without which the component would not predict as it does.

    Returns:
        Their names, itself included, in the order of the pipeline; and the attribute rulers among the others
        that are harmless only if they don't set NORM (which is in a file, not in the configuration).

    Raises:
        Rejected: it can't be told, or it needs something that is more than a few pipes.
    """
    needs = _Needs(layout)
    needs.add(component)
    kept = tuple(name for name in layout.pipeline if name in needs.names)
    last = layout.pipeline.index(kept[-1])
    rulers = []
    for pipe in needs.running(layout.pipeline[:last]):
        if pipe.name in kept:
            continue
        if pipe.factory == _RULER:
            rulers.append(pipe.name)
        elif pipe.factory not in _HARMLESS:
            _refuse(
                component,
                f"{pipe.name!r} (factory {pipe.factory!r}) runs before it and may change what it reads",
            )
    return kept, tuple(rulers)


def needed_copy(layout: Layout, component: SpanCategorizer, kept: tuple[str, ...]) -> tuple[str, str] | None:
    """Find what a component must have a copy of to do without the other pipes that it needs.

    Args:
        layout: the pipeline's.
        component: which.
        kept: what `needed_pipes` found.

    Returns:
        The pipe whose model is to be copied, and where to: the path of the listener within the component's
        configuration, such as ``model.tok2vec``. None if it needs no other pipe.

    Raises:
        Rejected: a copy of one pipe's model is not all that it needs.
    """
    others = [layout.components[name] for name in kept if name != component.name]
    if not others:
        return None
    if len(others) > 1:
        names = ", ".join(repr(pipe.name) for pipe in others)
        _refuse_alone(component, f"it needs {names}, and can have a copy of one of them only")
    (upstream,) = others
    listeners = [item for item in _architectures(layout, component.sections) if "Listener" in item[1]]
    if upstream.factory != "tok2vec" or component.listens_to != (upstream.name,):
        what = f"{upstream.name!r} (factory {upstream.factory!r})"
        _refuse_alone(component, f"it needs {what}, and can have a copy of a tok2vec only")
    if len(listeners) != 1 or not listeners[0][1].startswith(_LISTENER):
        _refuse_alone(component, f"how it listens to {upstream.name!r} is not known")
    return upstream.name, listeners[0][0]


class _Needs:
    """The pipes found so far."""

    def __init__(self, layout: Layout) -> None:
        self.names: set[str] = set()
        self._layout = layout
        disabled = layout.config["nlp"].get("disabled", [])
        self._disabled = frozenset(disabled if isinstance(disabled, list) else [])

    def add(self, pipe: Component) -> None:
        """Add a pipe and, over and over, what it needs."""
        if pipe.name in self.names:
            return
        self.names.add(pipe.name)
        before = self._layout.pipeline[: self._layout.pipeline.index(pipe.name)]
        self._check_model(pipe)
        if pipe.factory in FACTORIES:
            self._add_suggesting(pipe, before)
        for upstream in pipe.listens_to:
            if upstream not in before:
                _refuse(pipe, f"it listens to {upstream!r}, which is not a pipe before it")
            self.add(self._layout.components[upstream])
        if pipe.listens_to:
            # Whoever it listens to by name: what a listener reads is doc.tensor, as the last one left it.
            writers = [other for other in self.running(before) if other.factory == "tok2vec"]
            for writer in writers[-1:]:
                self.add(writer)

    def running(self, names: tuple[str, ...]) -> list[Component]:
        """Return those of the pipes that run, which the disabled ones don't."""
        return [self._layout.components[name] for name in names if name not in self._disabled]

    def _add_suggesting(self, pipe: Component, before: tuple[str, ...]) -> None:
        suggester = resolve(self._layout.config, pipe.sections.get("suggester"))
        name = resolve(self._layout.config, suggester.get("@misc")) if isinstance(suggester, dict) else None
        if name in _SUGGESTERS:
            return
        if name != _PRESET_SUGGESTER:
            _refuse(pipe, f"what its suggester {name!r} needs is not known")
        key = resolve(self._layout.config, suggester.get("spans_key"))
        writers = [other for other in self.running(before) if spans_key_of(other) == key]
        if not writers:
            _refuse(
                pipe, f"its suggester takes doc.spans[{key!r}], and it is not known which pipe writes that"
            )
        for writer in writers:
            if writer.factory not in FACTORIES | {"span_finder"}:
                _refuse(pipe, f"its suggester takes what {writer.name!r} (factory {writer.factory!r}) finds")
            self.add(writer)

    def _check_model(self, pipe: Component) -> None:
        for key, value in self._values(pipe.sections):
            if key == "@architectures" and not str(value).startswith(_ARCHITECTURES):
                _refuse(pipe, f"what its architecture {value!r} reads is not known")
            if key in {"attrs", "feature"}:
                attributes = value if isinstance(value, list) else [value]
                unknown = [attribute for attribute in attributes if str(attribute).upper() not in _LEXICAL]
                if unknown:
                    _refuse(pipe, f"its features {unknown} are set by other pipes")

    def _values(self, section: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
        """Yield every key with its value in a section and those below it, references followed."""
        for key, raw in section.items():
            value = resolve(self._layout.config, raw)
            yield key, value
            if isinstance(value, dict) and depth < _DEEPEST:
                yield from self._values(value, depth + 1)


def _architectures(
    layout: Layout, section: Mapping[str, Any], path: str = "", depth: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield the path of each section with an architecture, and its name, references followed."""
    for key, raw in section.items():
        value = resolve(layout.config, raw)
        if key == "@architectures":
            yield path, str(value)
        elif isinstance(value, dict) and depth < _DEEPEST:
            yield from _architectures(layout, value, f"{path}.{key}" if path else key, depth + 1)


def _refuse_alone(pipe: Component, why: str) -> NoReturn:
    raise Rejected(f"{pipe.name!r} can't be made standalone: {why}", hint=USE_COMPONENT)


def _refuse(pipe: Component, why: str) -> NoReturn:
    raise Rejected(
        f"{pipe.name!r} can't be deployed without the rest of its pipeline: {why}", hint=USE_PIPELINE
    )
