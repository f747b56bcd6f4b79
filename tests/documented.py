"""The code blocks of the documentation, to be run, and the places for what programs write into it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.service import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCS: Final = ROOT / "docs"
EXAMPLES: Final = DOCS / "examples"
_PART = re.compile(
    r"^## (?P<heading>.*?)$|^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        heading: of the section that it stands in; empty before the first.
        language: what it is said to be.
        code: what is in it.
    """

    heading: str
    language: str
    code: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return a page's blocks in some languages; all, if none are named."""
    found, heading = [], ""
    for part in _PART.finditer(page.read_text(encoding="utf-8")):
        if part["heading"] is not None:
            heading = part["heading"]
        elif not languages or part["language"] in languages:
            found.append(Block(heading, part["language"], part["code"]))
    return found


def commands(page: Path) -> list[str]:
    """Return what a page has one type into a shell, line by line, without comments."""
    lines = "".join(block.code for block in blocks(page, "console")).splitlines()
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def put(page: Path, made: str, *, by: str) -> None:
    """Replace what stands between the two markers of a page.

    Args:
        page: which.
        made: what is to stand there.
        by: the command that the first marker names.

    Raises:
        ValueError: it has no such markers.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- made by `{by}` -->")
    _, end, after = rest.partition("<!-- until here -->")
    if not begin or not end:
        raise ValueError(f"{page} has no place for what `{by}` makes")
    page.write_text(f"{before}{begin}\n\n{made.strip()}\n\n{end}{after}", encoding="utf-8")
