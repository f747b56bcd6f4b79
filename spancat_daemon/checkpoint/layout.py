"""What config.cfg, meta.json and the components' cfg say about a checkpoint; pure, no file is opened here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import orjson

from spancat_daemon import frugal_json
from spancat_daemon.checkpoint.configuration import parse_config, resolve
from spancat_daemon.checkpoint.tree import shown
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FACTORIES = frozenset({"spancat", "spancat_singlelabel"})
"""spaCy's span categorizers: the second one exists since 3.5.1."""

SPACY_VECTORS = "spacy.Vectors.v1"
SPACY_TOKENIZER = "spacy.Tokenizer.v1"
SPACY_SPAN_CATEGORIZER = "spacy.SpanCategorizer.v1"

PARSERS = frozenset({"beam_ner", "beam_parser", "ner", "parser"})
"""spaCy's transition-based pipes: they also write their ``moves``."""

TRAINABLE = (
    FACTORIES
    | PARSERS
    | {
        "entity_linker",
        "morphologizer",
        "senter",
        "span_finder",
        "tagger",
        "textcat",
        "textcat_multilabel",
        "tok2vec",
        "trainable_lemmatizer",
    }
)
"""spaCy's own pipes with a model, always written with a cfg."""

_KNOWN_OTHERS = {
    "merge_entities": (),
    "merge_noun_chunks": (),
    "merge_subtokens": (),
    "sentencizer": (".json",),
}
"""What spaCy's pipes without a model write, after their names, where it is the same since 3.0."""

# Which pipes a listener with upstream = "*" finds, by the package that registered it.
_UPSTREAM_FACTORIES = {
    "spacy": ("tok2vec",),
    "spacy-transformers": ("transformer",),
    "spacy-curated-transformers": ("curated_transformer",),
}

# Names of pipes are directory names; these are taken by what Language.to_disk writes itself.
_TAKEN_NAMES = frozenset({"", ".", "..", "config.cfg", "meta.json", "tokenizer", "vocab"})


@dataclass(frozen=True)
class Component:
    """One pipe of the pipeline.

    Attributes:
        name: its name, also its directory in the checkpoint.
        factory: what spaCy makes it with.
        has_model: whether it has a ``[components.<name>.model]``, so that ``<name>/model`` must exist.
        listens_to: the pipes that its listeners take their vectors from, ``*`` resolved to names (and left
            as ``*`` only if no earlier pipe can be meant).
        sections: its part of config.cfg as nested mappings; JSON values decoded, references (``${…}``) and
            escapes (``$$``) as they are written.
    """

    name: str
    factory: str
    has_model: bool
    listens_to: tuple[str, ...]
    sections: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class SpanCategorizer(Component):
    """A component whose factory is ``spancat`` or ``spancat_singlelabel``.

    Attributes:
        labels: in the order of the model's outputs.
        spans_key: where it writes in ``doc.spans``; its cfg overrides config.cfg.
        threshold: likewise; None where the factory uses none.
        width: what the model's output width must be; None where its architecture is not spaCy's own, so that
            nothing certain is known about it.
    """

    labels: tuple[str, ...]
    spans_key: str
    threshold: float | None
    width: int | None


@dataclass(frozen=True)
class Layout:
    """A pipeline as its configuration describes it.

    Attributes:
        lang: language code.
        pipeline: pipe names in order.
        components: by name; those in ``span_categorizers`` are `SpanCategorizer`.
        spacy_version: the range in meta.json (kept by spaCy when a pipeline is saved again).
        metrics: meta.json's ``performance``.
        config: all of config.cfg as nested mappings, values as in `Component.sections`.
        meta: all of meta.json.
    """

    lang: str
    pipeline: tuple[str, ...]
    components: Mapping[str, Component]
    spacy_version: str
    metrics: Mapping[str, Any]
    config: Mapping[str, Any] = field(repr=False)
    meta: Mapping[str, Any] = field(repr=False)

    @property
    def span_categorizers(self) -> tuple[SpanCategorizer, ...]:
        """The span categorizers in the order of the pipeline; may be empty."""
        found = (self.components[name] for name in self.pipeline)
        return tuple(component for component in found if isinstance(component, SpanCategorizer))


def read_layout(config_cfg: bytes, meta_json: bytes, cfgs: Mapping[str, bytes]) -> Layout:
    """Read what the pipeline consists of.

    Args:
        config_cfg: bytes of config.cfg.
        meta_json: bytes of meta.json.
        cfgs: bytes of ``<pipe>/cfg`` by pipe name, at least of the span categorizers.

    Raises:
        Rejected: one of them is not what spaCy writes, or they contradict each other. ``where`` is the file
            relative to the checkpoint.
    """
    return with_span_categorizers(read_outline(config_cfg, meta_json), cfgs)


