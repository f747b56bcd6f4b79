"""config.cfg and meta.json of a pipeline with fewer pipes: pure functions from bytes to bytes.

Values that stay are copied as text, never decoded and written anew, so that what spaCy reads of them can't
differ. The same input always gives the same bytes: they are part of a release's identity.
"""

from __future__ import annotations

import configparser
import json
import re
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from spancat_daemon.checkpoint.layout import Component, Layout

USE_PIPELINE: Final = 'set contents = "pipeline" to deploy all of it'
USE_COMPONENT: Final = 'set contents = "component" to deploy it with the pipes that it needs'

_Sections = dict[str, dict[str, str]]

# Lists of pipe names, by section and key.
_LISTS: Final = (
    ("nlp", "pipeline"),
    ("nlp", "disabled"),
    ("nlp", "enabled"),
    ("training", "frozen_components"),
    ("training", "annotating_components"),
)
_BY_NAME: Final = ("components", "initialize.components")  # sections with one subsection a pipe
_SCORE_WEIGHTS: Final = "training.score_weights"

# ${components.tagger.model:width}, ${initialize.components.tagger}: spaCy takes ":" for ".".
_REFERENCE: Final = re.compile(r"\$\{(?:initialize[.:])?components[.:]([^.:}]+)")

# How each factory's scores begin (spaCy 3.8, Scorer and the factories' default_score_weights).
_SCORES: Final[Mapping[str, tuple[str, ...]]] = {
    "tagger": ("tag_acc",),
    "morphologizer": ("pos_acc", "morph_"),
    "parser": ("dep_", "sents_"),
    "beam_parser": ("dep_", "sents_"),
    "senter": ("sents_",),
    "sentencizer": ("sents_",),
    "ner": ("ents_",),
    "beam_ner": ("ents_",),
    "entity_ruler": ("ents_",),
    "future_entity_ruler": ("ents_",),
    "textcat": ("cats_",),
    "textcat_multilabel": ("cats_",),
    "lemmatizer": ("lemma_acc",),
    "trainable_lemmatizer": ("lemma_acc",),
    "attribute_ruler": ("tag_acc", "pos_acc", "morph_", "lemma_acc"),
    "entity_linker": ("nel_",),
}
_SPAN_SCORE: Final = re.compile(r"spans_(.+)_(?:p|r|f|per_type)")


def reduce_config(data: bytes, layout: Layout, kept: Collection[str]) -> bytes:
    """Take the pipes that are not in ``kept`` out of config.cfg.

    Raises:
        Rejected: something that stays refers to a pipe that goes.
    """
    return _reduced(_parse(data.decode("utf-8")), layout, kept)


def standalone_config(data: bytes, layout: Layout, component: str, upstream: str, listener: str) -> bytes:
    """Write config.cfg of a component alone, with a copy of another pipe's model in place of its listener.

    Args:
        data: config.cfg.
        layout: the pipeline's.
        component: the only pipe of the result.
        upstream: the pipe whose model is copied.
        listener: path of the listener in the component's configuration, such as ``model.tok2vec``.

    Raises:
        Rejected: the two are not sections of it, or something refers to a pipe that goes.
    """
    sections = _parse(data.decode("utf-8"))
    model, place = f"components.{upstream}.model", f"components.{component}.{listener}"
    for section in (model, place):
        if section not in sections:
            raise Rejected(f"has no section [{section}]", where="config.cfg", hint=USE_COMPONENT)
    return _reduced(_grafted(sections, model, place), layout, (component,))


def reduce_meta(data: bytes, layout: Layout, kept: Collection[str]) -> bytes:
    """Take the pipes that are not in ``kept`` out of meta.json, with their labels, losses and scores."""
    meta: dict[str, Any] = json.loads(data)
    for key in ("pipeline", "components", "disabled"):
        if isinstance(meta.get(key), list):
            meta[key] = [name for name in meta[key] if name in kept]
    for key in ("labels", "_sourced_vectors_hashes"):
        if isinstance(meta.get(key), dict):
            meta[key] = {name: value for name, value in meta[key].items() if name in kept}
    if isinstance(meta.get("performance"), dict):
        meta["performance"] = reduce_metrics(meta["performance"], layout, kept)
    # Escaped, because JSON can hold halves of surrogate pairs, which UTF-8 can't.
    return (json.dumps(meta, indent=2) + "\n").encode("ascii")


def reduce_metrics(metrics: Mapping[str, Any], layout: Layout, kept: Collection[str]) -> dict[str, Any]:
    """Leave out scores and losses that only pipes not in ``kept`` can have; names nobody knows stay."""
    foreign = _foreign_scores(layout, kept)
    return {name: value for name, value in metrics.items() if not foreign(name)}


