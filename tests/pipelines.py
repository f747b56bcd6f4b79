"""Real, tiny, trained spaCy pipelines of every shape a span categorizer comes in.

Each is built once per test run and copied with its times afterwards, so that asking for one costs
milliseconds. Generations of one variant share everything but the weights, as the checkpoints of one
training do.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import spacy
from spacy.tokens import SpanGroup
from spacy.training import Example
from spacy.vectors import Vectors
from thinc.api import fix_random_seed

from tests.once import once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spacy.language import Language

_Block = dict[str, Any]
Prediction = tuple[int, int, str, float]

_WIDTH: Final = 24
_ROWS: Final = 120
# (text, [(start character, end character, label)]): few, so that a couple of dozen steps learn them.
_ANNOTATED: Final[list[tuple[str, list[tuple[int, int, str]]]]] = [
    ("Acme Corp opened an office in Berlin.", [(0, 9, "ORG"), (30, 36, "PLACE")]),
    ("The office in New York belongs to Globex.", [(14, 22, "PLACE"), (34, 40, "ORG")]),
    ("Müller GmbH verkauft Türen nach Köln.", [(0, 11, "ORG"), (32, 36, "PLACE"), (21, 26, "GÜTER")]),
    ("They sell doors and windows in Paris.", [(10, 15, "GÜTER"), (20, 27, "GÜTER"), (31, 36, "PLACE")]),
    ("Globex ships windows to Berlin and Paris.", [(0, 6, "ORG"), (13, 20, "GÜTER"), (24, 30, "PLACE")]),
    ("Nothing of note happened today.", []),
]
_UNSEEN: Final = [
    "Globex opened an office in Köln and sells windows.",
    "doors",
    "",
    "Müller GmbH ships doors from New York to Berlin, then to Paris and back again; nothing else happened.",
    "ACME CORP, Acme corp & acme: 12 doors at 3.50 each\n\nto   Paris.",
    "日本語 and العربية in Berlin 🚪",
]

VARIANTS: Final = (
    "default",  # tok2vec, and a spancat that listens to it by name
    "star",  # the listener takes any upstream
    "own",  # spancat with a tok2vec of its own
    "not_first",  # sentencizer, tok2vec, tagger and ner come first and listen too
    "two",  # two span categorizers on one tok2vec
    "two_upstreams",  # a tagger listens to a tok2vec of its own, after spancat
    "singlelabel",  # spancat_singlelabel with its negative label
    "custom_key",  # spans_key = "xx"
    "renamed",  # components not named after their factories
    "vectors",  # static vectors
    "bias",  # character embedding, range suggester, max_positive, another threshold
    "hash_embed",  # spaCy's default HashEmbedCNN as upstream
    "finder",  # spans suggested by a span_finder
)


def texts() -> list[str]:
    """Return texts to compare predictions on, seen and unseen, an empty and a non-Latin one among them."""
    return [text for text, _ in _ANNOTATED] + _UNSEEN


def build(
    variant: str,
    folder: Path,
    *,
    generation: int = 0,
    seed: int = 0,
    steps: int = 30,
    vectors_mb: float = 0.05,
    width: int = _WIDTH,
    rows: int = _ROWS,
) -> Path:
    """Put a trained pipeline where a trainer would have.

    Args:
        variant: one of `VARIANTS`.
        folder: the checkpoint; must not exist yet, its parents may be missing.
        generation: 0, 1, 2…: each was trained some steps further than the one before it.
        seed: of the weights.
        steps: updates before generation 0.
        vectors_mb: size of the vector table of the variant "vectors".
        width: of all layers; with `rows` it sets the size of the models (96 and 3300: about 6 MB).
        rows: of each embedding table.

    Returns:
        `folder`. Its files have the order of modification times in which spaCy wrote them.
    """
    built = _built(variant, generation, seed, steps, vectors_mb, width, rows)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(built, folder)
    return folder


def train_more(
    checkpoint: Path, folder: Path, *, seed: int = 1, steps: int = 5, frozen: Sequence[str] = ()
) -> Path:
    """Train a pipeline some steps further and save it elsewhere (or, given the same path, in place).

    Args:
        checkpoint: where it is loaded from.
        folder: where it is saved to.
        seed: of what the updates draw.
        steps: how many updates.
        frozen: components whose weights stay.
    """
    fix_random_seed(seed)
    nlp = spacy.load(checkpoint)
    examples = _examples(nlp)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 0.01
    _update(nlp, examples, optimizer, steps=steps, frozen=frozen)
    _save(nlp, examples, folder)
    return folder


def predictions(
    path: Path, of_texts: Sequence[str], *, spans_key: str | None = None
) -> list[list[Prediction]]:
    """Load a pipeline in this process and return what it predicts for each text.

    Args:
        path: the pipeline.
        of_texts: what to predict.
        spans_key: where the spans are; None: under the key of its first span categorizer.

    Returns:
        For each text its spans as (first token, token after the last, label, exact score).
    """
    nlp = spacy.load(path)
    if spans_key is None:
        first = next(n for n in nlp.pipe_names if nlp.get_pipe_meta(n).factory.startswith("spancat"))
        spans_key = _pipe(nlp, first).key
    found = []
    for doc in nlp.pipe(of_texts):
        group = doc.spans.get(spans_key, [])
        # spancat_singlelabel keeps each score in a row of its own.
        scores = [float(score) for score in group.attrs["scores"].ravel()] if group else []
        found.append(
            [(span.start, span.end, span.label_, score) for span, score in zip(group, scores, strict=True)]
        )
    return found


def model_bytes(path: Path, component: str) -> bytes:
    """Load a pipeline in this process and return a component's model as spaCy serialises it."""
    data: bytes = _pipe(spacy.load(path), component).model.to_bytes()
    return data


