"""Streaming proofs for what spaCy writes as msgpack: one complete value, and nothing after it."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # it ships without types

from spancat_daemon.errors import Rejected

MAX_VALUE_BYTES = 256 << 20
"""Largest single string in msgpack of many small values (tokenizer, tables); real ones have kilobytes."""

MAX_MODEL_VALUES = 5_000_000
"""Most values (numbers, strings, arrays …) of a model file. A big transformer has some 20,000: a matrix is
one. Five million of them take a few seconds; gigabytes of one-byte values would take hours."""

MAX_DEPTH = 512
"""Deepest nesting of msgpack, as msgpack's own limit; thinc needs about ten."""

_HEAD_BYTES = 512 << 10  # the first node of a model: its name lists all layers, some kilobytes in big ones
_FEED_BYTES = 1 << 20


class MsgpackProof:
    """One msgpack value, nothing after it; made of many small values (C speed, each held in memory)."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_VALUE_BYTES)
        self._fed = 0
        self._done = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        for start in range(0, len(chunk), _FEED_BYTES):
            piece = chunk[start : start + _FEED_BYTES]
            self._fed += len(piece)
            if not self._done:
                self._advance(piece)
            if self._done and self._unpacker.tell() < self._fed:
                raise Rejected("goes on after the end of its msgpack: it is a mix of two files")

    def finish(self) -> None:
        """Complete or cut off."""
        if not self._done:
            raise Rejected("is cut off: its msgpack is not complete")

    def _advance(self, piece: bytes) -> None:
        try:
            self._unpacker.feed(piece)
            # Resumes in the middle of the value: what was consumed is not looked at (or kept) again.
            self._unpacker.skip()
        except msgpack.OutOfData:
            return
        except msgpack.BufferFull:
            raise Rejected(f"holds a value of more than {MAX_VALUE_BYTES:,} bytes") from None
        except (msgpack.UnpackException, ValueError) as error:
            detail = "nested too deeply" if isinstance(error, msgpack.StackError) else "an unknown type"
            raise Rejected(f"is not msgpack: {detail}") from None
        self._done = True


# First byte → (bytes of the length that follows, bytes of payload beside it, values inside per counted one).
# Strings and binaries have a payload of their length, containers hold values; ext carries one byte of type.
_LENGTHS = {
    0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0),
    0xC7: (1, 1, 0), 0xC8: (2, 1, 0), 0xC9: (4, 1, 0),
    0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0),
    0xDC: (2, 0, 1), 0xDD: (4, 0, 1), 0xDE: (2, 0, 2), 0xDF: (4, 0, 2),
}  # fmt: skip
_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip


def _without_length(first: int) -> tuple[int, int] | None:
    """Payload and values inside of what begins with this byte, where that byte tells both."""
    if first <= 0x7F or first >= 0xE0:
        return 0, 0
    if first <= 0x8F:
        return 0, 2 * (first & 0x0F)
    if first <= 0x9F:
        return 0, first & 0x0F
    if first <= 0xBF:
        return first & 0x1F, 0
    return (_FIXED[first], 0) if first in _FIXED else None


def _with_length(first: int, chunk: bytes, position: int) -> tuple[int, int, int] | None:
    """Payload, values inside, and where the header at `position` ends; None: in the next chunk."""
    if first not in _LENGTHS:
        raise Rejected("is not msgpack: an unknown type")
    size, beside, factor = _LENGTHS[first]
    start, end = position + 1, position + 1 + size
    if end > len(chunk):
        return None
    count = int.from_bytes(chunk[start:end])
    return (0, factor * count, end) if factor else (count + beside, 0, end)


_WITHOUT_LENGTH = tuple(_without_length(first) for first in range(256))

_THINC_MODEL = b"\x84\xa5nodes"  # a map of four, the first key is "nodes"


class ModelProof:
    """A thinc model (`Model.to_bytes`): msgpack of few values, some of which have gigabytes.

    It walks the values itself and passes over their payload by count, so that no byte of it is copied. The
    first entry of a model is ``nodes``, the first node the whole network: its ``nO`` is the output width.

    Args:
        width: the output width it must have; None: don't insist.
        strict: whether it must be such a model; else a file that does not begin like one may be anything.
    """

    def __init__(self, width: int | None = None, *, strict: bool = True) -> None:
        self._width = width
        self._strict = strict
        self._head = bytearray()
        self._carry = b""
        self._payload = 0
        self._values = 0
        # Values still to come: in the innermost open container; in those around it, the file itself first.
        self._remaining = 1
        self._open: list[int] = []

    def feed(self, chunk: bytes) -> None:  # noqa: C901  # a call for each value would take longer than all else
        """Take the next bytes."""
        if len(self._head) < _HEAD_BYTES:
            self._head += chunk[: _HEAD_BYTES - len(self._head)]
        if not self._strict and not self._head.startswith(_THINC_MODEL[: len(self._head)]):
            return
        if self._carry:
            # At most five bytes are carried: the start of a header.
            chunk, self._carry = self._carry + chunk, b""
        # A model has hundreds of values, and more: what is done for each is done on locals.
        position, length = self._payload, len(chunk)
        values, remaining, opened = self._values, self._remaining, self._open
        while position < length:
            if not remaining:
                raise Rejected("goes on after the end of its msgpack: it is a mix of two files")
            first = chunk[position]
            known = _WITHOUT_LENGTH[first]
            if known is not None:
                position += 1
                payload, inside = known
            else:
                found = _with_length(first, chunk, position)
                if found is None:
                    self._carry = chunk[position:]
                    position = length
                    break
                payload, inside, position = found
            values += 1
            if values > MAX_MODEL_VALUES:
                raise Rejected(f"holds more than {MAX_MODEL_VALUES:,} values, so it is not a model")
            remaining -= 1
            if inside:
                opened.append(remaining)
                remaining = inside
                if len(opened) >= MAX_DEPTH:
                    raise Rejected("is not msgpack: nested too deeply")
            while not remaining and opened:
                remaining = opened.pop()
            position += payload
        self._values, self._remaining = values, remaining
        self._payload = position - length

    def finish(self) -> None:
        """Complete or cut off; then the output width."""
        if self._head and not self._strict and not self._head.startswith(_THINC_MODEL):
            return
        if self._remaining or self._payload or self._carry:
            raise Rejected("is cut off: its msgpack is not complete")
        if self._width is None:
            return
        width = self._output_width()
        if width is not None and width != self._width:
            raise Rejected(
                f"its output has {width} columns, where its labels need {self._width}",
                hint="the files are of different generations: save the pipeline again",
            )

    def _output_width(self) -> int | None:
        """The root node's nO; None if the network does not know it (its last layer is not spaCy's own)."""
        unpacker = msgpack.Unpacker(max_buffer_size=_HEAD_BYTES, strict_map_key=False, raw=True)
        unpacker.feed(bytes(self._head))
        try:
            if not unpacker.read_map_header() or unpacker.unpack() != b"nodes":
                raise Rejected("is not a thinc model: it does not begin with its nodes")
            if not unpacker.read_array_header():
                raise Rejected("is not a thinc model: it has no nodes")
            root = unpacker.unpack()
        except msgpack.OutOfData:
            return None  # a first node longer than the head that is kept
        except (msgpack.UnpackException, ValueError, TypeError):
            raise Rejected("is not a thinc model: its first node can't be read") from None
        dims = root.get(b"dims") if isinstance(root, dict) else None
        width = dims.get(b"nO") if isinstance(dims, dict) else None
        return width if isinstance(width, int) else None
