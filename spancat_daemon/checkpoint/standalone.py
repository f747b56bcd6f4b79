"""What makes a span categorizer that listens stand alone: all but its weights, which only spaCy can make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.checkpoint.layout import read_layout
from spancat_daemon.checkpoint.needs import needed_copy
from spancat_daemon.checkpoint.reduce import reduce_meta, reduce_metrics, standalone_config
from spancat_daemon.checkpoint.wholeness import proof_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spancat_daemon.checkpoint.layout import SpanCategorizer
    from spancat_daemon.checkpoint.settle import Settled
    from spancat_daemon.checkpoint.wholeness import ProofFactory

_SLACK_BYTES: Final = 1 << 20  # for the names and numbers of layers, which are others in a larger model


@dataclass(frozen=True, slots=True)
class Derivation:
    """A copy of a pipe's model, to be put in the place of a span categorizer's listener.

    Attributes:
        upstream: the pipe that it listens to.
        listener: path of the listener in its configuration, such as ``model.tok2vec``.
        config: config.cfg of what comes of it.
        meta: meta.json of that.
        metrics: the scores in there.
        most_bytes: the most that its model can have.
        proof: what its model must prove.
    """

    upstream: str
    listener: str
    config: bytes = field(repr=False)
    meta: bytes = field(repr=False)
    metrics: Mapping[str, Any]
    most_bytes: int
    proof: ProofFactory


def derivation_for(settled: Settled, component: SpanCategorizer, kept: tuple[str, ...]) -> Derivation | None:
    """Find what makes a component do without the other pipes it needs; None if it needs none.

    Args:
        settled: the checkpoint; config.cfg, meta.json and the component's cfg are read.
        component: which.
        kept: it, and the pipes it needs.

    Raises:
        Rejected: that is impossible.
        Moved: a file changed since the checkpoint was examined.
    """
    layout, files = settled.layout, settled.tree.by_path
    copied = needed_copy(layout, component, kept)
    if copied is None:
        return None
    upstream, listener = copied
    name, alone = component.name, (component.name,)
    read = settled.source.read_small
    config = standalone_config(read(files["config.cfg"]), layout, name, upstream, listener)
    meta = reduce_meta(read(files["meta.json"]), layout, alone)
    result = read_layout(config, meta, {name: read(files[f"{name}/cfg"])})
    models = (files[f"{pipe}/model"].stamp.size for pipe in (name, upstream))
    return Derivation(
        upstream=upstream,
        listener=listener,
        config=config,
        meta=meta,
        metrics=reduce_metrics(layout.metrics, layout, alone),
        most_bytes=sum(models) + _SLACK_BYTES,
        proof=proof_for(f"{name}/model", result),
    )
