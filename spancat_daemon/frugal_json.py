"""JSON that others wrote, read without more memory than its length lets one expect.

An empty list takes three bytes of JSON and some seventy of memory: a file of 256 MiB can ask for gigabytes.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

MOST_VALUES: Final = 2_000_000
"""Most values in one document, so at most some 200 MB of them beside its texts. 100,000 labels with a score
of each are a tenth of it."""

DEEPEST: Final = 100
"""Levels of lists and objects in each other; what goes through them by recursion has a limit of 1,000."""

_MARKS: Final = (b",", b"[", b"{", b":")


def loads(data: bytes | bytearray, *, most_values: int = MOST_VALUES) -> Any:
    """Read one document.

    Raises:
        orjson.JSONDecodeError: it is none.
        ValueError: it may hold more values than that (commas and the like within texts count, too), or is
            nested deeper than `DEEPEST`.
    """
    # Each value but the first has one of these before it
    if len(data) > most_values and sum(map(data.count, _MARKS)) > most_values:
        raise ValueError(f"more than {most_values:,} values")
    found = orjson.loads(data)
    if data.count(b"[") + data.count(b"{") > DEEPEST and too_deep(found):
        raise ValueError(f"more than {DEEPEST} lists in each other")
    return found


def too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than `DEEPEST`."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = (
            [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]
            if isinstance(value, dict | list)
            else []
        )
        if not level:
            return False
    return True
