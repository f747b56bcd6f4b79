"""The proof that a checkpoint is complete and of one generation (DESIGN.md, section 3: settling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spancat_daemon.checkpoint.layout import Layout
    from spancat_daemon.checkpoint.tree import Source, Tree
    from spancat_daemon.checkpoint.wholeness import ProofFactory


@dataclass(frozen=True, slots=True)
class Settled:
    """A checkpoint that may be copied.

    The proof is complete only when, after the copy, every file's `Proof` has finished and
    ``source.unchanged(tree)`` has not raised.

    Attributes:
        source: still open; whoever opened it closes it.
        tree: as it was proven.
        newest_ns: the newest mtime of its files: when the trainer finished, by the file system's clock.
        proofs: what each file's bytes must prove while they are copied, by relative path; every file has one.
    """

    source: Source
    tree: Tree
    layout: Layout
    newest_ns: int
    proofs: Mapping[str, ProofFactory]


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A checkpoint that must not be copied as it stands.

    Attributes:
        reason: one sentence for the log.
        path: the file it is about, relative to the checkpoint; empty if about all of it.
        kind: ``torn`` (files of several generations), ``incomplete`` (files missing), ``busy`` (too young).
        retry_after_s: when to look again; None: only the next change can help.
        tree: what was seen, to be passed as ``previous`` the next time.
    """

    reason: str
    path: str
    kind: Literal["torn", "incomplete", "busy"]
    retry_after_s: float | None
    tree: Tree | None


def examine(
    source: Source,
    *,
    writer: Literal["spacy", "any"],
    settle_s: float,
    now_ns: Callable[[], int],
    previous: Tree | None = None,
) -> Settled | Unsettled:
    """Decide whether the checkpoint is settled; reads config.cfg, meta.json and cfg, stats all else.

    Raises:
        Rejected: it is not a spaCy pipeline, or holds something that can't be published.
        Moved: it changed while it was examined.
        Vanished: it is gone.
    """
    raise NotImplementedError
