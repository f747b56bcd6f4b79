"""Streaming proofs that a file is whole, fed with its bytes as they are copied.

Each takes constant memory, or memory bounded by a constant here, whatever the bytes claim about themselves:
a checkpoint is foreign data, and its files can be cut off anywhere.
"""

from __future__ import annotations

import ast
import hashlib
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import orjson

from spancat_daemon import frugal_json
from spancat_daemon.checkpoint.configuration import MAX_CONFIG_BYTES, parse_config
from spancat_daemon.checkpoint.layout import PARSERS, TRAINABLE, SpanCategorizer, expected_files
from spancat_daemon.checkpoint.msgpack_proof import ModelProof, MsgpackProof
from spancat_daemon.errors import Rejected

if TYPE_CHECKING:
    from spancat_daemon.checkpoint.layout import Component, Layout

MAX_JSON_BYTES = 256 << 20
"""orjson needs a document in one piece. The largest one, vocab/strings.json, has about 25 bytes a word: this
is ten million words."""

MAX_JSON_VALUES = 12_000_000
"""That many words, some with a comma. Anything else of so many values would take gigabytes to read."""

_NPY_HEAD_BYTES = 10_016  # and its own length before it
_MAX_NPY_HEADER = 10_000  # as numpy itself; headers of plain arrays have 128 bytes


class Proof(Protocol):
    """A proof under way for one file. Errors don't know the file's path: the caller adds it."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; raises `Rejected` as soon as they can't belong to a whole file."""
        ...

    def finish(self) -> None:
        """The file ends here; raises `Rejected` with the reason if it is not whole."""
        ...


ProofFactory = Callable[[], Proof]
"""Begins a new proof: one file can be read several times (a retry)."""


def proof_for(path: str, layout: Layout) -> ProofFactory:
    """The proof for the file at ``path`` (relative) of a checkpoint with this layout.

    What spaCy's own code writes is known by name. Other files prove nothing by themselves: the order of times
    and the comparison before and after the copy guard them alone.
    """
    directory, _, below = path.partition("/")
    component = layout.components.get(directory)
    if component is not None:
        return _component_proof(component, below)
    if path in expected_files(layout):
        return _PIPELINE_FILES.get(path, JsonProof)  # else it is a sentencizer's, beside the directories
    return AnyProof


def _component_proof(component: Component, name: str) -> ProofFactory:
    if name == "model" and component.has_model:
        # A factory that nobody knows here may well write something else than thinc's format under this name.
        strict = component.factory in TRAINABLE or "transformer" in component.factory
        width = component.width if isinstance(component, SpanCategorizer) else None
        return partial(ModelProof, width, strict=strict)
    if name == "cfg" and component.factory in TRAINABLE:
        return JsonProof
    if name == "moves" and component.factory in PARSERS:
        return MsgpackProof
    return _FACTORY_FILES.get((component.factory, name), AnyProof)


class AnyProof:
    """Any bytes will do."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""

    def finish(self) -> None:
        """The file ends here."""


class DigestProof:
    """The bytes are those that somebody promised, and what else is to be proven of them holds.

    Args:
        sha256: what was promised.
        promised_by: the name of the file that did.
        also: another proof of the same bytes.
    """

    def __init__(self, sha256: str, *, promised_by: str = "the manifest", also: Proof | None = None) -> None:
        self._promised = sha256
        self._promised_by = promised_by
        self._also = also
        self._digest = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._digest.update(chunk)
        if self._also is not None:
            self._also.feed(chunk)

    def finish(self) -> None:
        """Compare."""
        if self._also is not None:
            self._also.finish()
        if self._digest.hexdigest() != self._promised:
            raise Rejected(f"is not what {self._promised_by} says any more")


class JsonProof:
    """One JSON document, nothing after it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if len(self._data) + len(chunk) > MAX_JSON_BYTES:
            raise Rejected(f"is JSON of more than {MAX_JSON_BYTES:,} bytes, which is never read")
        self._data += chunk

    def finish(self) -> None:
        """Parse it."""
        data, self._data = self._data, bytearray()
        try:
            frugal_json.loads(data, most_values=MAX_JSON_VALUES)
        except orjson.JSONDecodeError as error:
            raise Rejected(f"is not whole JSON: {error.msg}") from None
        except ValueError as error:
            raise Rejected(f"holds {error}") from None


