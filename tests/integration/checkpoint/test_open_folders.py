"""Pipes of which nobody knows what they write: a copy that lacks something of theirs is not whole."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon.checkpoint.settle import Settled, Unsettled, examine, file_clock_ns
from spancat_daemon.checkpoint.tree import Source
from tests.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LATER_NS = 10 * 10**9
KNOWN = ["tokenizer", "meta.json", "config.cfg", "tok2vec", "spancat", "vocab", "sentencizer.json"]
OPEN = ["entity_ruler", "attribute_ruler", "lemmatizer"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with rulers, and one saved with what is known alone beside it."""
    folder = tmp_path_factory.mktemp("saved")
    nlp: Any = spacy.load(build("default", folder / "plain"))
    nlp.add_pipe("sentencizer", first=True)
    nlp.add_pipe("merge_entities")
    nlp.to_disk(folder / "known")
    for name in OPEN:
        nlp.add_pipe(name, config={"mode": "rule"} if name == "lemmatizer" else {})
    nlp.get_pipe("entity_ruler").add_patterns([{"label": "ORG", "pattern": "Acme"}])
    nlp.get_pipe("lemmatizer").initialize(lookups=_lookups(nlp))
    nlp.to_disk(folder / "open")
    return folder


def _lookups(nlp: Any) -> Any:
    lookups = nlp.vocab.lookups
    for table in ("lemma_rules", "lemma_index", "lemma_exc"):
        lookups.add_table(table, {})
    return lookups


def examined(checkpoint: Path, *, later_ns: int = LATER_NS) -> Settled | Unsettled:
    with Source.open(checkpoint) as source:
        return examine(source, writer="spacy", settle_s=0, now_ns=lambda: file_clock_ns() + later_ns)


def copy_in_order(source: Path, target: Path, last: str, before_each: Callable[[], None]) -> None:
    """By `shutil.copytree` itself, one of the entries last."""
    scandir = os.scandir

    @contextmanager
    def ordered(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as entries:
            yield iter(sorted(entries, key=lambda entry: (entry.name == last, entry.name)))

    def copy(one: str, other: str) -> None:
        before_each()
        shutil.copy2(one, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", ordered)
        shutil.copytree(source, target, copy_function=copy)


@pytest.mark.parametrize("last", [*KNOWN, *OPEN])
def test_a_copy_is_settled_once_the_last_entry_is_in_it(saved: Path, tmp_path: Path, last: str) -> None:
    copy = tmp_path / "model-best"
    looks: list[bool] = []

    def look() -> None:
        looks.append(isinstance(examined(copy), Unsettled))

    copy_in_order(saved / "open", copy, last, look)
    assert len(looks) > len(KNOWN) + len(OPEN)
    assert all(looks)
    assert isinstance(examined(copy), Settled)


@pytest.mark.parametrize(
    ("checkpoint", "missing"), [("known", "sentencizer.json"), *(("open", name) for name in OPEN)]
)
def test_a_copy_that_was_cut_off_before_its_last_entry(
    saved: Path, tmp_path: Path, checkpoint: str, missing: str
) -> None:
    copy = tmp_path / "model-best"
    copy.mkdir()
    for entry in sorted((saved / checkpoint).iterdir()):
        if entry.name != missing:
            (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, copy / entry.name)
    found = examined(copy)
    assert isinstance(found, Unsettled)
    assert (found.kind, found.retry_after_s) == ("incomplete", None)
    if missing in OPEN:  # while it is young the copy may go on at any moment, without an event
        young = examined(copy, later_ns=5 * 10**7)
        assert isinstance(young, Unsettled)
        assert young.kind == "busy"
        assert young.retry_after_s is not None


def test_saves_in_place_are_settled(saved: Path, tmp_path: Path) -> None:
    nlp = spacy.load(saved / "open")
    for _ in range(2):
        nlp.to_disk(tmp_path / "model-last")
        assert isinstance(examined(tmp_path / "model-last"), Settled)


def test_what_somebody_puts_there_matters_only_where_something_could_be_missing(
    saved: Path, tmp_path: Path
) -> None:
    for name, settled in (("known", True), ("open", False)):
        copy = shutil.copytree(saved / name, tmp_path / name)
        assert isinstance(examined(copy), Settled)
        (copy / "README.md").write_text("mine")
        os.utime(copy / "README.md", ns=(0, 0))
        assert isinstance(examined(copy), Settled) is settled, name
    spacy.load(tmp_path / "open").to_disk(tmp_path / "open")  # the next save in place takes it along
    assert isinstance(examined(tmp_path / "open"), Settled)
