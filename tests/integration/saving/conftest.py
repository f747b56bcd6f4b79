"""A pipeline to be saved, and where to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import spacy

from tests.pipelines import build

if TYPE_CHECKING:
    from pathlib import Path

    from spacy.language import Language


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("default", tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def nlp(checkpoint: Path) -> Language:
    """Not to be changed."""
    return spacy.load(checkpoint)


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    return tmp_path / "models/products"
