"""What a span categorizer needs, and what is refused because it can't be known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgpack  # type: ignore[import-untyped]  # it has no types, nor stubs
import pytest

from spancat_daemon.checkpoint.contents import Contents, Plan, plan
from spancat_daemon.checkpoint.layout import read_layout
from spancat_daemon.checkpoint.settle import Settled
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.checkpoint.wholeness import proof_for
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

NGRAMS = '@misc = "spacy.ngram_suggester.v1"\nsizes = [1]'
LISTENER = '@architectures = "spacy.Tok2VecListener.v1"\nupstream = "tok2vec"'
EMBED = '@architectures = "spacy.MultiHashEmbed.v2"\nattrs = ["NORM","SHAPE"]'


def spancat(
    name: str = "spancat", *, key: str = "sc", suggester: str = NGRAMS, tok2vec: str = LISTENER
) -> str:
    return f"""
[components.{name}]
factory = "spancat"
spans_key = "{key}"

[components.{name}.model]
@architectures = "spacy.SpanCategorizer.v1"

[components.{name}.model.tok2vec]
{tok2vec}

[components.{name}.suggester]
{suggester}
"""


def pipe(name: str, factory: str, more: str = "") -> str:
    return f'\n[components.{name}]\nfactory = "{factory}"\n{more}\n'


def tok2vec(name: str = "tok2vec", embed: str = EMBED) -> str:
    return (
        f'\n[components.{name}]\nfactory = "tok2vec"\n\n[components.{name}.model]\n'
        f'@architectures = "spacy.Tok2Vec.v2"\n\n[components.{name}.model.embed]\n{embed}\n'
    )


class Checkpoint:
    """A checkpoint's files, as far as planning looks at them."""

    def __init__(self, path: Path, *sections: str, disabled: tuple[str, ...] = ()) -> None:
        self.path = path
        names = [s.partition("[components.")[2].partition("]")[0] for s in sections]
        config = f'[nlp]\nlang = "en"\npipeline = {json.dumps(names)}\ndisabled = {json.dumps(disabled)}\n'
        self.write("config.cfg", config + "\n[components]\n" + "".join(sections))
        self.write("meta.json", json.dumps({"performance": {"spans_sc_f": 0.5}}))
        for name, section in zip(names, sections, strict=True):
            if 'factory = "spancat"' in section:
                key = section.partition('spans_key = "')[2].partition('"')[0]
                cfg = {"labels": ["A", "B"], "spans_key": key, "threshold": 0.5}
                self.write(f"{name}/cfg", json.dumps(cfg))
                self.write(f"{name}/model", "model")
            elif 'factory = "tok2vec"' in section:
                self.write(f"{name}/model", "model")
            else:
                self.write(f"{name}/patterns", msgpack.packb([{"attrs": {"TAG": "X"}}]))
        self.write("vocab/strings.json", "[]")
        self.write("tokenizer", "t")

    def write(self, path: str, data: str | bytes) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)

    def plan(self, contents: Contents = "component", component: str = "auto") -> Plan:
        with Source.open(self.path) as source:
            tree = source.scan()
            cfgs = {
                path.split("/")[0]: source.read_small(file)
                for path, file in tree.by_path.items()
                if path.endswith("/cfg")
            }
            layout = read_layout(
                source.read_small(tree.by_path["config.cfg"]),
                source.read_small(tree.by_path["meta.json"]),
                cfgs,
            )
            proofs = {file.path: proof_for(file.path, layout) for file in tree.files}
            settled = Settled(source=source, tree=tree, layout=layout, newest_ns=0, proofs=proofs)
            return plan(settled, contents=contents, component=component)


def paths(planned: Plan) -> list[str]:
    return [file.path for file in planned.files]


def test_pipeline_takes_every_file_as_it_is(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, pipe("ruler", "attribute_ruler"), tok2vec(), spancat())
    checkpoint.write("notes/what I did.txt", "x")

    planned = checkpoint.plan("pipeline")

    assert paths(planned) == sorted(
        str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()
    )
    assert all(file.source and file.proof and file.data is None for file in planned.files)
    assert planned.pipeline == ("ruler", "tok2vec", "spancat")
    assert planned.model_file == "spancat/model"
    assert (planned.labels, planned.spans_key, planned.threshold) == (("A", "B"), "sc", 0.5)


def test_component_takes_only_what_it_needs(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, pipe("ruler", "attribute_ruler"), tok2vec(), spancat())
    checkpoint.write("notes/what I did.txt", "x")

    planned = checkpoint.plan()

    assert paths(planned) == [
        "config.cfg",
        "meta.json",
        "spancat/cfg",
        "spancat/model",
        "tok2vec/model",
        "tokenizer",
        "vocab/strings.json",
    ]
    written = {file.path for file in planned.files if file.data is not None}
    assert written == {"config.cfg", "meta.json"}
    assert all((file.source is None) == (file.path in written) for file in planned.files)


