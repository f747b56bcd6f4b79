"""Figures of foreign origin, compared as the decimals they show as.

The difference of 0.8 and 0.75 is 0.05 here, where binary fractions make it 0.050000000000000044: what anyone
works out from the figures in a log is what decided. There is no tolerance.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any


def number(value: Any) -> float | None:
    """Return a figure as a finite float; None if it is none, as NaN, infinity and True are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def difference(one: float, other: float) -> Fraction:
    """How much the first of two finite numbers is more than the second."""
    return _decimal(one) - _decimal(other)


def within(amount: Fraction, limit: float) -> bool:
    """Whether an amount is at most the limit; within infinity all is, within NaN nothing."""
    return limit == math.inf or (math.isfinite(limit) and amount <= _decimal(limit))


def spelled(amount: Fraction) -> str:
    """An amount as a decimal, without its sign."""
    try:
        return repr(float(abs(amount)))
    except OverflowError:
        return "more than 1e308"


def _decimal(value: float) -> Fraction:
    return Fraction(repr(float(value)))
