"""Proofs accept exactly whole files, however they come in chunks, and survive whatever they are fed."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgpack  # type: ignore[import-untyped]  # it ships without types
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spancat_daemon.checkpoint import msgpack_proof, wholeness
from spancat_daemon.checkpoint.layout import read_layout
from spancat_daemon.checkpoint.msgpack_proof import ModelProof, MsgpackProof
from spancat_daemon.checkpoint.wholeness import (
    AnyProof,
    ConfigProof,
    JsonLinesProof,
    JsonProof,
    NpyProof,
    proof_for,
)
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from spancat_daemon.checkpoint.wholeness import Proof

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=40,
)


def _why_not(proof: Proof, chunks: Iterable[bytes]) -> str | None:
    try:
        for chunk in chunks:
            proof.feed(chunk)
        proof.finish()
    except Rejected as error:
        return str(error)
    return None


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _is_one_value(data: bytes) -> bool:
    """What msgpack itself says."""
    unpacker = msgpack.Unpacker(io.BytesIO(data))
    try:
        unpacker.skip()
    except (msgpack.OutOfData, ValueError, msgpack.UnpackException):
        return False
    return bool(unpacker.tell() == len(data))


@pytest.mark.parametrize("proof", [MsgpackProof, ModelProof])
@settings(deadline=None, max_examples=150)
@given(
    value=_VALUES, size=st.integers(1, 50), cut=st.integers(1, 1000), more=st.binary(min_size=1, max_size=3)
)
def test_msgpack_is_whole_only_whole(
    proof: Callable[[], Proof], value: Any, size: int, cut: int, more: bytes
) -> None:
    data = msgpack.packb(value)
    assert _why_not(proof(), _cut(data, size)) is None
    assert _why_not(proof(), _cut(data[: -min(cut, len(data))], size)) is not None
    assert _why_not(proof(), _cut(data + more, size)) is not None


@pytest.mark.parametrize("proof", [MsgpackProof, ModelProof])
@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=60), size=st.integers(1, 70))
@example(data=b"", size=1)
@example(data=b"\xc1", size=1)
@example(data=b"\xc7\x02\x01ab", size=1)
@example(data=b"\xd8" + b"x" * 17, size=2)
@example(data=b"\xc8\x00\x01\x01a", size=1)
def test_any_bytes_are_judged_as_msgpack_does(proof: Callable[[], Proof], data: bytes, size: int) -> None:
    assert (_why_not(proof(), _cut(data, size)) is None) == _is_one_value(data)


_BOMBS = {
    "deep arrays": b"\x91" * 3_000_000,
    "deep maps": b"\x81\xc0" * 1_500_000,
    "four billion values": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 150_000,
    "four billion pairs": b"\xdf\xff\xff\xff\xff" * 500_000,
    "four gigabytes": b"\xc6\xff\xff\xff\xff" + b"x" * 700_000,
    "many empty ones": b"\xdd\x00\x02\x49\xf0" + b"\x90" * 149_999,
}


@pytest.mark.parametrize("proof", [MsgpackProof, ModelProof])
@pytest.mark.parametrize("bomb", _BOMBS)
def test_bombs_are_refused_in_little_memory(proof: Callable[[], Proof], bomb: str) -> None:
    chunks = _cut(_BOMBS[bomb], 1 << 18)
    with _memory_below(4 << 20):
        assert _why_not(proof(), chunks) is not None


def test_a_model_of_too_many_values_is_refused_before_it_takes_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgpack_proof, "MAX_MODEL_VALUES", 1000)
    assert _why_not(ModelProof(), [msgpack.packb([0] * 999)]) is None
    assert "more than 1,000 values" in (_why_not(ModelProof(), [msgpack.packb([0] * 1000)]) or "")


def test_gigabytes_of_weights_pass_without_being_kept() -> None:
    head = b"\x84\xa5nodes\x91\x81\xa4dims\x81\xa2nO\x03\xa5attrs\x90\xa6params\x91\xc6\xff\xff\xff\xff"
    chunk = bytes(16 << 20)
    last = chunk[:-1]
    with _memory_below(2 << 20):
        assert _why_not(ModelProof(3), [head, *[chunk] * 255, last, b"\xa5shims\x90"]) is None


def test_tables_pass_without_being_kept() -> None:
    chunk = msgpack.packb(list(range(2**40, 2**40 + 100_000)))[5:] * 4  # 400,000 values
    with _memory_below(16 << 20):
        assert _why_not(MsgpackProof(), [struct.pack(">BI", 0xDD, 8_000_000), *[chunk] * 20]) is None


@contextmanager
def _memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def _model(width: object = 3, nodes: object = None) -> bytes:
    root = {"index": 0, "name": "net", "dims": {"nI": None, "nO": width}, "refs": {}}
    model = {"nodes": [root] if nodes is None else nodes, "attrs": [{}], "params": [{}], "shims": [[]]}
    return bytes(msgpack.packb(model))


def test_the_output_width_is_what_the_labels_need() -> None:
    assert _why_not(ModelProof(3), _cut(_model(), 5)) is None
    assert "3 columns" in (_why_not(ModelProof(4), [_model()]) or "")
    assert _why_not(ModelProof(None), [_model()]) is None
    # A last layer that isn't spaCy's may not say.
    assert _why_not(ModelProof(4), [_model(None)]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x90",
        b"\x01",
        msgpack.packb({"nodes": []}),
        msgpack.packb({"params": [], "nodes": [{"dims": {"nO": 3}}]}),
        msgpack.packb({"nodes": 5}),
    ],
)
def test_what_is_no_model_is_refused_where_one_is_needed(data: bytes) -> None:
    assert _why_not(ModelProof(3), [data]) is not None
    assert _why_not(ModelProof(None), [data]) is None


@pytest.mark.parametrize("nodes", [[5], [{"dims": 5}], [{"dims": {"nO": "three"}}], [{b"x" * 600_000: 1}]])
def test_an_odd_first_node_is_not_insisted_on(nodes: object) -> None:
    assert _why_not(ModelProof(3), [_model(nodes=nodes)]) is None


def test_a_model_of_an_unknown_factory_may_be_anything_but_a_cut_off_model() -> None:
    def proof() -> ModelProof:
        return ModelProof(None, strict=False)

    assert _why_not(proof(), [b"PK\x03\x04 whatever"]) is None
    assert _why_not(proof(), _cut(_model(), 3)) is None
    assert _why_not(proof(), _cut(_model()[:-1], 3)) is not None
    assert _why_not(proof(), []) is not None


def test_a_value_larger_than_memory_should_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgpack_proof, "MAX_VALUE_BYTES", 4 << 20)
    data = msgpack.packb([b"x" * (3 << 20)] * 3)
    assert _why_not(MsgpackProof(), _cut(data, 64 << 10)) is None
    data = msgpack.packb(b"x" * (5 << 20))
    assert "more than" in (_why_not(MsgpackProof(), _cut(data, 64 << 10)) or "")


def _npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


_ARRAYS = [
    np.zeros((0, 0), "f4"),
    np.zeros((3, 5), "<f4"),
    np.zeros((7,), ">f8"),
    np.zeros((), "i1"),
    np.zeros((2, 3, 4), "f2"),
    np.asfortranarray(np.zeros((20, 300), "f4")),
]


@pytest.mark.parametrize("version", [None, (1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", _ARRAYS, ids=lambda array: f"{array.shape}{array.dtype}")
def test_npy_is_whole_only_whole(array: np.ndarray[Any, Any], version: tuple[int, int] | None) -> None:
    data = _npy(array, version)
    for size in (1, 11, 127, 1 << 20):
        assert _why_not(NpyProof(), _cut(data, size)) is None
        for length in (0, 5, 11, 60, len(data) - 1):
            assert _why_not(NpyProof(), _cut(data[:length], size)) is not None
        assert _why_not(NpyProof(), _cut(data + b"\x00", size)) is not None


def _header(text: str, length: int | None = None) -> bytes:
    data = text.encode("latin-1")
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(data) if length is None else length) + data


@pytest.mark.parametrize(
    "data",
    [
        b"not numpy at all",
        b"\x93NUMPY\x09\x00" + bytes(20),
        _header("{'descr': '<f4', 'shape': (2,)", None),
        _header("{'descr': '|O', 'fortran_order': False, 'shape': (0,)}"),
        _header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,)}"),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': 5}"),
        _header("{'descr': '<f4', 'fortran_order': False}"),
        _header("__import__('os').abort()"),
        _header("(" * 9000),
        _header("-" * 9000 + "1"),
        _header("[" * 90 + "]" * 90),
        _header("{'a':" * 900),
        _header("x", 1 << 31),
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (281474976710655,) * 1000}"),
    ],
)
def test_a_hostile_npy_is_refused(data: bytes) -> None:
    assert _why_not(NpyProof(), _cut(data, 4096)) is not None


def test_an_npy_of_a_size_that_no_disk_holds_is_cut_off() -> None:
    shape = ", ".join(["281474976710655"] * 100)
    data = _header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape})}}")
    assert "cut off" in (_why_not(NpyProof(), [data, bytes(100)]) or "")


def test_json_is_whole_only_whole() -> None:
    data = json.dumps({"labels": ["ORG", "GÜTER"], "x": [1, 2.5, None]}).encode()
    assert _why_not(JsonProof(), _cut(data, 3)) is None
    assert _why_not(JsonProof(), _cut(data + b"\n", 3)) is None
    for length in range(len(data)):
        assert _why_not(JsonProof(), [data[:length]]) is not None
    assert _why_not(JsonProof(), [data, b"}"]) is not None
    assert _why_not(JsonProof(), [b"[" * 1_000_000]) is not None
    assert _why_not(JsonProof(), [b"\xff"]) is not None


def test_json_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wholeness, "MAX_JSON_BYTES", 100)
    assert _why_not(JsonProof(), [b"[" + b"1," * 40, b"1]"]) is None
    assert "never read" in (_why_not(JsonProof(), [b"[" + b"1," * 40, b"1," * 40 + b"1]"]) or "")
    assert _why_not(JsonLinesProof(), [b"[1]\n" * 40]) is None
    assert "never read" in (_why_not(JsonLinesProof(), [b"[1,"] * 40) or "")


def test_json_lines_are_whole_line_by_line() -> None:
    data = b'{"label":"ORG"}\n{"label":"PLACE"}\n'
    for size in (1, 7, 100):
        assert _why_not(JsonLinesProof(), _cut(data, size)) is None
        assert _why_not(JsonLinesProof(), _cut(data[:-3], size)) is not None
        assert _why_not(JsonLinesProof(), _cut(data[:5] + b"\n" + data, size)) is not None
    assert _why_not(JsonLinesProof(), []) is None


def test_config_must_parse() -> None:
    assert _why_not(ConfigProof(), [b"[nlp]\nlang = ", b'"en"\n']) is None
    assert _why_not(ConfigProof(), [b'[nlp]\nlang = "e']) is not None
    assert _why_not(ConfigProof(), [b"[nl"]) is not None
    # configparser alone would take hours for this one.
    assert _why_not(ConfigProof(), [b"[nlp]\na" + b" " * 3_000_000 + b"b"]) is not None
    assert _why_not(ConfigProof(), [b"x" * 5_000_000]) is not None


def test_each_file_gets_the_proof_of_its_kind() -> None:
    config = b"""
