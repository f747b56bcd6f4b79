"""config.cfg, meta.json and cfg are read as spaCy reads them, and refused by name where they are broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confection import Config

from spancat_daemon.checkpoint.configuration import parse_config, resolve
from spancat_daemon.checkpoint.layout import Layout, expected_files, read_layout
from spancat_daemon.errors import Rejected

_LISTENER = "spacy.Tok2VecListener.v1"


def _config(**changes: dict[str, Any]) -> dict[str, Any]:
    """Components by name; the pipeline is all of them."""
    components: dict[str, Any] = changes or {
        "tok2vec": {"factory": "tok2vec", "model": {"@architectures": "spacy.Tok2Vec.v2"}},
        "spancat": _spancat("*"),
    }
    nlp = {"lang": "en", "pipeline": list(components), "tokenizer": {"@tokenizers": "spacy.Tokenizer.v1"}}
    return {"nlp": nlp, "components": components}


def _spancat(upstream: str | None = None, architecture: str = _LISTENER, **more: Any) -> dict[str, Any]:
    tok2vec = (
        {"@architectures": architecture, "width": 96} if upstream else {"@architectures": "spacy.Tok2Vec.v2"}
    )
    if upstream:
        tok2vec["upstream"] = upstream
    model = {"@architectures": "spacy.SpanCategorizer.v1", "tok2vec": tok2vec}
    return {"factory": "spancat", "spans_key": "sc", "threshold": 0.5, "model": model, **more}


def _layout(config: dict[str, Any], cfg: dict[str, Any] | None = None, **meta: Any) -> Layout:
    cfgs = {name: json.dumps(cfg or {"labels": ["A", "B"]}).encode() for name in config["components"]}
    return read_layout(Config(config).to_str().encode(), json.dumps(meta).encode(), cfgs)


def _listens_to(config: dict[str, Any], name: str = "spancat") -> tuple[str, ...]:
    return _layout(config).components[name].listens_to


def test_reads_what_a_pipeline_is() -> None:
    layout = _layout(
        _config(),
        {"labels": ["B", "A"], "spans_key": "xx", "threshold": 0.25},
        spacy_version=">=3.8.7,<3.9.0",
        performance={"spans_sc_f": 0.5},
        labels={"spancat": ["B", "A"]},
    )
    assert (layout.lang, layout.pipeline) == ("en", ("tok2vec", "spancat"))
    assert layout.spacy_version == ">=3.8.7,<3.9.0"
    assert layout.metrics == {"spans_sc_f": 0.5}
    (spancat,) = layout.span_categorizers
    # cfg counts, not config.cfg.
    assert (spancat.labels, spancat.spans_key, spancat.threshold) == (("B", "A"), "xx", 0.25)
    assert (spancat.width, spancat.listens_to) == (2, ("tok2vec",))
    assert expected_files(layout) == (
        *("tokenizer", "meta.json", "config.cfg"),
        *("tok2vec/cfg", "tok2vec/model", "spancat/cfg", "spancat/model"),
        *("vocab/strings.json", "vocab/vectors", "vocab/key2row", "vocab/vectors.cfg", "vocab/lookups.bin"),
    )


def test_what_is_not_spacys_is_not_expected() -> None:
    config = _config()
    config["nlp"]["tokenizer"] = {"@tokenizers": "spacy.ja.JapaneseTokenizer"}
    config["nlp"]["vectors"] = {"@vectors": "mine.v1"}
    files = expected_files(_layout(config))
    assert "tokenizer" not in files
    assert files[-2:] == ("vocab/strings.json", "vocab/lookups.bin")
    # Older ones say nothing of vectors: then they are spaCy's.
    assert "vocab/vectors" in expected_files(_layout(_config()))


def test_widths_of_both_factories() -> None:
    single = _spancat() | {"factory": "spancat_singlelabel"}
    assert [c.width for c in _layout(_config(one=_spancat(), two=single)).span_categorizers] == [2, 3]
    own = _spancat() | {"model": {"@architectures": "mine.SpanCategorizer.v1"}}
    assert [c.width for c in _layout(_config(one=own)).span_categorizers] == [None]


def test_listeners_by_name_and_by_star() -> None:
    tok2vec = {"factory": "tok2vec", "model": {"@architectures": "spacy.Tok2Vec.v2"}}
    transformer = {"factory": "transformer", "model": {"@architectures": "x"}}
    curated = {"factory": "curated_transformer", "model": {"@architectures": "x"}}
    rest: Any = {"one": tok2vec, "roberta": transformer, "bert": curated, "two": tok2vec}
    for upstream, architecture, found in [
        ("two", _LISTENER, ("two",)),
        ("*", _LISTENER, ("one", "two")),
        ("*", "spacy-transformers.TransformerListener.v1", ("roberta",)),
        ("*", "spacy-curated-transformers.LastTransformerLayerListener.v1", ("bert",)),
        ("*", "mine.SomeListener.v1", ("one", "roberta", "bert", "two")),
        ("*", "spacy.Tok2Vec.v2", ()),
    ]:
        assert _listens_to(_config(**rest, spancat=_spancat(upstream, architecture))) == found
    # What comes later can't be listened to.
    assert _listens_to(_config(one=tok2vec, spancat=_spancat("*"), two=tok2vec)) == ("one",)


def test_a_listener_in_any_section_counts() -> None:
    config = _config()
    spancat = config["components"]["spancat"]
    spancat["model"]["tok2vec"] = {"@architectures": "x", "layers": [{"deep": {"@architectures": _LISTENER}}]}
    assert _listens_to(config) == ("tok2vec",)


@pytest.mark.parametrize("upstream", ["gone", "later", "*"])
def test_a_span_categorizer_without_its_upstream_would_predict_nothing(upstream: str) -> None:
    later = {"factory": "sentencizer"}
    with pytest.raises(Rejected, match="listens to") as caught:
        _layout(_config(spancat=_spancat(upstream), later=later))
    assert caught.value.where == "config.cfg"


def test_references_are_followed_where_they_matter() -> None:
    text = """