def read_outline(config_cfg: bytes, meta_json: bytes) -> Layout:
    """Read a layout whose span categorizers are plain components yet: enough for `expected_files`.

    Raises:
        Rejected: as `read_layout`.
    """
    config = parse_config(config_cfg)
    meta = _json_object(meta_json, "meta.json")
    lang, pipeline, components = _pipeline(config)
    metrics, spacy_version = meta.get("performance"), meta.get("spacy_version")
    return Layout(
        lang=lang,
        pipeline=pipeline,
        components=components,
        spacy_version=spacy_version if isinstance(spacy_version, str) else "",
        metrics=metrics if isinstance(metrics, dict) else {},
        config=config,
        meta=meta,
    )


def with_span_categorizers(outline: Layout, cfgs: Mapping[str, bytes]) -> Layout:
    """Complete an outline with what the span categorizers' cfg say.

    Raises:
        Rejected: as `read_layout`.
    """
    components = dict(outline.components)
    for place, name in enumerate(outline.pipeline):
        component = components[name]
        if component.factory not in FACTORIES:
            continue
        components[name] = _span_categorizer(component, outline.config, outline.meta, cfgs)
        # spaCy loads a pipeline whose listener has no upstream without a word, and it predicts nothing.
        for upstream in component.listens_to:
            if upstream not in outline.pipeline[:place]:
                _bad_config(f"{name} listens to {shown(upstream)[:80]!r}, which is not a pipe before it")
    return replace(outline, components=components)


def expected_files(layout: Layout) -> tuple[str, ...]:
    """The files that must exist, in the order in which spaCy writes them (`Language.to_disk`).

    Tokenizers and vectors that are not spaCy's own write what they like and are not in it.
    """
    files = []
    if _function(layout.config, "nlp", "tokenizer", "@tokenizers") in {None, SPACY_TOKENIZER}:
        files.append("tokenizer")
    files += ["meta.json", "config.cfg"]
    for name in layout.pipeline:
        component = layout.components[name]
        model = (f"{name}/model",) if component.has_model else ()
        if component.factory in PARSERS:
            files += [*model, f"{name}/moves", f"{name}/cfg"]
        elif component.factory in TRAINABLE:
            files += [f"{name}/cfg", *model]
        else:
            files += [*model, *(name + ending for ending in _KNOWN_OTHERS.get(component.factory, ()))]
    files.append("vocab/strings.json")
    if spacy_vectors(layout):
        files += ["vocab/vectors", "vocab/key2row", "vocab/vectors.cfg"]
    files.append("vocab/lookups.bin")
    return tuple(files)


def open_folders(layout: Layout) -> tuple[str, ...]:
    """The directories in which files may lie that `expected_files` does not know; "": the checkpoint's own.

    Rulers, attribute rulers, lemmatizers, entity linkers, other packages' pipes and tokenizers, and whatever
    else a user registered write what they like, a directory or a file of their name, or nothing.
    """
    known = TRAINABLE - {"entity_linker"} | _KNOWN_OTHERS.keys()
    found = [name for name in layout.pipeline if layout.components[name].factory not in known]
    if _function(layout.config, "nlp", "tokenizer", "@tokenizers") not in {None, SPACY_TOKENIZER}:
        found.append("tokenizer")
    if not spacy_vectors(layout):
        found.append("vocab")
    return ("", *found) if found else ()


def spacy_vectors(layout: Layout) -> bool:
    """Whether ``vocab/vectors`` is spaCy's own table (always, before 3.4 made them exchangeable)."""
    return _function(layout.config, "nlp", "vectors", "@vectors") in {None, SPACY_VECTORS}


