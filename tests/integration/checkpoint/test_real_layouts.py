"""Pipelines of every kind that spaCy itself makes: read, complete, whole, in the order spaCy writes them."""

from __future__ import annotations

import io
import os
import time
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.lookups import Lookups
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example
from spacy.util import registry
from spacy.vectors import Vectors

from spancat_daemon.checkpoint.layout import expected_files
from spancat_daemon.checkpoint.settle import Settled, examine, file_clock_ns
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.checkpoint.wholeness import AnyProof, ConfigProof, JsonLinesProof, Proof
from spancat_daemon.errors import Rejected
from tests.pipelines import VARIANTS, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def _writes() -> Iterator[list[str]]:
    """The files that are opened for writing meanwhile: spaCy opens them as paths, which use io.open."""
    written: list[str] = []
    really = io.open

    def noting(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if "w" in mode:
            written.append(str(file))
        return really(file, mode, *more, **options)

    # No audit hook: it stays for ever, and under coverage threads could not start while others do.
    with patch("io.open", noting):
        yield written


class _WritesFiles:
    """A component of someone else's, which keeps what it likes, where it likes."""

    def __call__(self, doc: Doc) -> Doc:
        return doc

    def to_disk(self, path: Path, **_: Any) -> None:
        (path / "deep/er").mkdir(parents=True)
        (path / "deep/er/table.json").write_text("[NaN, not JSON")
        (path / "model").write_bytes(b"not thinc's")

    def from_disk(self, _: Path, **__: Any) -> _WritesFiles:
        return self


@Language.factory("spancat_daemon_writes_files")
def _make_writes_files(nlp: Language, name: str) -> _WritesFiles:
    return _WritesFiles()


def _everything() -> Language:
    """One of each of spaCy's components that keep something on disk."""
    nlp = spacy.blank("en")
    small = {"model": {"tok2vec": {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}}}
    # Rulers run what is before them on their patterns.
    rulers: dict[str, Any] = {
        name: nlp.add_pipe(name) for name in ("entity_ruler", "span_ruler", "attribute_ruler", "lemmatizer")
    }
    rulers["entity_ruler"].add_patterns([{"label": "ORG", "pattern": "Acme"}])
    rulers["span_ruler"].add_patterns([{"label": "ORG", "pattern": "Acme"}] * 2)
    rulers["attribute_ruler"].add([[{"LOWER": "acme"}]], {"TAG": "NN"})
    nlp.config["initialize"]["components"]["lemmatizer"] = {"lookups": {"@misc": "spancat_daemon_lemmas"}}
    nlp.add_pipe("tok2vec")
    for name in ("ner", "parser", "tagger", "senter"):
        nlp.add_pipe(name, config=small)
    for name in ("textcat", "sentencizer"):
        nlp.add_pipe(name)
    nlp.add_pipe("spancat_daemon_writes_files", name="strange")
    nlp.add_pipe("spancat", name="späns")
    return nlp


@registry.misc("spancat_daemon_lemmas")  # type: ignore[untyped-decorator]  # spaCy's registry has no types
def _lemmas() -> Lookups:
    lookups = Lookups()
    for table in ("index", "exc", "rules"):
        lookups.add_table(f"lemma_{table}", {"noun": {"offices": ["office"]}})
    return lookups


def _floret() -> Language:
    nlp = spacy.blank("en")
    data = np.ones((50, 8), dtype="float32")
    nlp.vocab.vectors = Vectors(
        strings=nlp.vocab.strings, data=data, mode="floret", hash_count=1, minn=3, maxn=4
    )
    nlp.add_pipe("spancat")
    return nlp


def _default() -> Language:
    nlp = spacy.blank("en")
    nlp.add_pipe("spancat")
    return nlp


def _single_label() -> Language:
    nlp = spacy.blank("de")
    nlp.add_pipe("spancat_singlelabel")
    return nlp


def _twenty_labels() -> Language:
    nlp = spacy.blank("xx")
    pipe: Any = nlp.add_pipe("spancat")
    for number in range(20):
        pipe.add_label(f"Ä{number}")
    return nlp


_MADE: dict[str, Callable[[], Language]] = {
    "everything": _everything,
    "floret": _floret,
    "spaCy's default": _default,
    "spaCy's default for one label a span": _single_label,
    "twenty labels": _twenty_labels,
}


@lru_cache
def _saved(name: str, folder: Path) -> Path:
    nlp = _MADE[name]()
    doc = nlp.make_doc("Acme opened offices")
    reference = Doc(
        nlp.vocab,
        words=[token.text for token in doc],
        tags=["NN", "VB", "NN"],
        heads=[1, 1, 1],
        deps=["nsubj", "ROOT", "obj"],
        ents=["B-ORG", "O", "O"],
        sent_starts=[True, False, False],
    )
    reference.cats = {"A": 1.0, "B": 0.0}
    reference.spans["sc"] = SpanGroup(reference, spans=[Span(reference, 0, 1, label="ORG")])
    nlp.initialize(lambda: [Example(doc, reference)])
    nlp.to_disk(folder / name)
    return folder / name


@pytest.fixture(params=[*VARIANTS, *_MADE])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param in VARIANTS:
        return build(request.param, tmp_path / "checkpoint")
    return _saved(request.param, tmp_path)


def _settled(source: Source) -> Settled:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = examine(source, writer="spacy", settle_s=0, now_ns=file_clock_ns)
        if isinstance(found, Settled):
            return found
        assert found.kind == "busy", found.reason
        assert found.retry_after_s is not None
        time.sleep(found.retry_after_s)
    raise AssertionError("it stays busy")


def _passes(proof: Proof, data: bytes, size: int = 1 << 20) -> bool:
    try:
        for start in range(0, len(data), size):
            proof.feed(data[start : start + size])
        proof.finish()
    except Rejected:
        return False
    return True


def test_it_is_settled_and_each_file_is_whole_only_whole(checkpoint: Path) -> None:
    with Source.open(checkpoint) as source:
        settled = _settled(source)
        nlp = spacy.load(checkpoint)
        assert settled.layout.pipeline == tuple(nlp.component_names)
        assert settled.layout.lang == nlp.lang
        assert settled.layout.span_categorizers
        for component in settled.layout.span_categorizers:
            pipe: Any = nlp.get_pipe(component.name)
            assert component.labels == pipe.labels
            assert component.spans_key == pipe.key
            assert component.threshold == pytest.approx(pipe.cfg["threshold"])  # srsly's numbers are inexact
            assert component.width == pipe.model.get_dim("nO")
        for name, any_component in settled.layout.components.items():
            for upstream in any_component.listens_to:
                listened_to: Any = nlp.get_pipe(upstream)
                assert name in listened_to.listening_components
        proven = 0
        for file in settled.tree.files:
            data = source.read_small(file)
            begin = settled.proofs[file.path]
            assert _passes(begin(), data), file.path
            if isinstance(begin(), AnyProof) or "strange" in file.path:
                continue
            proven += 1
            for length in {0, 1, len(data) // 3, len(data) - 1} - {len(data)}:
                # Formats of lines can be whole earlier than at their end.
                if begin is ConfigProof or begin is JsonLinesProof or data[length:].isspace():
                    continue
                assert not _passes(begin(), data[:length]), (file.path, length)
        assert proven >= len(expected_files(settled.layout))


def test_spacy_writes_in_the_expected_order(checkpoint: Path, tmp_path: Path) -> None:
    with Source.open(checkpoint) as source:
        expected = expected_files(_settled(source).layout)
    nlp = spacy.load(checkpoint)
    again = tmp_path / "again"
    with _writes() as written:
        nlp.to_disk(again)
    paths = [os.path.relpath(path, again) for path in written]
    assert tuple(path for path in paths if path in expected) == expected
