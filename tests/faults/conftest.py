"""What more than one fault suite needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is one: for faults that are not the disk's, without its delays."""
    memory = Path("/dev/shm")  # noqa: S108  # a fresh folder in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
