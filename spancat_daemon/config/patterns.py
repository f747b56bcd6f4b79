"""Globbed sources and the deployment folders they lead to, as text.

A pattern is an absolute path whose components may hold ``*``, ``?`` and ``[…]``. The n-th component with a
wildcard is the n-th match: ``{1}``, ``{2}``, … in ``deploy`` stand for the name it matched.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPECIAL: Final = re.compile(r"[*?[]")
PLACEHOLDER: Final = re.compile(r"\{([0-9]+)\}")


@lru_cache(maxsize=4096)
def literal(component: str) -> str | None:
    """The one name that a component stands for, or None if it is a wildcard.

    A class of one character is that character: ``[*]`` is the way to write a star.

    Raises:
        ValueError: a ``[`` is never closed.
    """
    name: list[str] = []
    wild = False
    position = 0
    while position < len(component):
        character = component[position]
        if character == "[":
            content = _class_at(component, position)
            wild = wild or len(content) != 1
            name.append(content)
            position += len(content) + 2
        else:
            wild = wild or character in "*?"
            name.append(character)
            position += 1
    return None if wild else "".join(name)


def check_source(pattern: str) -> None:
    """Refuses what a source can't be.

    Raises:
        ValueError: a ``**``, a ``[`` that is never closed, or a ``..`` behind a wildcard.
    """
    behind_wildcard = False
    for component in split(pattern):
        if "**" in component:
            raise ValueError(f"'**' is not supported in {pattern!r}; write one '*' for each level of folders")
        if component == ".." and behind_wildcard:
            raise ValueError(f"'..' can't follow a wildcard in {pattern!r}")
        behind_wildcard = literal(component) is None or behind_wildcard


def escape(name: str) -> str:
    """The pattern that only this name fits."""
    return re.sub(r"([*?[])", r"[\1]", name)


def split(pattern: str) -> tuple[str, ...]:
    """Its components, without the empty ones."""
    return tuple(component for component in pattern.split("/") if component)


def wildcards(pattern: str) -> tuple[str, ...]:
    """Its components that hold a wildcard, in order."""
    return tuple(component for component in split(pattern) if literal(component) is None)


def matches(component: str, name: str) -> bool:
    """Whether a name fits a wildcard; names that begin with a dot only where the wildcard does too."""
    return (component.startswith(".") or not name.startswith(".")) and fnmatchcase(name, component)


def fill_source(pattern: str, names: Sequence[str]) -> str:
    """The path that a source becomes when its wildcards matched these names."""
    remaining = iter(names)
    filled: list[str] = []
    for component in split(pattern):
        name = literal(component)
        filled.append(next(remaining) if name is None else name)
    return "/" + "/".join(filled)


def fill_deploy(deploy: str, names: Sequence[str]) -> str:
    """The deployment folder for these matches; braces inside a name are left alone."""
    return PLACEHOLDER.sub(lambda match: names[int(match[1]) - 1], deploy) if names else deploy


def deploy_pattern(source: str, deploy: str) -> tuple[str, ...]:
    """The components of all folders that a rule can deploy to, with the wildcards of its source filled in."""
    names = wildcards(source)
    if not names:
        return tuple(escape(component) for component in split(deploy))
    return tuple(
        PLACEHOLDER.sub(lambda match: names[int(match[1]) - 1], component)
        if PLACEHOLDER.search(component)
        else escape(component)
        for component in split(deploy)
    )


def is_special(component: str) -> bool:
    """Whether it is more than a name as it stands."""
    return _SPECIAL.search(component) is not None


def covers(general: Sequence[str], special: Sequence[str]) -> bool:
    """Whether every path of one pattern is surely a path of the other, judged component by component."""
    return len(general) == len(special) and all(
        mine == theirs or _matches_literal(mine, theirs)
        for mine, theirs in zip(general, special, strict=True)
    )


def may_meet(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether some path could be a path of both patterns; errs on the side of yes."""
    return len(one) == len(other) and all(
        mine == theirs or _component_may_meet(mine, theirs) for mine, theirs in zip(one, other, strict=True)
    )


def _matches_literal(component: str, other: str) -> bool:
    if not _SPECIAL.search(component) and not _SPECIAL.search(other):
        return component == other  # nearly all: each rule is held against each other one
    name = literal(other)
    return name is not None and (literal(component) == name or matches(component, name))


def _component_may_meet(one: str, other: str) -> bool:
    if literal(one) is not None or literal(other) is not None:
        return _matches_literal(one, other) or _matches_literal(other, one)
    heads = (re.split(r"[*?\[]", one, maxsplit=1)[0], re.split(r"[*?\[]", other, maxsplit=1)[0])
    tails = (re.split(r"[*?\]]", one)[-1], re.split(r"[*?\]]", other)[-1])
    return (heads[0].startswith(heads[1]) or heads[1].startswith(heads[0])) and (
        tails[0].endswith(tails[1]) or tails[1].endswith(tails[0])
    )


def _class_at(component: str, position: int) -> str:
    """What stands between the brackets that open here, by the rules of fnmatch."""
    start = position + 1
    end = start
    if component[end : end + 1] == "!":
        end += 1
    end = component.find("]", end + 1)
    if end < 0:
        raise ValueError(f"the '[' in {component!r} is never closed; write '[[]' for the character itself")
    return component[start:end]