def _pipe(nlp: Language, name: str) -> Any:
    return nlp.get_pipe(name)  # spaCy types it as a mere callable


def _built(
    variant: str, generation: int, seed: int, steps: int, vectors_mb: float, width: int, rows: int
) -> Path:
    def make(folder: Path) -> None:
        if generation:
            before = _built(variant, generation - 1, seed, steps, vectors_mb, width, rows)
            train_more(before, folder, seed=seed + generation)
        else:
            _build(folder, variant, seed, steps, vectors_mb, width, rows)

    return once(f"{variant}-{generation}-{seed}-{steps}-{vectors_mb}-{width}-{rows}", make)


def _build(
    folder: Path, variant: str, seed: int, steps: int, vectors_mb: float, width: int, rows: int
) -> None:
    fix_random_seed(seed)
    nlp = _assemble(variant, vectors_mb, width, rows)
    examples = _examples(nlp)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.01
    _update(nlp, examples, optimizer, steps=steps, frozen=())
    _save(nlp, examples, folder)


def _examples(nlp: Language) -> list[Example]:
    keys = {
        nlp.get_pipe_config(name).get("spans_key", "sc")
        for name in nlp.pipe_names
        if nlp.get_pipe_meta(name).factory in {"spancat", "spancat_singlelabel", "span_finder"}
    }
    examples = []
    for text, annotated in _ANNOTATED:
        reference = nlp.make_doc(text)
        found = [reference.char_span(start, end, label=label) for start, end, label in annotated]
        spans = [span for span in found if span is not None]
        assert len(spans) == len(annotated), f"annotations don't fit the tokens of {text!r}"
        for key in keys:
            reference.spans[key] = SpanGroup(reference, name=key, spans=spans)
        reference.set_ents(spans)
        for token in reference:
            token.tag_ = "PUNCT" if token.is_punct else "X"
            token.is_sent_start = token.i == 0
        examples.append(Example(nlp.make_doc(text), reference))
    return examples


def _update(
    nlp: Language, examples: list[Example], optimizer: Any, *, steps: int, frozen: Sequence[str]
) -> None:
    # What predicts spans for a suggester must annotate while it trains, as in a real [training].
    annotating = [name for name in nlp.pipe_names if nlp.get_pipe_meta(name).factory == "span_finder"]
    # A frozen tok2vec has to annotate too, else its listeners have nothing to listen to.
    annotating += [name for name in frozen if nlp.get_pipe_meta(name).factory == "tok2vec"]
    losses: dict[str, float] = {}
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer, losses=losses, exclude=frozen, annotates=annotating)
    nlp.meta["performance"] = {f"{name}_loss": loss for name, loss in losses.items()}


def _save(nlp: Language, examples: list[Example], folder: Path) -> None:
    scores = nlp.evaluate(examples)
    scores.pop("speed", None)  # differs from run to run
    nlp.meta["performance"] |= scores
    folder.parent.mkdir(parents=True, exist_ok=True)
    nlp.to_disk(folder)