def test_tokenizer_may_be_a_folder(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, tok2vec(), spancat())
    (tmp_path / "tokenizer").unlink()
    checkpoint.write("tokenizer/pkuseg_model/features.msgpack", "x")

    assert "tokenizer/pkuseg_model/features.msgpack" in paths(checkpoint.plan())


@pytest.mark.parametrize("contents", ["pipeline", "component", "standalone"])
def test_what_an_earlier_release_added_is_not_taken(contents: Contents, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, tok2vec(), spancat())
    checkpoint.write("model.bin", "old")
    checkpoint.write("release.json", "{}")
    checkpoint.write("vocab/release.json", "not ours")

    assert not {"model.bin", "release.json"} & set(paths(checkpoint.plan(contents)))
    assert "vocab/release.json" in paths(checkpoint.plan(contents))


def test_no_span_categorizer(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, tok2vec(), pipe("ner", "ner"))

    with pytest.raises(Rejected, match="has no span categorizer, only: tok2vec, ner") as refusal:
        checkpoint.plan("pipeline")
    assert refusal.value.where == str(tmp_path / "config.cfg")


def test_auto_with_two_names_both(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, tok2vec(), spancat(), spancat("other", key="b"))

    with pytest.raises(Rejected, match='2 span categorizers; set component to "spancat" or "other"'):
        checkpoint.plan("pipeline")
    assert checkpoint.plan("pipeline", "other").component == "other"
    assert checkpoint.plan("component", "other").pipeline == ("tok2vec", "other")


def test_unknown_name_lists_the_known(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, tok2vec(), spancat())

    with pytest.raises(Rejected, match=r"named 'tok2vec'; set component to \"spancat\""):
        checkpoint.plan("pipeline", "tok2vec")


def test_component_without_a_model_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, tok2vec(), spancat())
    (tmp_path / "spancat" / "model").unlink()

    with pytest.raises(Rejected, match="spancat/model: is missing"):
        checkpoint.plan("pipeline")


@pytest.mark.parametrize(("folder", "stale"), [("model-best", False), ("model-last", True), ("x", True)])
def test_only_the_best_models_scores_are_surely_its_own(folder: str, stale: bool, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / folder, tok2vec(), spancat())

    assert checkpoint.plan("pipeline").metrics == {"spans_sc_f": 0.5}
    assert checkpoint.plan("pipeline").metrics_may_be_stale is stale


def test_without_scores_none_are_stale(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "model-last", tok2vec(), spancat())
    checkpoint.write("meta.json", "{}")

    assert checkpoint.plan("pipeline").metrics_may_be_stale is False


PRESET = '@misc = "spacy.preset_spans_suggester.v1"\nspans_key = "found"'
FINDER = (
    'spans_key = "found"\n\n[components.finder.model]\n@architectures = "spacy.SpanFinder.v1"\n\n'
    '[components.finder.model.tok2vec]\n@architectures = "spacy.Tok2VecListener.v1"\nupstream = "second"\n'
)


def test_what_writes_the_suggested_spans_is_kept_with_what_it_needs(tmp_path: Path) -> None:
    sections = [
        tok2vec("second"),
        pipe("finder", "span_finder", FINDER),
        pipe("tagger", "tagger"),
        tok2vec(),
        spancat("first", key="found"),
        pipe("ruler", "span_ruler", 'spans_key = "else"'),
        spancat(suggester=PRESET),
    ]

    planned = Checkpoint(tmp_path, *sections).plan(component="spancat")

    assert planned.pipeline == ("second", "finder", "tok2vec", "first", "spancat")


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ([tok2vec(), spancat(suggester='@misc = "mine.v1"')], "what its suggester 'mine.v1' needs"),
        ([tok2vec(), spancat(suggester="sizes = [1]")], "what its suggester None needs"),
        ([tok2vec(), spancat(suggester=PRESET)], r"doc\.spans\['found'\], and it is not known which pipe"),
        (
            [tok2vec(), pipe("rules", "span_ruler", 'spans_key = "found"'), spancat(suggester=PRESET)],
            r"takes what 'rules' \(factory 'span_ruler'\) finds",
        ),
        (
            [tok2vec(embed='@architectures = "spacy.MultiHashEmbed.v2"\nattrs = ["NORM","POS"]'), spancat()],
            r"'tok2vec' can't be .* features \['POS'\]",
        ),
        (
            [spancat(tok2vec='@architectures = "spacy.CharacterEmbed.v2"\nfeature = "LEMMA"')],
            r"features \['LEMMA'\]",
        ),
        ([tok2vec(embed='@architectures = "mine.Embed.v1"'), spancat()], "architecture 'mine.Embed.v1'"),
        ([pipe("cut", "token_splitter"), tok2vec(), spancat()], r"'cut' \(factory 'token_splitter'\) runs"),
        (
            [tok2vec(), pipe("mine", "my_factory"), spancat()],
            r"'mine' \(factory 'my_factory'\) runs before it",
        ),
        ([tok2vec(), pipe("clean", "doc_cleaner"), spancat()], "'clean'"),
        (
            [
                tok2vec(),
                pipe("t", "tagger", "width = 1"),
                spancat(tok2vec=LISTENER + "\nwidth = ${components.t.width}"),
            ],
            r"width refers to \[components\.t\]",
        ),
    ],
)
def test_refused_with_a_way_out(sections: list[str], reason: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, *sections)

    with pytest.raises(Rejected, match=reason) as refusal:
        checkpoint.plan()
    assert 'contents = "pipeline"' in refusal.value.hint
    assert refusal.value.where == str(tmp_path / "config.cfg")
    assert checkpoint.plan("pipeline").component == "spancat"


