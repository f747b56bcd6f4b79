"""docs/migrating.md: what goes wrong does so with the spaCy that is installed; what to do instead works."""

from __future__ import annotations

import builtins
import gc
import re
import shutil
import warnings
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest
import spacy
from spacy.training import Corpus
from thinc.api import fix_random_seed

from spancat_daemon.config.load import load
from tests.documented import DOCS, EXAMPLES, blocks
from tests.service import configure, run
from tests.trainer import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.documented import Block

PAGE = DOCS / "migrating.md"
(PREAMBLE,) = blocks(PAGE, "python")[:1]
SECTIONS = {
    heading: list(found) for heading, found in groupby(blocks(PAGE)[1:], key=lambda block: block.heading)
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page describes it."""
    folder = tmp_path_factory.mktemp("migrating")
    _train(folder / "runs/products/model-best")
    config = configure(folder, source="runs/products/model-best")
    assert run("snapshot", "products", config=config).returncode == 0
    return folder


def _train(checkpoint: Path) -> None:
    fix_random_seed(0)
    config = spacy.util.load_config(EXAMPLES / "training.cfg")
    del config["training"]["logger"]
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    examples = list(Corpus(corpus())(nlp))[:4]
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.005
    for _ in range(60):
        nlp.update(examples, sgd=optimizer)
    checkpoint.parent.mkdir(parents=True)
    nlp.to_disk(checkpoint)


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, to be in; and a garbage collector that is on again afterwards."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    yield folder
    gc.enable()


def do(block: Block) -> None:
    names: dict[str, Any] = {"__name__": "migrating"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a notebook
        exec(compile(PREAMBLE.code, "migrating.md", "exec"), names)  # noqa: S102  # our own page
        exec(compile(block.code, f"migrating.md: {block.heading}", "exec"), names)  # noqa: S102  # as above


def told(section: list[Block]) -> str | None:
    """What the recipe of a section ends with, if it says anything."""
    said = [block.code.strip() for block in section if block.language == "text"]
    return said[0] if said else None


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_recipe_fails_as_the_page_says(here: Path, heading: str) -> None:
    recipe, *_ = section = SECTIONS[heading]
    assert recipe.language == "python"
    expected = told(section)
    if expected is None:
        do(recipe)
        return
    kind, _, message = expected.partition(": ")
    with pytest.raises(getattr(builtins, kind), match=f"^{re.escape(message)}") as caught:
        do(recipe)
    assert caught.type.__name__ == kind


@pytest.mark.parametrize("heading", SECTIONS)
def test_what_to_do_instead_works(here: Path, heading: str) -> None:
    _, *instead = SECTIONS[heading]
    for block in instead:
        if block.language == "python":
            do(block)
        elif block.language == "toml":
            (here / "of-the-page.toml").write_text(block.code)
            load(here / "of-the-page.toml")
    assert any(block.language in {"python", "toml"} for block in instead)


def test_the_table_leads_to_each_section_and_quotes_its_error() -> None:
    rows = re.findall(r"^\| (.*) \| \[(\d+)\]\(#(.*)\) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(SECTIONS)
    for (seen, number, anchor), (heading, section) in zip(rows, SECTIONS.items(), strict=True):
        assert heading.startswith(f"{number}. ")
        assert anchor == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        quoted = re.match(r"`(\w+: [^`]*)`", seen)
        expected = told(section)
        if quoted:
            assert expected is not None
            assert expected == quoted[1]
        else:
            assert expected is None or seen.startswith("an error")