def _assemble(variant: str, vectors_mb: float, width: int, rows: int) -> Language:
    assert variant in VARIANTS, f"no such variant: {variant}"
    nlp = spacy.blank("en")
    if variant == "vectors":
        _add_vectors(nlp, vectors_mb)
    own = _tok2vec(variant, width, rows)
    listener: _Block = {
        "@architectures": "spacy.Tok2VecListener.v1",
        "width": width,
        "upstream": {"star": "*", "renamed": "encoder"}.get(variant, "tok2vec"),
    }
    if variant == "not_first":
        nlp.add_pipe("sentencizer")
    if variant != "own":
        nlp.add_pipe("tok2vec", name="encoder" if variant == "renamed" else "tok2vec", config={"model": own})
    if variant == "not_first":
        _add_tagger(nlp, listener)
        _add_ner(nlp, listener)
    if variant == "finder":
        _add_finder(nlp, listener)
    config = _span_categorizer(variant, own if variant == "own" else listener)
    factory = "spancat_singlelabel" if variant == "singlelabel" else "spancat"
    nlp.add_pipe(factory, name="products" if variant == "renamed" else "spancat", config=config)
    if variant == "two":
        nlp.add_pipe("spancat", name="second", config={**config, "spans_key": "second"})
    if variant == "two_upstreams":
        nlp.add_pipe("tok2vec", name="tagger_tok2vec", config={"model": own})
        _add_tagger(nlp, {**listener, "upstream": "tagger_tok2vec"})
    return nlp


def _tok2vec(variant: str, width: int, rows: int) -> _Block:
    if variant == "hash_embed":
        return {
            "@architectures": "spacy.HashEmbedCNN.v2",
            "width": width,
            "depth": 1,
            "embed_size": rows,
            "window_size": 1,
            "maxout_pieces": 2,
            "subword_features": True,
            "pretrained_vectors": None,
        }
    embed: _Block = {
        "@architectures": "spacy.MultiHashEmbed.v2",
        "width": width,
        "attrs": ["NORM", "PREFIX", "SUFFIX", "SHAPE"],
        "rows": [rows] * 4,
        "include_static_vectors": variant == "vectors",
    }
    if variant == "bias":
        embed = {
            "@architectures": "spacy.CharacterEmbed.v2",
            "width": width,
            "rows": rows,
            "nM": 8,
            "nC": 4,
            "include_static_vectors": False,
            "feature": "LOWER",
        }
    encode = {
        "@architectures": "spacy.MaxoutWindowEncoder.v2",
        "width": width,
        "depth": 1,
        "window_size": 1,
        "maxout_pieces": 2,
    }
    return {"@architectures": "spacy.Tok2Vec.v2", "embed": embed, "encode": encode}


def _span_categorizer(variant: str, tok2vec: _Block) -> _Block:
    suggester: _Block = {"@misc": "spacy.ngram_suggester.v1", "sizes": [1, 2, 3]}
    if variant == "finder":
        suggester = {"@misc": "spacy.preset_spans_suggester.v1", "spans_key": "candidates"}
    if variant == "bias":
        suggester = {"@misc": "spacy.ngram_range_suggester.v1", "min_size": 1, "max_size": 4}
    scorer = "Softmax.v2" if variant == "singlelabel" else "spacy.LinearLogistic.v1"
    config: _Block = {
        "spans_key": "xx" if variant == "custom_key" else "sc",
        "suggester": suggester,
        "model": {
            "@architectures": "spacy.SpanCategorizer.v1",
            "reducer": {"@layers": "spacy.mean_max_reducer.v1", "hidden_size": 16},
            "scorer": {"@layers": scorer},
            "tok2vec": tok2vec,
        },
    }
    if variant != "singlelabel":
        config["threshold"] = 0.2 if variant == "bias" else 0.3
    if variant == "bias":
        config["max_positive"] = 2
    return config


def _add_tagger(nlp: Language, tok2vec: _Block) -> None:
    nlp.add_pipe("tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}})


def _add_ner(nlp: Language, tok2vec: _Block) -> None:
    model = {
        "@architectures": "spacy.TransitionBasedParser.v2",
        "state_type": "ner",
        "extra_state_tokens": False,
        "hidden_width": 16,
        "maxout_pieces": 2,
        "tok2vec": tok2vec,
    }
    nlp.add_pipe("ner", config={"model": model})


def _add_finder(nlp: Language, tok2vec: _Block) -> None:
    model = {
        "@architectures": "spacy.SpanFinder.v1",
        "scorer": {"@layers": "spacy.LinearLogistic.v1", "nO": 2},
        "tok2vec": tok2vec,
    }
    nlp.add_pipe("span_finder", config={"model": model, "spans_key": "candidates", "threshold": 0.05})


def _add_vectors(nlp: Language, megabytes: float) -> None:
    words = sorted({token.text for text in texts() for token in nlp.make_doc(text) if not token.is_space})
    columns = 300 if megabytes > 1 else 16
    rows = max(len(words), int(megabytes * (1 << 20)) // (columns * 4))
    data = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    nlp.vocab.vectors = Vectors(strings=nlp.vocab.strings, data=data, keys=words, name="tiny")
