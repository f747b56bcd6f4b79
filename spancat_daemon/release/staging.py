"""The staged copy of a checkpoint: made beside the releases, checked while it is made, not yet live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spancat_daemon.checkpoint.contents import Plan
    from spancat_daemon.release.manifest import FileDigest


class Lacking(SpancatDaemonError):  # noqa: N818  # a state of the disk that callers branch on
    """Too little free space to stage a checkpoint and leave what must stay free.

    Attributes:
        needed: bytes that have to be free.
        free: bytes that are.
    """

    def __init__(self, reason: str, *, needed: int, free: int, where: str = "", hint: str = "") -> None:
        super().__init__(reason, where=where, hint=hint)
        self.needed = needed
        self.free = free


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged copy.

    Attributes:
        path: its directory, in the deployment folder's staging directory.
        files: digest and size of each file in it, ``model.bin`` included, by path.
        model_sha256: digest of ``model.bin``.
        content_sha256: identity of the content.
        bytes: sum of the sizes of the files, ``model.bin`` not counted twice.
        bytes_written: how many of them were written (or reflinked) rather than hard-linked.
        linked: paths of the files that are hard links of the previous release's.
        plan: what it was made to.
    """

    path: Path
    files: Mapping[str, FileDigest]
    model_sha256: str
    content_sha256: str
    bytes: int
    bytes_written: int
    linked: tuple[str, ...]
    plan: Plan
