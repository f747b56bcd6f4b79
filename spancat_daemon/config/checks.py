"""What the values of a daemon.toml have to do with each other."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config import contradictions, patterns
from spancat_daemon.config.problems import Finding
from spancat_daemon.config.tables import rule_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from spancat_daemon.config.places import Path, Place

_LONGEST_SOCKET: Final = 107
"""Bytes of a unix socket's path: sizeof(sun_path) on Linux less the final NUL, unix(7)."""


@dataclass(frozen=True)
class _Rule:
    """A ``[[watch]]`` whose source and deploy are each all right by themselves."""

    index: int
    label: str
    source: str
    deploy: str

    @cached_property
    def sources(self) -> tuple[str, ...]:
        return _real(patterns.split(self.source))

    @cached_property
    def deploys(self) -> tuple[str, ...]:
        return _real(patterns.deploy_pattern(self.source, self.deploy))

    def at(self, key: str) -> Path:
        return ("watch", self.index, key)


def combinations_of(
    document: Mapping[str, Any],
    written: Mapping[str, Any],
    bad: AbstractSet[Path],
    place_of: Callable[[Path], Place],
) -> Iterator[Finding]:
    """Everything that can't go together; keys that are wrong by themselves are left out of it.

    Args:
        document: the file's content with variables filled in and absolute paths.
        written: the same with paths as they are written.
        bad: the paths of what is already known to be wrong.
        place_of: where a value stands, for findings that concern two places.
    """
    watch = document.get("watch")
    tables = watch if isinstance(watch, list) else []
    names: dict[str, int] = {}
    rules: list[_Rule] = []
    for index, table in enumerate(tables):
        if not isinstance(table, dict):
            continue
        at: Path = ("watch", index)
        good = {key: value for key, value in table.items() if (*at, key) not in bad}
        label = f"rule {rule_name(index, document)}"
        name = good.get("name")
        if isinstance(name, str):
            if name in names:
                first = place_of(("watch", names[name], "name"))
                yield Finding((*at, "name"), f"another rule, at line {first.line}, has the name {name!r} too")
            names.setdefault(name, index)
        yield from contradictions.of_rule(at, good, bad)
        source, deploy = good.get("source"), good.get("deploy")
        if isinstance(source, str) and isinstance(deploy, str):
            as_written = written["watch"][index]
            findings = list(_placeholders(at, source, deploy, str(as_written["deploy"])))
            yield from findings
            yield from _filled_in(at, source, as_written, table)
            if not findings:
                rules.append(_Rule(index, label, source, deploy))
    daemon = document.get("daemon")
    if isinstance(daemon, dict):
        good = {key: value for key, value in daemon.items() if ("daemon", key) not in bad}
        yield from contradictions.of_daemon(good)
    yield from _overlaps(rules, place_of)
    yield from _own_files(document, rules, bad)


def _placeholders(at: Path, source: str, deploy: str, written: str) -> Iterator[Finding]:
    names = patterns.wildcards(source)
    path = (*at, "deploy")
    if any(character in written for character in "*?"):
        hint = "write {1} for what the first wildcard of source matched" if names else "name one folder"
        yield Finding(path, f"deploy can't hold wildcards; {hint}")
    used = [int(number) for number in patterns.PLACEHOLDER.findall(written)]
    for number in sorted(set(used)):
        if not 1 <= number <= len(names):
            there_are = f"only {len(names)}" if names else "none"
            yield Finding(
                path, f"{{{number}}} stands for a wildcard that source does not have: it has {there_are}"
            )
    for number in range(1, len(names) + 1):
        if number not in used:
            yield Finding(
                path,
                f"deploy must use {{{number}}}, what {names[number - 1]!r} in source matched: "
                "each match needs a folder of its own",
            )
    if any(len(patterns.PLACEHOLDER.findall(component)) > 1 for component in patterns.split(written)):
        yield Finding(
            path, "two placeholders in one folder's name can make one name of two matches; write {1}/{2}"
        )
    if names and len(patterns.PLACEHOLDER.findall(deploy)) != len(used):
        yield Finding(path, "this file lies in a folder whose name looks like a placeholder; rename it")


_FILLED_IN: Final = (("verify", "probes"), ("verify", "gold"), ("signal", "pidfile"))
_NOT_FILLED_IN: Final = (("verify", "python"), ("webhook", "secret_file"))


def _filled_in(
    at: Path, source: str, written: Mapping[str, Any], table: Mapping[str, Any]
) -> Iterator[Finding]:
    """Placeholders in the paths of a rule's tables, where they may stand but need not."""
    names = patterns.wildcards(source)
    for path, value in _paths(written):
        used = patterns.PLACEHOLDER.findall(value)
        if path[-2:] in _NOT_FILLED_IN:
            if used and names:
                yield Finding(
                    (*at, *path),
                    f"{{{used[0]}}} is not filled in here: {path[-1]} must not depend on what source matched",
                )
            continue
        for number in sorted({*map(int, used)}):
            if not 1 <= number <= len(names):
                there_are = f"only {len(names)}" if names else "none"
                yield Finding(
                    (*at, *path),
                    f"{{{number}}} stands for a wildcard that source does not have: it has {there_are}",
                )
        resolved = dict(_paths(table)).get(path, value)
        if names and used and len(patterns.PLACEHOLDER.findall(resolved)) != len(used):
            yield Finding(
                (*at, *path), "this file lies in a folder whose name looks like a placeholder; rename it"
            )