class JsonLinesProof:
    """A JSON document on each line; the last one ends with a line break, as srsly writes it."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._line += line
            self._parse()
        if len(self._line) + len(rest) > MAX_JSON_BYTES:
            raise Rejected(f"has a line of more than {MAX_JSON_BYTES:,} bytes, which is never read")
        self._line += rest

    def finish(self) -> None:
        """A last line without its end counts if it is whole."""
        self._parse()

    def _parse(self) -> None:
        line, self._line = self._line, bytearray()
        if not line.strip():
            return
        try:
            frugal_json.loads(line)
        except orjson.JSONDecodeError as error:
            raise Rejected(f"has a line that is not whole JSON: {error.msg}") from None
        except ValueError as error:
            raise Rejected(f"has a line of {error}") from None


class NpyProof:
    """One numpy array (``.npy``): header and exactly as many bytes as its shape needs."""

    def __init__(self) -> None:
        self._head: bytearray | None = bytearray()
        self._missing = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._head is None:
            self._missing -= len(chunk)
        else:
            self._head += chunk[:_NPY_HEAD_BYTES]
            start = self._start()
            if start is None:
                return
            header, size = start
            before = len(self._head) - min(len(chunk), _NPY_HEAD_BYTES)
            self._missing = header + size - before - len(chunk)
            self._head = None
        if self._missing < 0:
            raise Rejected("is longer than its header says: it is a mix of two files")

    def finish(self) -> None:
        """Complete or cut off."""
        if self._head is not None or self._missing:
            raise Rejected("is cut off: shorter than its header says")

    def _start(self) -> tuple[int, int] | None:
        """Bytes of the header and of the array; None while the header is not complete."""
        head = self._head or b""
        if not b"\x93NUMPY".startswith(head[:6]):
            raise Rejected("is not a numpy array")
        if len(head) < 12:
            return None
        if head[6] == 1:
            length, begin = struct.unpack_from("<H", head, 8)[0], 10
        elif head[6] in {2, 3}:
            length, begin = struct.unpack_from("<I", head, 8)[0], 12
        else:
            raise Rejected("is a numpy array of an unknown version")
        if length > _MAX_NPY_HEADER:
            raise Rejected("is a numpy array with an oversized header")
        if len(head) < begin + length:
            return None
        return begin + length, _array_bytes(bytes(head[begin : begin + length]))


def _array_bytes(header: bytes) -> int:
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
        shape, kind = fields["shape"], re.fullmatch(r"[<>=|]?[biufc](\d{1,2})", fields["descr"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise Rejected("is a numpy array with a broken header") from None
    if (
        kind is None
        or not isinstance(shape, tuple)
        or not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in shape)
    ):
        raise Rejected("is not a plain table of numbers")
    total = int(kind[1])
    for n in shape:
        total *= n
    return total


class ConfigProof:
    """A config.cfg that parses."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if len(self._data) + len(chunk) > MAX_CONFIG_BYTES:
            raise Rejected(f"is larger than {MAX_CONFIG_BYTES:,} bytes")
        self._data += chunk

    def finish(self) -> None:
        """Parse it."""
        try:
            parse_config(bytes(self._data))
        except Rejected as error:
            raise Rejected(error.reason, hint=error.hint) from None


_PIPELINE_FILES: dict[str, ProofFactory] = {
    "tokenizer": MsgpackProof,
    "meta.json": JsonProof,
    "config.cfg": ConfigProof,
    "vocab/strings.json": JsonProof,
    "vocab/vectors": NpyProof,
    "vocab/key2row": MsgpackProof,
    "vocab/vectors.cfg": JsonProof,
    "vocab/lookups.bin": MsgpackProof,
}

# What spaCy's pipes write beside cfg and model.
_FACTORY_FILES: dict[tuple[str, str], ProofFactory] = {
    ("attribute_ruler", "patterns"): MsgpackProof,
    ("entity_ruler", "cfg"): JsonProof,
    ("entity_ruler", "patterns.jsonl"): JsonLinesProof,
    ("lemmatizer", "lookups/lookups.bin"): MsgpackProof,
    ("span_ruler", "patterns"): JsonLinesProof,
}
