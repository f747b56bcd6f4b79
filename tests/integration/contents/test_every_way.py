"""However the weights get somewhere else, they predict there what the pipeline that was trained does."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon.saving import save
from spancat_daemon.serving import load_bytes, releases, to_bytes
from tests.integration.contents.publishing import Loaders, scene
from tests.pipelines import build, texts

if TYPE_CHECKING:
    from pathlib import Path

    from spacy.language import Language

    from spancat_daemon.checkpoint.contents import Contents
    from spancat_daemon.release.folder import Release

CONTENTS: tuple[Contents, ...] = ("pipeline", "component", "standalone")
TEXTS = 200


def many_texts() -> list[str]:
    """The words of the usual texts in other orders, and the texts themselves."""
    draw = random.Random(0)  # noqa: S311  # the same each time
    words = [word for text in texts() for word in text.split(" ")]
    more = [" ".join(draw.choices(words, k=draw.randint(1, 10))) for _ in range(TEXTS - len(texts()))]
    return texts() + more


def predicted(nlp: Language, key: str) -> tuple[list[Any], list[float]]:
    spans, scores = [], []
    for doc in nlp.pipe(many_texts()):
        group = doc.spans.get(key, [])
        spans.append([(span.start_char, span.end_char, span.label_) for span in group])
        scores += [float(score) for score in group.attrs["scores"].ravel()] if len(group) else []
    return spans, scores


def published(folder: Path, contents: str, loaders: Loaders) -> Release:
    with scene(folder, loaders, contents=contents) as held:
        held.publish()
    (live, *_) = releases(folder / "models/products")
    assert live.manifest.contents == contents
    return live


@pytest.mark.parametrize("variant", ["default", "singlelabel", "vectors"])
def test_bytes_from_every_mode(variant: str, tmp_path: Path, loaders: Loaders) -> None:
    source = spacy.load(build(variant, tmp_path / "runs/model-best"))
    pipe: Any = source.get_pipe("spancat")
    spans, scores = predicted(source, pipe.key)
    assert len(spans) == TEXTS
    assert len(scores) > TEXTS, "too little is predicted for a comparison"

    for contents in CONTENTS:
        release = published(tmp_path, contents, loaders)
        whole = spacy.load(release.path)
        file = load_bytes(release.path / "model.bin", like=release)
        saved = load_bytes(to_bytes(whole), like=release)
        forced = save(source, tmp_path / "by force", contents=contents, verify="structure")
        assert forced.manifest.contents == contents
        ways = {
            "spacy.load": whole,
            "model.bin": file,
            "to_bytes": saved,
            "save": spacy.load(forced.path),
            "model.bin of save": load_bytes(forced.path / "model.bin", like=forced),
        }
        for way, nlp in ways.items():
            found, others = predicted(nlp, pipe.key)
            assert found == spans, (contents, way)
            assert others == pytest.approx(scores, rel=0, abs=1e-6), (contents, way)
