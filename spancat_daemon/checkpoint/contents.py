"""Which files of a settled checkpoint make up a release, and what the release is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import msgpack  # type: ignore[import-untyped]  # it has no types, nor stubs

from spancat_daemon.checkpoint.needs import needed_pipes
from spancat_daemon.checkpoint.reduce import USE_PIPELINE, reduce_config, reduce_meta, reduce_metrics
from spancat_daemon.checkpoint.standalone import Derivation, derivation_for
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from spancat_daemon.checkpoint.layout import Layout, SpanCategorizer
    from spancat_daemon.checkpoint.settle import Settled
    from spancat_daemon.checkpoint.tree import SourceFile
    from spancat_daemon.checkpoint.wholeness import ProofFactory

RESERVED: Final = frozenset({"model.bin", "release.json"})
"""What a release adds to a pipeline; never taken from a checkpoint (which may be another release)."""

Contents = Literal["pipeline", "component", "standalone"]

# spaCy's trainer copies this one right after scoring it (spacy/training/loop.py, DIR_MODEL_BEST); model-last
# is saved once more at the end of a training, with the scores of an earlier step, and other folders by
# whoever knows when.
_SCORED: Final = "model-best"


@dataclass(frozen=True, slots=True)
class Planned:
    """One file of the release to be.

    Attributes:
        path: relative, with ``/``.
        source: the file of the checkpoint to copy; None if `data` is to be written.
        data: what to write instead of copying.
        proof: what the copied bytes must prove; None for written ones.
    """

    path: str
    source: SourceFile | None
    data: bytes | None
    proof: ProofFactory | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a release will hold, and what its manifest will say of it.

    Attributes:
        files: sorted by path.
        component: the span categorizer that the release is about.
        factory: its factory.
        labels: in the order of its outputs.
        spans_key: where in ``doc.spans`` it writes.
        threshold: from which score on; None where its factory has none.
        lang: language code.
        pipeline: the release's pipes, in order.
        spacy_version: range of versions that meta.json names.
        metrics: the scores in meta.json that concern the release's pipes.
        metrics_may_be_stale: whether they can be of an earlier state of the training than the weights.
        model_file: the file that ``model.bin`` becomes a hard link of.
        derivation: what is to be made of the files before they are a release; None: nothing, they are one.
    """

    files: tuple[Planned, ...]
    component: str
    factory: str
    labels: tuple[str, ...]
    spans_key: str
    threshold: float | None
    lang: str
    pipeline: tuple[str, ...]
    spacy_version: str
    metrics: Mapping[str, Any]
    metrics_may_be_stale: bool
    model_file: str
    derivation: Derivation | None = None


def plan(settled: Settled, *, contents: Contents, component: str = "auto") -> Plan:
    """Decide what goes into a release of this checkpoint.

    Unless all of it does it reads config.cfg, meta.json, the component's cfg and the patterns of attribute
    rulers; the result is the same for the same files.

    Args:
        settled: the checkpoint.
        contents: all of it; only the span categorizer with what it needs to predict the same; or that one
            alone, with a copy of what it listens to, if it does: then the plan is of what that is made of.
        component: the span categorizer's name; "auto": the only one.

    Raises:
        Rejected: there is no such component, or more than one, or it can't be deployed without the rest.
        Moved: a file changed since the checkpoint was examined.
    """
    chosen = _choose(settled, component)
    model_file = f"{chosen.name}/model"
    derivation = None
    if model_file not in settled.tree.by_path:
        _reject(settled, model_file, "is missing", "only a span categorizer with a model can be deployed")
    layout = settled.layout
    if contents == "pipeline":
        names, metrics = layout.pipeline, layout.metrics
        files = _copied(settled, settled.tree.files)
    else:
        with _placed(settled, "config.cfg"):
            names, rulers = needed_pipes(layout, chosen)
            _check_rulers(settled, chosen, rulers)
            files = _reduced(settled, layout, names)
            if contents == "standalone":
                derivation = derivation_for(settled, chosen, names)
        metrics = reduce_metrics(layout.metrics, layout, names)
    return Plan(
        files=tuple(sorted(files, key=lambda file: file.path)),
        component=chosen.name,
        factory=chosen.factory,
        labels=chosen.labels,
        spans_key=chosen.spans_key,
        threshold=chosen.threshold,
        lang=layout.lang,
        pipeline=names,
        spacy_version=layout.spacy_version,
        metrics=metrics,
        metrics_may_be_stale=bool(metrics) and settled.source.path.name != _SCORED,
        model_file=model_file,
        derivation=derivation,
    )


