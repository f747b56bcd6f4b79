"""The training data of the demonstration, made-up sentences with products and places, and its log of scores.

``spacy train --code`` runs this file in the trainer's process.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy.tokens import Span
from spacy.training import Example
from spacy.util import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from spacy.language import Language

PRODUCTS = (
    "espresso machine", "road bike", "standing desk", "headphones", "rain jacket", "kettle", "garden chair",
    "tent", "graphics card", "toaster", "monitor arm", "sewing machine", "backpack", "electric drill",
    "bread knife", "desk lamp", "folding table", "coffee grinder", "phone case", "winter coat",
)  # fmt: skip
MAKERS = ("Arvo", "Belkor", "Cintra", "Delmar", "Elvio", "Fenwick", "Gramont", "Hollis")
PLACES = (
    "Lisbon", "Turku", "San Marino", "Graz", "Porto", "Aix en Provence", "Leeds", "New Ross", "Gdansk",
    "Bergen", "Ghent", "Trieste", "Malmo", "Novi Sad", "Cork",
)  # fmt: skip
PEOPLE = ("Marta", "Turner", "Ivo", "Old Hansen", "Petra Graz", "Leo", "Arvo", "Ingrid Cork")
SENTENCES = (
    "{person} ordered the {product} from {place} last week .",
    "The shop in {place} no longer sells the {product} .",
    "Has anyone in {place} tried this {product} yet ?",
    "My {product} broke after a trip with {person} .",
    "They ship every {product} from a warehouse near {place} .",
    "Nobody but {person} wanted to carry the {product} upstairs .",
    "{person} flew home from {place} on a cold morning .",
    "The reviewer compared one {product} with another {product} .",
    "A friend of {person} has a table , a coat and a machine to sell .",
    "Winter in {place} is long , says {person} .",
)


@registry.readers("spancat_daemon_demo.sentences")  # type: ignore[untyped-decorator]  # spaCy's
def sentences(size: int, seed: int, known: float) -> Callable[[Language], Iterator[Example]]:
    """Returns a corpus of so many sentences, the same ones each time.

    Args:
        size: how many.
        seed: which ones.
        known: the part of all products and places that comes up in them; less for training, so that
            the evaluation has new ones.
    """

    def read(nlp: Language) -> Iterator[Example]:
        chance = random.Random(seed)  # noqa: S311  # sentences, not secrets
        for _ in range(size):
            yield _example(nlp, chance, known)

    return read


def _example(nlp: Language, chance: random.Random, known: float) -> Example:
    words: list[str] = []
    found: list[tuple[int, int, str]] = []
    for word in chance.choice(SENTENCES).split():
        inserted = _filling(word, chance, known).split()
        if word in {"{product}", "{place}"}:
            found.append((len(words), len(words) + len(inserted), word.strip("{}").upper()))
        words += inserted
    text = " ".join(words)
    annotated = nlp.make_doc(text)
    annotated.spans["sc"] = [Span(annotated, start, end, label=label) for start, end, label in found]
    return Example(nlp.make_doc(text), annotated)


def _filling(word: str, chance: random.Random, known: float) -> str:
    match word:
        case "{product}":
            maker = f"{chance.choice(MAKERS)} " if chance.random() < 0.4 else ""
            return maker + chance.choice(PRODUCTS[: int(len(PRODUCTS) * known)])
        case "{place}":
            return chance.choice(PLACES[: int(len(PLACES) * known)])
        case "{person}":
            return chance.choice(PEOPLE)
        case _:
            return word


@registry.loggers("spancat_daemon_demo.scores")  # type: ignore[untyped-decorator]  # spaCy's
def scores(path: str) -> Callable[..., tuple[Callable[[dict[str, Any] | None], None], Callable[[], None]]]:
    """Returns a logger that writes the step and score of each evaluation as a line of JSON, at once."""

    def setup(_nlp: Language, _stdout: IO[str], _stderr: IO[str]) -> Any:
        def log_step(info: dict[str, Any] | None) -> None:
            if info is not None:
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": info["step"], "score": float(info["score"])}) + "\n")

        return log_step, lambda: None

    return setup
