"""One warm loader for all tests of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.contents.publishing import Loaders

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def loaders() -> Iterator[Loaders]:
    with Loaders() as kept:
        yield kept