def standing_alone(plan: Plan, copies: Iterable[Planned], model: bytes) -> Plan:
    """Plan the release of a span categorizer alone.

    Args:
        plan: the one with a derivation.
        copies: its files, where they are staged.
        model: what the derivation came to.
    """
    derivation = plan.derivation
    assert derivation is not None  # noqa: S101  # whoever has a model had one derived
    written = {"config.cfg": derivation.config, "meta.json": derivation.meta, plan.model_file: model}
    files = [
        file for file in copies if file.path not in written and file.path.split("/")[0] != derivation.upstream
    ]
    files += [
        Planned(path, source=None, data=data, proof=derivation.proof if path == plan.model_file else None)
        for path, data in written.items()
    ]
    return replace(
        plan,
        files=tuple(sorted(files, key=lambda file: file.path)),
        pipeline=(plan.component,),
        metrics=derivation.metrics,
        derivation=None,
    )


def _choose(settled: Settled, name: str) -> SpanCategorizer:
    found = {component.name: component for component in settled.layout.span_categorizers}
    if not found:
        pipes = ", ".join(settled.layout.pipeline) or "nothing"
        _reject(
            settled,
            "config.cfg",
            f"has no span categorizer, only: {pipes}",
            "a pipe with the factory spancat or spancat_singlelabel is needed",
        )
    if name == "auto":
        if len(found) > 1:
            names = " or ".join(f'"{known}"' for known in found)
            _reject(settled, "config.cfg", f"has {len(found)} span categorizers", f"set component to {names}")
        return next(iter(found.values()))
    if name not in found:
        names = ", ".join(f'"{known}"' for known in found)
        _reject(settled, "config.cfg", f"has no span categorizer named {name!r}", f"set component to {names}")
    return found[name]


def _copied(settled: Settled, files: tuple[SourceFile, ...]) -> list[Planned]:
    return [
        Planned(file.path, source=file, data=None, proof=settled.proofs[file.path])
        for file in files
        if file.path in settled.proofs and file.path not in RESERVED
    ]


def _reduced(settled: Settled, layout: Layout, names: tuple[str, ...]) -> list[Planned]:
    # Tokenizer and pipes are files or directories, depending on who wrote them.
    roots = {"tokenizer", "vocab", *names}
    kept = tuple(file for file in settled.tree.files if file.path.split("/")[0] in roots)
    config = settled.source.read_small(settled.tree.by_path["config.cfg"])
    meta = settled.source.read_small(settled.tree.by_path["meta.json"])
    return [
        *_copied(settled, kept),
        Planned("config.cfg", source=None, data=reduce_config(config, layout, names), proof=None),
        Planned("meta.json", source=None, data=reduce_meta(meta, layout, names), proof=None),
    ]


def _check_rulers(settled: Settled, component: SpanCategorizer, rulers: tuple[str, ...]) -> None:
    """Refuse attribute rulers that set NORM, the only lexical attribute they can (Token.set_struct_attr)."""
    for ruler in rulers:
        file = settled.tree.by_path.get(f"{ruler}/patterns")
        if file is None or _sets_norm(settled.source.read_small(file)):
            _reject(
                settled,
                f"{ruler}/patterns",
                f"may set NORM, which {component.name!r} may read",
                USE_PIPELINE,
            )


def _sets_norm(patterns: bytes) -> bool:
    try:
        rules = msgpack.unpackb(patterns, strict_map_key=False)
        return any(
            str(name).upper() == "NORM" or not isinstance(name, str) for r in rules for name in r["attrs"]
        )
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return True  # not understood, so not known to be harmless


@contextlib.contextmanager
def _placed(settled: Settled, default: str) -> Iterator[None]:
    """Complete the place of refusals that know only the file, or not even that."""
    try:
        yield
    except Rejected as refusal:
        where = refusal.where or default
        if where.startswith("/"):
            raise
        raise Rejected(refusal.reason, where=str(settled.source.path / where), hint=refusal.hint) from None


def _reject(settled: Settled, file: str, reason: str, hint: str) -> NoReturn:
    raise Rejected(reason, where=str(settled.source.path / file), hint=hint)
