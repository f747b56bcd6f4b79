"""Durations and sizes as people write them: ``"500ms"``, ``"5m"``, ``"4GiB"``."""

from __future__ import annotations

import re
from decimal import Decimal
from types import MappingProxyType
from typing import Final

_SECONDS: Final = MappingProxyType(
    {
        "ms": Decimal("0.001"),
        "s": Decimal(1),
        "m": Decimal(60),
        "h": Decimal(3600),
        "d": Decimal(86_400),
        "w": Decimal(604_800),
    }
)
_BYTES: Final = MappingProxyType(
    {
        "B": 1,
        "kB": 10**3,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "TB": 10**12,
        "KiB": 1 << 10,
        "MiB": 1 << 20,
        "GiB": 1 << 30,
        "TiB": 1 << 40,
    }
)
_NUMBER: Final = r"[0-9]+(\.[0-9]+)?"

DURATION_PATTERN: Final = rf"^{_NUMBER}({'|'.join(_SECONDS)})$"
SIZE_PATTERN: Final = rf"^{_NUMBER}({'|'.join(_BYTES)})$"

_LONGEST: Final = Decimal(36_525 * 86_400)  # a century: datetime arithmetic stays possible
_LARGEST: Final = (1 << 63) - 1  # what the kernel can count


def seconds(text: str) -> float:
    """The seconds that a duration such as ``"500ms"``, ``"5m"``, ``"1.5h"`` or ``"7d"`` stands for.

    Raises:
        ValueError: it is not a number and one of the units ms, s, m, h, d, w, or more than 100 years.
    """
    value = _split(text, _SECONDS, "a duration", '"500ms", "30s", "5m", "2h", "7d" or "1w"')
    if value > _LONGEST:
        raise ValueError(f"{text!r} is more than 100 years")
    return float(value)


def size_bytes(text: str) -> int:
    """The bytes that a size such as ``"4GiB"``, ``"500MB"`` or ``"1.5KiB"`` stands for, rounded down.

    Raises:
        ValueError: it is not a number and one of the units B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB,
            or more than 2**63 - 1 bytes.
    """
    value = int(_split(text, _BYTES, "a size", '"500MB" or "4GiB"'))
    if value > _LARGEST:
        raise ValueError(f"{text!r} is more than a file system can hold")
    return value


def format_duration(duration_s: float) -> str:
    """The shortest whole number and unit for a duration; ``seconds`` of it is the duration, to the ms."""
    milliseconds = round(duration_s * 1000)
    if milliseconds == 0:
        return "0s"
    for unit in reversed(_SECONDS):
        unit_ms = int(_SECONDS[unit] * 1000)
        if milliseconds % unit_ms == 0:
            return f"{milliseconds // unit_ms}{unit}"
    raise AssertionError("every whole number of milliseconds is one of ms")


def format_size(size: int) -> str:
    """The shortest whole number and binary unit for a size; ``size_bytes`` of it is the size, exactly."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def _split(
    text: str, units: MappingProxyType[str, Decimal] | MappingProxyType[str, int], kind: str, examples: str
) -> Decimal:
    """Number times unit; exact, because ``float("0.1") * 3`` is not what anybody wrote."""
    match = re.fullmatch(rf"(?P<number>{_NUMBER})(?P<unit>[A-Za-z]+)", text)
    if match is None:
        raise ValueError(f"{text!r} is not {kind}; write a number and a unit without a space: {examples}")
    unit = match["unit"]
    if unit not in units:
        near = [known for known in units if known.lower() == unit.lower()]
        hint = f"did you mean {match['number'] + near[-1]!r}?" if near else f"units are {', '.join(units)}"
        raise ValueError(f"{text!r} has the unknown unit {unit!r}; {hint}")
    return Decimal(match["number"]) * units[unit]