def test_what_runs_after_it_or_not_at_all_does_not_matter(tmp_path: Path) -> None:
    sections = [pipe("off", "my_factory"), tok2vec(), spancat(), pipe("mine", "my_factory")]

    assert Checkpoint(tmp_path, *sections, disabled=("off",)).plan().pipeline == ("tok2vec", "spancat")


def test_references_are_followed(tmp_path: Path) -> None:
    sections = [
        tok2vec(embed='@architectures = "spacy.MultiHashEmbed.v2"\nattrs = ${vars.attrs}'),
        spancat() + '\n[vars]\nattrs = ["TAG"]\n',
    ]

    with pytest.raises(Rejected, match=r"features \['TAG'\]"):
        Checkpoint(tmp_path, *sections).plan()


@pytest.mark.parametrize(
    "patterns",
    [msgpack.packb([{"attrs": {"norm": "x"}}]), msgpack.packb([{"attrs": {67: "x"}}]), b"\xc1", None],
)
def test_ruler_that_may_set_norm_is_refused(patterns: bytes | None, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, pipe("ruler", "attribute_ruler"), tok2vec(), spancat())
    assert checkpoint.plan().pipeline == ("tok2vec", "spancat")
    if patterns is None:
        (tmp_path / "ruler" / "patterns").unlink()
    else:
        checkpoint.write("ruler/patterns", patterns)

    with pytest.raises(Rejected, match="ruler/patterns: may set NORM") as refusal:
        checkpoint.plan()
    assert refusal.value.where == str(tmp_path / "ruler" / "patterns")


def test_standalone_is_derived_only_from_what_listens(tmp_path: Path) -> None:
    listening = Checkpoint(
        tmp_path / "a",
        pipe("ruler", "attribute_ruler"),
        tok2vec("t2v"),
        spancat(tok2vec=LISTENER.replace("tok2vec", "t2v")),
    ).plan("standalone")
    alone = Checkpoint(tmp_path / "b", tok2vec(), spancat(tok2vec=EMBED)).plan("standalone")

    assert alone.derivation is None
    assert alone.pipeline == ("spancat",)
    assert listening.pipeline == ("t2v", "spancat")
    assert listening.derivation is not None
    assert (listening.derivation.upstream, listening.derivation.listener) == ("t2v", "model.tok2vec")


@pytest.mark.parametrize(
    ("upstream", "listener", "problem"),
    [
        (
            pipe("tok2vec", "transformer", '\n[components.tok2vec.model]\nname = "x"'),
            LISTENER.replace("spacy.Tok2Vec", "spacy-transformers.Transformer"),
            "it needs 'tok2vec' \\(factory 'transformer'\\), and can have a copy of a tok2vec only",
        ),
        (
            tok2vec(),
            LISTENER.replace("spacy.Tok2Vec", "spacy.Other"),
            "how it listens to 'tok2vec' is not known",
        ),
        (
            tok2vec(),
            LISTENER + f"\n\n[components.spancat.model.second]\n{LISTENER}",
            "how it listens to 'tok2vec' is not known",
        ),
    ],
)
def test_what_can_not_stand_alone(upstream: str, listener: str, problem: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, upstream, spancat(tok2vec=listener))
    checkpoint.plan("component")

    with pytest.raises(Rejected, match=f"'spancat' can't be made standalone: {problem}") as caught:
        checkpoint.plan("standalone")

    assert caught.value.where == f"{tmp_path}/config.cfg"
    assert 'contents = "component"' in caught.value.hint