def _paths(rule: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The paths in a rule's tables that could depend on a match, with where they stand in the rule."""
    after = rule.get("after")
    holders: list[tuple[Path, Any]] = [((), rule)]
    holders += [(("after", index), one) for index, one in enumerate(after if isinstance(after, list) else ())]
    for table, key in (*_FILLED_IN, *_NOT_FILLED_IN):
        for path, holder in holders:
            inner = holder.get(table) if isinstance(holder, dict) else None
            value = inner.get(key) if isinstance(inner, dict) else None
            if isinstance(value, str):
                yield (*path, table, key), value


def _overlaps(rules: list[_Rule], place_of: Callable[[Path], Place]) -> Iterator[Finding]:
    deploys, sources = [rule.deploys for rule in rules], [rule.sources for rule in rules]
    for first, second in ((rules[i], rules[j]) for i, j in _may_nest(deploys, deploys) if i < j):
        shorter = min(len(first.deploys), len(second.deploys))
        if not patterns.may_meet(first.deploys[:shorter], second.deploys[:shorter]):
            continue
        if len(first.deploys) == len(second.deploys):
            how = "is also where"
        else:
            how = "lies inside of where" if len(second.deploys) > shorter else "holds the folder where"
        line = place_of(first.at("deploy")).line
        yield Finding(
            second.at("deploy"),
            f"{second.deploy!r} {how} {first.label} deploys to, at line {line}; "
            "give each rule a folder of its own",
        )
    for one, other in ((rules[i], rules[j]) for i, j in _may_nest(deploys, sources)):
        if _inside(one.deploys, other.sources):
            how, remedy = "lies inside", "move it out"
        elif _inside(other.sources, one.deploys):
            how, remedy = "is around", "move it elsewhere"
        else:
            continue
        whose = "its own source" if one is other else f"the source of {other.label}"
        line = place_of(other.at("source")).line
        yield Finding(one.at("deploy"), f"deploy {how} {whose}, {other.source!r} at line {line}; {remedy}")


def _may_nest(
    ones: Sequence[tuple[str, ...]], others: Sequence[tuple[str, ...]]
) -> Iterator[tuple[int, int]]:
    """The pairs of which one can lie in the other, in order; without holding each against each other one."""
    wild = {number for number, other in enumerate(others) if any(map(patterns.is_special, other))}
    exact: dict[tuple[str, ...], set[int]] = defaultdict(set)
    beginning: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, other in enumerate(others):
        exact[other].add(number)
        for length in range(len(other)):
            beginning[other[:length]].add(number)
    for number, one in enumerate(ones):
        if any(map(patterns.is_special, one)):
            found = set(range(len(others)))
        else:
            found = wild | beginning.get(one, set())
            for length in range(len(one) + 1):
                found |= exact.get(one[:length], set())
        yield from ((number, other) for other in sorted(found))


def _own_files(document: Mapping[str, Any], rules: list[_Rule], bad: AbstractSet[Path]) -> Iterator[Finding]:
    own: dict[str, str] = {}
    for table, key in (("daemon", "state_dir"), ("daemon", "control_socket"), ("log", "file")):
        value = document[table].get(key) if isinstance(document.get(table), dict) else None
        if isinstance(value, str) and value and (table, key) not in bad:
            own[key] = value
    socket = own.get("control_socket", "")
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        yield Finding(
            ("daemon", "control_socket"),
            f"the path of the control socket, {socket!r}, is longer than the {_LONGEST_SOCKET} bytes that a "
            "socket can have; set control_socket to a shorter one",
        )
    for key, value in own.items():
        components = _real(tuple(patterns.escape(component) for component in patterns.split(value)))
        what = "log.file" if key == "file" else f"{key} of [daemon]"
        for rule in rules:
            for role, folder in (("source", rule.sources), ("deploy", rule.deploys)):
                if _inside(components, folder):
                    yield Finding(rule.at(role), f"{role} holds {what}, {value!r}; keep the two apart")


def _inside(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    """Whether every path of one lies in, or is, a path of the other."""
    head = inner[: len(outer)]
    return patterns.covers(outer, head) or patterns.covers(head, outer)


def _real(components: tuple[str, ...]) -> tuple[str, ...]:
    """The pattern with the symbolic links in front of its first wildcard resolved."""
    names: list[str] = []
    for component in components:
        name = patterns.literal(component)
        if name is None:
            break
        names.append(name)
    real = os.path.realpath("/" + "/".join(names))
    return (*(patterns.escape(name) for name in patterns.split(real)), *components[len(names) :])