def _reduced(before: _Sections, layout: Layout, kept: Collection[str]) -> bytes:
    dropped = (set(layout.pipeline) | _named(before)) - set(kept)
    foreign = _foreign_scores(layout, kept)
    sections = {
        section: {
            key: _without(section, key, text, dropped)
            for key, text in values.items()
            if not (section == _SCORE_WEIGHTS and foreign(key))
        }
        for section, values in before.items()
        if not _belongs_to(section, dropped)
    }
    _refuse_references(sections, dropped)
    text = "".join(_section_text(name, values) for name, values in sections.items())
    if _parse(text) != sections:
        raise Rejected(
            "can't be written without the other pipes' sections and read back the same",
            where="config.cfg",
            hint=USE_PIPELINE,
        )
    return text.encode()


def _grafted(sections: _Sections, model: str, place: str) -> _Sections:
    """Put a copy of one section, with those below it, in the place of another; references follow it."""
    copies = {
        place + name.removeprefix(model): values
        for name, values in sections.items()
        if _is_within(name, model)
    }
    found: _Sections = {}
    for name, values in sections.items():
        if name == place:
            found.update(copies)
        elif not _is_within(name, place):
            found[name] = values
    old = re.compile(r"\$\{" + "[.:]".join(map(re.escape, model.split("."))) + r"(?=[.:}])")
    return {
        name: {key: old.sub(lambda _: "${" + place, text) for key, text in values.items()}
        for name, values in found.items()
    }


def _is_within(section: str, outer: str) -> bool:
    return section == outer or section.startswith(f"{outer}.")


def _parse(text: str) -> _Sections:
    parser = configparser.RawConfigParser(default_section="")  # [DEFAULT] has no meaning to spaCy
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    try:
        parser.read_string(text)
    except configparser.Error as error:
        problem = error.message.splitlines()[0]
        raise Rejected(f"is not a spaCy configuration: {problem}", where="config.cfg") from None
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _named(sections: Iterable[str]) -> set[str]:
    """Names with a section of their own; the pipeline needn't run them all."""
    prefixes = tuple(f"{parent}." for parent in _BY_NAME)
    return {
        next(name.removeprefix(p) for p in prefixes if name.startswith(p)).split(".")[0]
        for name in sections
        if name.startswith(prefixes)
    }


def _belongs_to(section: str, names: Collection[str]) -> bool:
    for parent in _BY_NAME:
        if section.startswith(f"{parent}."):
            return section.removeprefix(f"{parent}.").split(".")[0] in names
    return False


def _without(section: str, key: str, text: str, dropped: Collection[str]) -> str:
    """Return the text of a value without the dropped names, exactly as it was where it holds none."""
    if (section, key) in _LISTS:
        try:
            names = json.loads(text)
        except ValueError:
            return text  # a reference: if it leads to a dropped pipe, that is found below
        if isinstance(names, list) and any(name in dropped for name in names):
            return json.dumps([name for name in names if name not in dropped], separators=(",", ":"))
    if section in _BY_NAME and key in dropped:
        return "null"
    return text


def _refuse_references(sections: Mapping[str, Mapping[str, str]], dropped: Collection[str]) -> None:
    for section, values in sections.items():
        for key, text in values.items():
            for name in _REFERENCE.findall(text):
                if name in dropped:
                    raise Rejected(
                        f"[{section}] {key} refers to [components.{name}], which is not deployed",
                        where="config.cfg",
                        hint=f"write its value there, or {USE_PIPELINE}",
                    )


def _section_text(name: str, values: Mapping[str, str]) -> str:
    lines = [f"[{name}]\n"]
    # As configparser writes, so as spaCy does: lines of one value are told by their indentation.
    lines += [f"{key} = {text}".rstrip(" ").replace("\n", "\n\t") + "\n" for key, text in values.items()]
    return "".join([*lines, "\n"])


def _foreign_scores(layout: Layout, kept: Collection[str]) -> Callable[[str], bool]:
    """Return whether a score is of pipes that are dropped, and of those only."""
    ours = [pipe for name, pipe in layout.components.items() if name in kept]
    theirs = [pipe for name, pipe in layout.components.items() if name not in kept]
    return lambda score: _is_of(score, theirs) and not _is_of(score, ours)


def _is_of(score: str, pipes: Collection[Component]) -> bool:
    span_score = _SPAN_SCORE.fullmatch(score)
    return any(
        score == f"{pipe.name}_loss"
        or score.startswith(_SCORES.get(pipe.factory, ("\0",)))
        or (span_score is not None and span_score[1] == spans_key_of(pipe))
        for pipe in pipes
    )


def spans_key_of(pipe: Component) -> str | None:
    """Return where a pipe writes in ``doc.spans``; None if it doesn't, or if that is not known."""
    key = getattr(pipe, "spans_key", None)  # a SpanCategorizer knows better than its section
    if key is None and pipe.factory in _DEFAULT_SPANS_KEYS:
        key = pipe.sections.get("spans_key", _DEFAULT_SPANS_KEYS[pipe.factory])
    return key if isinstance(key, str) else None


# The other factories that write spans (spaCy 3.8).
_DEFAULT_SPANS_KEYS: Final = {"span_finder": "sc", "span_ruler": "ruler"}
