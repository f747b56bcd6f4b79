"""Two pipelines that no answer can mix up: they write under different keys, with different weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from tests.integration.serving.publishing import Publisher
from tests.integration.serving.watching import Told
from tests.pipelines import build, texts

if TYPE_CHECKING:
    from pathlib import Path

    from spacy.tokens import Doc

    from spancat_daemon import HotModel
    from spancat_daemon.release.swap import Kind

Answer = dict[str, list[tuple[int, int, str, float]]]


def answer(doc: Doc) -> Answer:
    """All that a document says of spans."""
    found: Answer = {}
    for key, group in doc.spans.items():
        scores = group.attrs["scores"].ravel() if group else []  # an empty text has none
        spans = zip(group, scores, strict=True)
        found[key] = [(span.start, span.end, span.label_, float(score)) for span, score in spans]
    return found


def answers(hot: HotModel) -> list[Answer]:
    """What it says of all texts."""
    return [answer(doc) for doc in hot.pipe(texts())]


@dataclass(frozen=True)
class Model:
    """A checkpoint and what it predicts."""

    path: Path
    answers: list[Answer]

    @classmethod
    def built(cls, variant: str, folder: Path, **settings: Any) -> Model:
        path = build(variant, folder, **settings)
        nlp = spacy.load(path)
        return cls(path, [answer(nlp(text)) for text in texts()])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folder = tmp_path_factory.mktemp("checkpoints")
    first, second = Model.built("default", folder / "first"), Model.built("custom_key", folder / "second")
    assert all(one != other for one, other in zip(first.answers, second.answers, strict=True))
    return first, second


@pytest.fixture(params=["symlink", "exchange"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def publisher(tmp_path: Path, kind: Kind) -> Publisher:
    return Publisher(tmp_path / "models", kind)


@pytest.fixture
def linking(tmp_path: Path) -> Publisher:
    """For what doesn't depend on the kind of swap."""
    return Publisher(tmp_path / "models")


@pytest.fixture
def told() -> Told:
    return Told()