def _pipeline(config: dict[str, Any]) -> tuple[str, tuple[str, ...], dict[str, Component]]:
    nlp = config["nlp"]
    lang = resolve(config, nlp.get("lang"))
    if not isinstance(lang, str) or not lang:
        _bad_config("[nlp] has no lang")
    names = resolve(config, nlp.get("pipeline"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _bad_config("[nlp] pipeline is not a list of names")
    if len(set(names)) != len(names):
        _bad_config("[nlp] pipeline names a component twice")
    sections = config.get("components", {})
    components: dict[str, Component] = {}
    for name in names:
        if name in _TAKEN_NAMES or "/" in name or not name.isprintable() or len(name.encode()) > 255:
            _bad_config(f"[nlp] pipeline names {shown(name)[:80]!r}, which can't be a component's directory")
        section = sections.get(name)
        if not isinstance(section, dict):
            _bad_config(f"has no [components.{name}], which the pipeline names")
        factory = resolve(config, section.get("factory"))
        if not isinstance(factory, str) or not factory:
            _bad_config(f"[components.{name}] has no factory")
        components[name] = Component(
            name=name,
            factory=factory,
            has_model=isinstance(resolve(config, section.get("model")), dict),
            listens_to=_upstreams(config, section, components),
            sections=section,
        )
    return lang, tuple(names), components


def _upstreams(
    config: dict[str, Any], section: dict[str, Any], earlier: Mapping[str, Component]
) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for package, upstream in _listeners(config, section):
        if upstream != "*":
            found[upstream] = None
            continue
        factories = _UPSTREAM_FACTORIES.get(package, ())
        matching = [pipe.name for pipe in earlier.values() if pipe.factory in factories]
        # A listener or an upstream of another package: any earlier pipe with a model may be the one.
        matching = matching or [pipe.name for pipe in earlier.values() if pipe.has_model]
        found.update(dict.fromkeys(matching or ["*"]))
    return tuple(found)


def _listeners(config: dict[str, Any], section: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The package and the upstream of each listener in a component's configuration."""
    pending: list[Any] = [section]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in seen:  # section references can form a ring
            continue
        seen.add(id(node))
        for value in node.values() if isinstance(node, dict) else node:
            resolved = resolve(config, value)
            if isinstance(resolved, dict | list):
                pending.append(resolved)
        if isinstance(node, dict):
            architecture = resolve(config, node.get("@architectures"))
            if isinstance(architecture, str) and "Listener" in architecture:
                upstream = resolve(config, node.get("upstream", node.get("upstream_name", "*")))
                yield architecture.partition(".")[0], upstream if isinstance(upstream, str) else "*"


def _span_categorizer(
    component: Component, config: Mapping[str, Any], meta: Mapping[str, Any], cfgs: Mapping[str, bytes]
) -> SpanCategorizer:
    name, where = component.name, f"{component.name}/cfg"
    if name not in cfgs:
        raise Rejected("is missing", where=where)
    # spaCy applies cfg over config.cfg when it loads, so cfg is what counts.
    cfg = {key: resolve(config, value) for key, value in component.sections.items()}
    cfg |= _json_object(cfgs[name], where)
    labels = cfg.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Rejected("holds no list of labels", where=where)
    if not labels:
        raise Rejected(
            "the span categorizer has no labels, it would fail at its first text",
            where=where,
            hint="initialize it with labels",
        )
    if len(set(labels)) != len(labels):
        raise Rejected("names a label twice", where=where)
    meta_labels = meta.get("labels")
    if isinstance(meta_labels, dict) and meta_labels.get(name, labels) != labels:
        raise Rejected(
            f"its labels are not those that meta.json gives for {name}",
            where=where,
            hint="the files are of different generations: save the pipeline again",
        )
    spans_key = cfg.get("spans_key")
    if not isinstance(spans_key, str):
        raise Rejected("spans_key is not a string", where=where)
    threshold = cfg.get("threshold")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise Rejected("threshold is not a number", where=where)
    return SpanCategorizer(
        name=name,
        factory=component.factory,
        has_model=component.has_model,
        listens_to=component.listens_to,
        sections=component.sections,
        labels=tuple(labels),
        spans_key=spans_key,
        threshold=None if threshold is None else float(threshold),
        width=_width(component, config, len(labels)),
    )


def _width(component: Component, config: Mapping[str, Any], labels: int) -> int | None:
    model = resolve(config, component.sections.get("model"))
    if not isinstance(model, dict) or resolve(config, model.get("@architectures")) != SPACY_SPAN_CATEGORIZER:
        return None
    # spancat_singlelabel learns one more class, "no label"; its factory passes add_negative_label=True.
    negative = resolve(config, component.sections.get("add_negative_label"))
    return labels + (component.factory == "spancat_singlelabel" if negative is None else bool(negative))


def _function(config: Mapping[str, Any], *path: str) -> Any:
    node: Any = config
    for part in path:
        node = resolve(config, node.get(part)) if isinstance(node, dict) else None
    return node


def _json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = frugal_json.loads(data)
    except orjson.JSONDecodeError as error:
        raise Rejected(f"is not whole JSON: {error.msg}", where=where) from None
    except ValueError as error:
        raise Rejected(f"holds {error}", where=where) from None
    if not isinstance(value, dict):
        raise Rejected("is not a JSON object", where=where)
    return value


def _bad_config(problem: str) -> NoReturn:
    raise Rejected(problem, where="config.cfg")
