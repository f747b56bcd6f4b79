"""What config.cfg, meta.json and the components' cfg say about a checkpoint; pure, no file is opened here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Component:
    """One pipe of the pipeline.

    Attributes:
        name: its name, also its directory in the checkpoint.
        factory: what spaCy makes it with.
        has_model: whether it has a ``[components.<name>.model]``, so that ``<name>/model`` must exist.
        listens_to: the pipes that its listeners take their vectors from, ``*`` resolved to names.
        sections: its part of config.cfg as nested mappings; JSON values decoded, ``${…}`` kept as text.
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
        config: all of config.cfg as nested mappings; JSON values decoded, ``${…}`` kept as text.
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
        Rejected: one of them is not what spaCy writes, or they contradict each other; names the file.
    """
    raise NotImplementedError


def expected_files(layout: Layout) -> tuple[str, ...]:
    """The files that must exist, in the order in which spaCy writes them."""
    raise NotImplementedError