[vars]
name = "tok2vec"
pipes = ["tok2vec","spancat"]
ring = ${vars.ring}
[nlp]
lang = "en"
pipeline = ${vars.pipes}
[components]
[components.tok2vec]
factory = "tok2vec"
[components.tok2vec.model]
@architectures = "spacy.Tok2Vec.v2"
[components.spancat]
factory = "spancat"
spans_key = ${vars:name}
model = ${shared}
[shared]
@architectures = "spacy.SpanCategorizer.v1"
[shared.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
upstream = "${vars.name}"
"""
    layout = read_layout(text.encode(), b"{}", {"spancat": b'{"labels":["A"]}'})
    (spancat,) = layout.span_categorizers
    assert (spancat.spans_key, spancat.listens_to, spancat.width) == ("tok2vec", ("tok2vec",), 1)
    assert spancat.has_model
    assert layout.config["components"]["spancat"]["model"] == "${shared}"
    assert resolve(layout.config, "${vars.ring}") == "${vars.ring}"
    assert resolve(layout.config, "${vars.none}") == "${vars.none}"
    assert resolve(layout.config, "5 $$") == "5 $"


_AS_CONFECTION = """
[nlp]
lang = "en"
pipeline = []
# a comment
number = 1e-08
nothing = null
yes = true
No = False
none = None
text = not json
list = [1,"two",{"three":3}]
unicode = "späns \\u00fc"
inline = {"@layers":"reduce_mean.v1"}
colon: "value"

[nlp.a]

[nlp.a.b]
Case = "kept"

[nlp.a.*.c]
x = 1
"""


def test_values_are_read_as_confection_reads_them() -> None:
    assert parse_config(_AS_CONFECTION.encode()) == Config().from_str(_AS_CONFECTION, interpolate=False)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x00\xff\xfe binary",
        b"\x80\x02}q\x00.",
        b"just text",
        b"[nlp]\nlang",
        b'[nlp]\nlang = "en"\n[nlp]\n',
        b'[nlp]\nlang = "en"\nlang = "de"\n',
        b"[paths]\n",
        b"[nlp]\na = 1\n[nlp.a]\n",
        b'[nlp]\npipeline = ["spancat"',
        b'[nlp]\nlang = "e',
        b"a = 1\n[nlp]\n",
        b"[nlp",
        b"nlp = {}",
        b"[" * 100_000,
        b"[nlp]\nx = " + b"[" * 100_000,
    ],
)
def test_what_is_no_configuration_is_refused(text: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read_layout(text, b"{}", {})
    assert caught.value.where == "config.cfg"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "nlp",
    [
        {"pipeline": []},
        {"lang": 5, "pipeline": []},
        {"lang": "en"},
        {"lang": "en", "pipeline": "spancat"},
        {"lang": "en", "pipeline": [5]},
        {"lang": "en", "pipeline": ["gone"]},
        {"lang": "en", "pipeline": ["tok2vec", "tok2vec"]},
        {"lang": "en", "pipeline": "${gone}"},
    ],
)
def test_a_pipeline_that_is_none_is_refused(nlp: dict[str, Any]) -> None:
    config = _config()
    config["nlp"] = nlp
    with pytest.raises(Rejected) as caught:
        _layout(config)
    assert caught.value.where == "config.cfg"


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc", "a/b", "vocab", "meta.json", "x" * 300, "a\nb"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    config = _config()
    config["nlp"]["pipeline"] = [name]
    with pytest.raises(Rejected, match="directory"):
        _layout(config)


@pytest.mark.parametrize("section", [{}, {"factory": 5}, {"source": "en_core_web_sm"}])
def test_a_component_without_a_factory_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="factory"):
        _layout(_config(strange=section))


@pytest.mark.parametrize("meta", [b"", b"[]", b'{"lang":', b"null", b"{}{}"])
def test_a_broken_meta_is_refused(meta: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        read_layout(Config(_config()).to_str().encode(), meta, {})
    assert caught.value.where == "meta.json"


@pytest.mark.parametrize(
    "cfg",
    [
        {"labels": []},
        {"labels": "A"},
        {"labels": ["A", 5]},
        {"labels": ["A", "A"]},
        {"spans_key": "sc"},
        {"labels": ["A"], "spans_key": 5},
        {"labels": ["A"], "threshold": "high"},
        {"labels": ["A"], "threshold": True},
    ],
)
def test_a_broken_cfg_is_refused(cfg: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        _layout(_config(), cfg)
    assert caught.value.where == "spancat/cfg"


def test_cfg_must_be_there_and_whole() -> None:
    config = Config(_config()).to_str().encode()
    for cfgs in ({}, {"spancat": b""}, {"spancat": b'{"labels":["A"'}, {"spancat": b"[]"}):
        with pytest.raises(Rejected) as caught:
            read_layout(config, b"{}", cfgs)
        assert caught.value.where == "spancat/cfg"


def test_labels_must_be_those_of_meta_in_the_same_order() -> None:
    assert _layout(_config(), labels={"spancat": ["A", "B"], "other": []}).span_categorizers
    for labels in (["B", "A"], ["A"], []):
        with pytest.raises(Rejected, match=r"meta\.json"):
            _layout(_config(), labels={"spancat": labels})


def test_a_pipeline_without_a_span_categorizer_is_a_layout_too() -> None:
    assert _layout(_config(sentencizer={"factory": "sentencizer"})).span_categorizers == ()
