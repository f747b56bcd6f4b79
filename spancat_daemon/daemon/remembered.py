"""Times that outlast a restart, in a small file of the state directory."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_times(path: Path) -> dict[str, datetime]:
    """The aware times in a file, by name; what is lost, damaged or without a zone is left out."""
    times: dict[str, datetime] = {}
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        content = orjson.loads(path.read_bytes())
        for name, text in content.items() if isinstance(content, dict) else ():
            with contextlib.suppress(ValueError):
                time = datetime.fromisoformat(str(text))
                if time.tzinfo is not None:
                    times[name] = time
    return times


def write_times(path: Path, times: Mapping[str, datetime]) -> None:
    """Replaces the file; a full disk makes it forget, no more."""
    content = {name: time.astimezone(UTC).isoformat() for name, time in times.items()}
    fresh = path.with_name(f"{path.name}.new")
    with contextlib.suppress(OSError):
        fresh.write_bytes(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
        fresh.replace(path)
