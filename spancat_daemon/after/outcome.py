"""What came of telling somebody, in words for people."""

from __future__ import annotations

from dataclasses import dataclass

STOPPED = "given up: the daemon stops, or another release went live"

_LONGEST_LINE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a program, a request or a signal.

    Attributes:
        ok: it did what it was asked to.
        reason: why not, in one line without secrets; empty if ok.
        stopped: it was given up because nobody waits for it any more, and is no failure.
        tries: how often it was tried; 0 if something was missing that is needed to try.
    """

    ok: bool
    reason: str = ""
    stopped: bool = False
    tries: int = 1


def stopped(tries: int = 1) -> Outcome:
    """It was given up because nobody waits for it any more."""
    return Outcome(ok=False, reason=STOPPED, stopped=True, tries=tries)


def failed(reason: str, tries: int = 1) -> Outcome:
    """It was tried, and failed."""
    return Outcome(ok=False, reason=reason, tries=tries)


def impossible(reason: str) -> Outcome:
    """It was not even tried."""
    return failed(reason, tries=0)


def one_line(text: str) -> str:
    """The text without control characters, and not too long for a line of the log."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= _LONGEST_LINE else plain[: _LONGEST_LINE - 1] + "…"
