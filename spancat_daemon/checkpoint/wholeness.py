"""Streaming proofs that a file is whole, fed with its bytes as they are copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from spancat_daemon.checkpoint.layout import Layout


class Proof(Protocol):
    """A proof under way for one file. Errors don't know the file's path: the caller adds it."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; raises `Rejected` as soon as they can't belong to a whole file."""
        ...

    def finish(self) -> None:
        """The file ends here; raises `Rejected` with the reason if it is not whole."""
        ...


ProofFactory = Callable[[], Proof]
"""Begins a new proof: one file can be read several times (a retry)."""


def proof_for(path: str, layout: Layout) -> ProofFactory:
    """The proof for the file at ``path`` (relative) of a checkpoint with this layout."""
    raise NotImplementedError
