"""What a line of the log costs, in a file, against `logging` of the standard library that writes JSON.

make bench ARGS='-k log'
"""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import pytest

from spancat_daemon.config.model import LogSettings
from spancat_daemon.observe.logs import configure, get_logger
from tests.benchmarks.pairs import Timing, interleave
from tests.benchmarks.records import keep, rounds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

LINES: Final = 5000
ROUNDS: Final = 9
FIELDS: Final[dict[str, Any]] = {
    "rule": "products",
    "release": "000042-20261122T113045Z-3f2a9c1b",
    "trigger": "change",
    "forced": False,
    "content_sha256": "3f2a9c1b" * 8,
    "bytes": 6_060_000,
    "total_s": 0.0315,
    "labels_added": ["GOODS", "PLACE"],
}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "timestamp": self.formatTime(record),
            "level": record.levelname,
            "event": record.getMessage(),
        }
        return json.dumps({**fields, **record.__dict__["fields"]})


@contextmanager
def _standard(path: Path) -> Iterator[logging.Logger]:
    logger = logging.Logger("bench", logging.INFO)  # noqa: LOG001  # nobody else is to know it
    handler = logging.FileHandler(path)
    handler.setFormatter(_Json())
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


def test_lines(tmp_path: Path) -> None:
    output = configure(LogSettings(file=tmp_path / "daemon.log"), stream=io.TextIOWrapper(io.BytesIO()))
    try:
        log = get_logger()
        with _standard(tmp_path / "standard.log") as standard:

            def ours() -> None:
                for _ in range(LINES):
                    log.info("release.overwrite", **FIELDS)

            def theirs() -> None:
                for _ in range(LINES):
                    standard.info("release.overwrite", extra={"fields": FIELDS})

            found = interleave(
                {"ours": ours, "logging": theirs}, prepare=lambda _: None, rounds=rounds(ROUNDS)
            )
    finally:
        output.close()
    written = [(tmp_path / name).read_bytes().count(b"\n") for name in ("daemon.log", "standard.log")]
    assert written == [LINES * (rounds(ROUNDS) + 1)] * 2
    keep("log", {"lines": LINES, "ways": {name: asdict(way) for name, way in found.items()}})
    for name, way in found.items():
        print(f"{name}: {Timing.of([s / LINES * 1e3 for s in way.seconds])} µs a line")  # noqa: T201
