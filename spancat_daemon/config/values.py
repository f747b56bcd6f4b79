"""The kinds of values that keys of daemon.toml have, whatever table they stand in."""

from __future__ import annotations

from math import inf
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
)

from spancat_daemon.config import units


class Table(BaseModel):
    """What all tables have in common: they don't change, and know their keys.

    Below each key stands what it means; `schema.json_schema` reads that out of the source when it is asked
    for, which would take each start of the program 15 ms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_file(info: ValidationInfo) -> bool:
    """Whether a daemon.toml is validated, where durations are text, and not values made by a program."""
    return bool(info.context and info.context.get("file"))


def _to_seconds(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return units.seconds(value)
    if _is_file(info):
        example = f'"{value}s"' if type(value) in (int, float) and _is_possible(value) else '"5m"'
        raise ValueError(f"must be a duration in quotes, such as {example}")
    return value


def _is_possible(value: object) -> bool:
    """Whether a number without its unit could be meant: it is not negative, and finite."""
    return isinstance(value, int | float) and 0 <= value < inf


def _to_bytes(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return units.size_bytes(value)
    if _is_file(info):
        unit = "B" if isinstance(value, int) and value >= 1024 else "GiB"
        example = f'"{value}{unit}"' if type(value) is int and _is_possible(value) else '"1GiB"'
        raise ValueError(f"must be a size in quotes, such as {example}")
    return value


def _at_least_a_second(value: float) -> float:
    if value < 1:
        raise ValueError('must be at least "1s"')
    return value


def _more_than_nothing(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than nothing")
    return value


def _is_something(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("must not hold control characters")
    return value


def _can_be_passed(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _has_program(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError('must name a program, such as ["/usr/local/bin/tell", "ner-api"]')
    if not value[0].strip():
        raise ValueError("must begin with the name of a program, not with an empty text")
    return value


Duration = Annotated[
    float,
    BeforeValidator(_to_seconds),
    WithJsonSchema({"type": "string", "pattern": units.DURATION_PATTERN}),
]
"""Seconds; in the file text such as ``"5m"``."""

Positive = Annotated[Duration, AfterValidator(_more_than_nothing)]
"""A duration that is more than nothing."""

Seconds = Annotated[Duration, AfterValidator(_at_least_a_second)]
"""A duration of at least one second."""

Size = Annotated[
    int,
    BeforeValidator(_to_bytes),
    WithJsonSchema({"type": "string", "pattern": units.SIZE_PATTERN}),
]
"""Bytes; in the file text such as ``"4GiB"``."""

LARGEST_COUNT: Final = 1_000_000

Count = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]

Text = Annotated[str, AfterValidator(_is_something)]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A whole or decimal number; neither text nor true, and never nan or inf."""

Share = Annotated[Number, Field(ge=0, le=1)]

Command = Annotated[
    tuple[Annotated[str, AfterValidator(_can_be_passed)], ...],
    AfterValidator(_has_program),
    Field(json_schema_extra={"minItems": 1}),
]
"""A program and its arguments; a program with a slash in its name is an absolute path."""
