"""``[watch.verify]`` and ``[watch.gate]``: what a snapshot must be seen to do before it goes live."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotations
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from spancat_daemon.config.values import Duration, Number, Positive, Share, Size, Table

LEAST_MEMORY_BYTES: Final = 512 << 20
"""Importing spaCy takes some 240 MiB of address space, with one thread and before any model."""


def _enough_for_spacy(value: int) -> int:
    if value < LEAST_MEMORY_BYTES:
        raise ValueError('must be at least "512MiB": spaCy alone takes half of that')
    return value


def _kind_of_minimum(value: Any) -> str:
    return "labels" if isinstance(value, dict) else "all"


class LabelShares(dict[str, float]):
    """A share for each label; hashable as all of a configuration is, and like it never changed."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None
        return hash(frozenset(self.items()))


def _by_label(value: dict[str, float]) -> LabelShares:
    if not value:
        raise ValueError("must name a label, such as { PRODUCT = 0.8 }, or be a number for all of them")
    return LabelShares(value)


class Verify(Table):
    """How a snapshot is seen to work before it goes live."""

    level: Literal["none", "structure", "load", "probes"] = "load"
    """What is seen: nothing but that the checkpoint is settled; that its parts agree; that spaCy loads it and
    it predicts; that it predicts what probes, or gold documents, say. probes or gold imply "probes"."""

    python: Path | None = None
    """The interpreter that will serve the model, with its spaCy 3.2.2 or later. Empty: the daemon's own."""

    timeout: Positive = 120.0
    """How long one verification may take."""

    memory: Annotated[Size, AfterValidator(_enough_for_spacy)] = 4 << 30
    """The address space that the verifying process may have."""

    idle: Duration = 60.0
    """How long the verifying process stays, unused, with spaCy imported."""

    probes: Path | None = None
    """A JSONL file of texts with spans they must, or must not, give. {1} as in deploy. Empty: none."""

    min_pass: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """The share of probes that must pass."""

    gold: Path | None = None
    """A .spacy file of annotated documents to evaluate on. {1} as in deploy. Empty: none."""

    @property
    def effective_level(self) -> Literal["none", "structure", "load", "probes"]:
        """The level, with what probes and gold imply."""
        return "probes" if self.probes or self.gold else self.level


class Gate(Table):
    """Conditions that a snapshot must meet to go live; what is not written is no condition."""

    metric: str = ""
    """The score that minimum and max_drop go by. Empty: spans_<key>_f of the span categorizer's key."""

    minimum: Number | None = None
    """The least that the score may be."""

    max_drop: Annotated[Number, Field(ge=0)] | None = None
    """How far the score may be below the live release's, on the same evaluation."""

    per_label_minimum: (
        Annotated[
            Annotated[Share, Tag("all")]
            | Annotated[dict[str, Share], AfterValidator(_by_label), Tag("labels")],
            Discriminator(_kind_of_minimum),
        ]
        | None
    ) = None
    """The least F-score of every label, or of those named."""

    labels: Literal["same", "superset", "any"] = "any"
    """Compared with the live release's: the same in the same order, at least those, or whatever they are."""

    max_bytes: Size | None = None
    """The largest that a release may be."""

    min_step: Annotated[int, Field(strict=True, ge=0)] = 0
    """The training step from which on checkpoints go live; 1: not the first, nearly untrained, one."""

    max_latency_ms: Annotated[Number, Field(gt=0)] | None = None
    """How many milliseconds a document, at the median, may take longer than with the live release."""
