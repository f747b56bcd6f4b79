from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.config import units

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 0.5), ("0s", 0.0), ("1.5h", 5400.0), ("5m", 300.0), ("7d", 604_800.0), ("1w", 604_800.0)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: float) -> None:
    assert units.seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0B", 0), ("1kB", 1000), ("1KB", 1000), ("500MB", 500_000_000), ("1GiB", 1 << 30), ("1.5KiB", 1536)],
)
def test_a_size_is_a_number_and_a_unit(text: str, expected: int) -> None:
    assert units.size_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "5", "m", "-5m", "+5m", "5 m", " 5m", "5m ", "5m\n", "1h30m", ".5h", "5.h", "\u0665m", "1e3s"],
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="500ms"):
        units.seconds(text)


def test_a_unit_in_other_letters_is_answered_with_the_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean '4GiB'"):
        units.size_bytes("4gib")
    with pytest.raises(ValueError, match="did you mean '5m'"):
        units.seconds("5M")
    with pytest.raises(ValueError, match="units are ms, s, m, h, d, w"):
        units.seconds("5minutes")


@pytest.mark.parametrize("text", ["36526d", "9" * 5000 + "s"])
def test_a_duration_that_no_calendar_can_add_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="more than 100 years"):
        units.seconds(text)


def test_a_size_beyond_the_kernel_is_refused() -> None:
    assert units.size_bytes("9223372036854775807B") == 2**63 - 1
    with pytest.raises(ValueError, match="more than a file system can hold"):
        units.size_bytes("9223372036854775808B")


@given(st.integers(0, 36_525 * 86_400_000))
def test_durations_survive_being_written(milliseconds: int) -> None:
    text = units.format_duration(milliseconds / 1000)
    assert re.fullmatch(units.DURATION_PATTERN, text)
    assert round(units.seconds(text) * 1000) == milliseconds


@given(st.integers(0, 2**63 - 1))
def test_sizes_survive_being_written(size: int) -> None:
    text = units.format_size(size)
    assert re.fullmatch(units.SIZE_PATTERN, text)
    assert units.size_bytes(text) == size


@given(st.text(alphabet="0123456789.msKMGiBhdw -", max_size=12))
def test_the_schema_accepts_exactly_what_is_read(text: str) -> None:
    readers: tuple[tuple[Callable[[str], float], str], ...] = (
        (units.seconds, units.DURATION_PATTERN),
        (units.size_bytes, units.SIZE_PATTERN),
    )
    for read, pattern in readers:
        try:
            read(text)
            accepted = True
        except ValueError as error:
            accepted = "more than" in str(error)
        assert accepted == bool(re.fullmatch(pattern, text))