[nlp]
lang = "en"
pipeline = ["spancat","ner","ruler","attributes","strange"]
[components.spancat]
factory = "spancat"
spans_key = "sc"
[components.spancat.model]
@architectures = "spacy.SpanCategorizer.v1"
[components.ner]
factory = "ner"
[components.ner.model]
@architectures = "x"
[components.ruler]
factory = "span_ruler"
[components.attributes]
factory = "attribute_ruler"
[components.strange]
factory = "strange"
[components.strange.model]
@architectures = "x"
"""
    layout = read_layout(config, b"{}", {"spancat": b'{"labels":["A"]}'})
    expected = {
        "tokenizer": MsgpackProof,
        "meta.json": JsonProof,
        "config.cfg": ConfigProof,
        "spancat/cfg": JsonProof,
        "spancat/model": ModelProof,
        "ner/moves": MsgpackProof,
        "ruler/patterns": JsonLinesProof,
        "attributes/patterns": MsgpackProof,
        "strange/cfg": AnyProof,
        "strange/model": ModelProof,
        "vocab/strings.json": JsonProof,
        "vocab/vectors": NpyProof,
        "vocab/key2row": MsgpackProof,
        "vocab/lookups.bin": MsgpackProof,
        "README.json": AnyProof,
        "notes/model": AnyProof,
    }
    assert {path: type(proof_for(path, layout)()) for path in expected} == expected
    one_label = _model(1)
    assert _why_not(proof_for("spancat/model", layout)(), [one_label]) is None
    assert _why_not(proof_for("spancat/model", layout)(), [_model(2)]) is not None
    assert _why_not(proof_for("ner/model", layout)(), [_model(2)]) is None
