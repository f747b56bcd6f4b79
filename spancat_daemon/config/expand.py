"""From rules to the checkpoints and deployment folders that they mean at this moment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spancat_daemon.config import patterns
from spancat_daemon.config.aftermath import SendSignal
from spancat_daemon.config.problems import nearest
from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spancat_daemon.config.model import Configuration, Watch

_LISTED: Final = 10


@dataclass(frozen=True, slots=True)
class Target:
    """One source and one deployment folder: a rule, or one match of a globbed rule.

    Attributes:
        rule: ``"products"``, or ``"products/<match1>[/<match2>]"`` for a match.
        watch: the rule it comes from, the placeholders in its paths filled in.
        source: the checkpoint directory, absolute.
        deploy: the deployment folder, absolute.
    """

    rule: str
    watch: Watch
    source: Path
    deploy: Path


def targets(
    configuration: Configuration, *, unreadable: Callable[[Path, OSError], None] | None = None
) -> list[Target]:
    """What there is to watch now: every rule without wildcards, and every match of the others.

    A match is a source that exists; if its last part is a wildcard, only directories match. Rules come in the
    order of the file, matches in the order of their names.

    Args:
        configuration: the rules.
        unreadable: is told of each folder that can't be searched for matches; one that is not there is
            searched without a match.
    """
    found: list[Target] = []
    for watch in configuration.watch:
        names = patterns.wildcards(watch.source)
        if not names:
            found.append(_target(watch, ()))
        else:
            found.extend(_target(watch, matched) for matched in _matches(watch.source, unreadable))
    return found


def find_target(configuration: Configuration, name: str) -> Target:
    """The target that a user names: ``products``, or ``runs/run-7`` for a match of the rule ``runs``.

    A match is found also when its source has vanished, as long as its deployment folder is there.

    Raises:
        UsageError: there is none; says which there are.
    """
    rule, *matched = name.split("/")
    by_name = {watch.name: watch for watch in configuration.watch}
    watch = by_name.get(rule)
    if watch is None:
        hint = nearest(rule, list(by_name)).removeprefix("; ") or f"rules are {_listed(list(by_name))}"
        raise UsageError(f"there is no rule {rule!r} in {configuration.path}", hint=hint)
    wildcards = patterns.wildcards(watch.source)
    if not wildcards:
        if matched:
            raise UsageError(
                f"the rule {rule!r} has no wildcards, so there is no {name!r}", hint=f"name {rule!r}"
            )
        return _target(watch, ())
    existing = [target.rule for target in (_target(watch, names) for names in _matches(watch.source, None))]
    hint = f"there are {_listed(existing)}" if existing else f"nothing matches {watch.source!r} now"
    if not matched:
        raise UsageError(f"the rule {rule!r} has wildcards; name one of its matches", hint=hint)
    if len(matched) == len(wildcards) and all(map(patterns.matches, wildcards, matched)):
        target = _target(watch, tuple(matched))
        if os.path.lexists(target.source) or os.path.lexists(target.deploy):
            return target
    near = nearest(name, existing).removeprefix("; ")
    raise UsageError(f"{name!r} is no match of the rule {rule!r}, now or before", hint=near or hint)


def glob_root(pattern: str) -> Path:
    """The deepest directory of a source before its first wildcard; all of it if it has none."""
    names: list[str] = []
    for component in patterns.split(pattern):
        name = patterns.literal(component)
        if name is None:
            break
        names.append(name)
    return Path("/", *names)


def _target(watch: Watch, names: tuple[str, ...]) -> Target:
    return Target(
        rule="/".join((watch.name, *names)),
        watch=_filled(watch, names),
        source=Path(patterns.fill_source(watch.source, names)),
        deploy=Path(patterns.fill_deploy(watch.deploy, names)),
    )


def _filled(watch: Watch, names: tuple[str, ...]) -> Watch:
    """The rule with what its wildcards matched in the paths of its tables; itself if that changes nothing."""
    signals = [step.signal for step in watch.after if isinstance(step, SendSignal)]
    paths = [watch.verify.probes, watch.verify.gold, *(signal.pidfile for signal in signals)]
    if not any("{" in str(path) for path in paths):  # as of nearly all rules: thousands of matches share it
        return watch

    def fill(path: Path | None) -> Path | None:
        return path and Path(patterns.fill_deploy(str(path), names))

    verify = {key: fill(getattr(watch.verify, key)) for key in ("probes", "gold")}
    after = tuple(
        step.model_copy(
            update={"signal": step.signal.model_copy(update={"pidfile": fill(step.signal.pidfile)})}
        )
        if isinstance(step, SendSignal)
        else step
        for step in watch.after
    )
    filled = watch.model_copy(update={"verify": watch.verify.model_copy(update=verify), "after": after})
    return watch if filled == watch else filled


def _matches(pattern: str, unreadable: Callable[[Path, OSError], None] | None) -> Iterator[tuple[str, ...]]:
    """What the wildcards of a source match now, in order."""
    yield from _below("/", patterns.split(pattern), (), unreadable)


def _below(
    folder: str,
    components: tuple[str, ...],
    names: tuple[str, ...],
    unreadable: Callable[[Path, OSError], None] | None,
) -> Iterator[tuple[str, ...]]:
    literals: list[str] = []
    for component in components:
        name = patterns.literal(component)
        if name is None:
            break
        literals.append(name)
    folder = os.path.join(folder, *literals)  # noqa: PTH118  # called for every match at every scan
    rest = components[len(literals) :]
    if not rest:
        # what ended in a wildcard was seen to be a directory; what ends in a name has to exist
        if not literals or _exists(folder, unreadable):
            yield names
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                entry.name for entry in entries if _is_folder(entry) and patterns.matches(rest[0], entry.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if unreadable is not None:
            unreadable(Path(folder), error)
        return
    for name in found:
        yield from _below(f"{folder}/{name}", rest[1:], (*names, name), unreadable)


def _exists(path: str, unreadable: Callable[[Path, OSError], None] | None) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # nobody can tell; a run that is left out without a word would never be missed
        if unreadable is not None:
            unreadable(Path(path).parent, error)
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into nowhere or around in a circle
        return False


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(map(repr, names[:_LISTED]))}{more}"
