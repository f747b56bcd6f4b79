"""What can't stand together in one rule, or in ``[daemon]``, though each value is all right by itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config import units
from spancat_daemon.config.aftermath import Health
from spancat_daemon.config.problems import Finding, any_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from spancat_daemon.config.places import Path

_IS_SHARE: Final = re.compile(r"|spans_.+_[fpr]")
"""Names of scores that go from 0 to 1; the empty one is the F-score of the span categorizer's key."""

_SAVED_IN: Final = frozenset({"model-best", "model-last"})
_OF_SPOOL: Final = frozenset({"new", "tmp"})


def of_daemon(table: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong in ``[daemon]``; keys that are wrong by themselves must have been taken out of it."""
    never = _duration(table, "scrub_every", 1.0) == 0
    rate = table.get("scrub_rate")
    if not never and isinstance(rate, str) and units.size_bytes(rate) == 0:
        yield Finding(
            ("daemon", "scrub_rate"),
            'scrub_rate must be more than nothing; scrub_every = "0s" is the way to read nothing',
        )
    if never and table.get("heal") is True:
        yield Finding(
            ("daemon", "heal"),
            'heal mends what reading the releases finds, and scrub_every = "0s" says not to; remove one',
            at_key=True,
        )


def of_rule(at: Path, table: Mapping[str, Any], bad: AbstractSet[Path]) -> Iterator[Finding]:
    """What is wrong in a ``[[watch]]`` and its tables.

    Args:
        at: the rule's path.
        table: the rule, without its keys that are wrong by themselves.
        bad: the paths of what is wrong by itself.
    """

    def good(name: str) -> Mapping[str, Any]:
        inner = table.get(name)
        if not isinstance(inner, dict):
            return {}
        return {key: value for key, value in inner.items() if (*at, name, key) not in bad}

    if (*at, "writer") not in bad:
        yield from _settle(at, table)
        yield from _spool(at, table)
    yield from _poll(at, table)
    yield from _keep((*at, "keep"), good("keep"))
    verify, gate = good("verify"), good("gate")
    yield from _verify((*at, "verify"), verify)
    if not any((*at, "verify", key) in bad for key in ("level", "probes", "gold")):
        yield from _level(at, verify, gate)
    yield from _gate((*at, "gate"), gate)
    if (*at, "health") not in bad:
        yield from _health((*at, "health"), good("health"))


def _settle(at: Path, table: Mapping[str, Any]) -> Iterator[Finding]:
    if "settle" in table and table.get("writer") != "any":
        yield Finding(
            (*at, "settle"),
            'settle goes with writer = "any"; what spaCy writes is proven whole and needs no quiet time',
            at_key=True,
        )


def _spool(at: Path, table: Mapping[str, Any]) -> Iterator[Finding]:
    source = table.get("source")
    if table.get("writer") != "spool" or not isinstance(source, str):
        return
    name = source.rstrip("/").rpartition("/")[2]
    if name in _SAVED_IN:
        yield Finding(
            (*at, "source"),
            f'{name} is what spaCy saves to; with writer = "spool" source is the spool beside it',
        )
    elif name in _OF_SPOOL:
        yield Finding(
            (*at, "source"), f'with writer = "spool" source is the spool itself, without the "{name}" in it'
        )


def _poll(at: Path, table: Mapping[str, Any]) -> Iterator[Finding]:
    if table.get("on_change") is False and _duration(table, "poll", 0.0) > 0:
        yield Finding(
            (*at, "poll"),
            "poll looks for changes, but on_change = false says not to look; remove one",
            at_key=True,
        )


def _keep(at: Path, keep: Mapping[str, Any]) -> Iterator[Finding]:
    best = keep.get("best")
    if type(best) is int and best > 0 and keep.get("metric") == "":
        yield Finding((*at, "metric"), "best needs a metric to go by, such as 'spans_sc_f'")


def _verify(at: Path, verify: Mapping[str, Any]) -> Iterator[Finding]:
    share = verify.get("min_pass")
    if isinstance(share, int | float) and share < 1 and not verify.get("probes"):
        yield Finding((*at, "min_pass"), "min_pass is a share of probes, and there are none", at_key=True)


def _level(at: Path, verify: Mapping[str, Any], gate: Mapping[str, Any]) -> Iterator[Finding]:
    level = verify.get("level")
    asked = [key for key in ("probes", "gold") if verify.get(key)]
    if level in {"none", "structure"} and asked:
        yield Finding(
            (*at, "verify", "level"),
            f'level = "{level}" loads no model, which {any_of(asked)} needs; remove one of them',
        )
    elif level == "probes" and not asked:
        yield Finding((*at, "verify", "level"), 'level = "probes" needs probes, or gold, to look at')
    conditions = _conditions(gate)
    if level == "none" and conditions and not asked:
        yield Finding(
            (*at, "gate", conditions[0]),
            f'{conditions[0]} is a condition on what verify.level = "none" does not look at; '
            'write level = "structure" or more',
            at_key=True,
        )
    elif "max_latency_ms" in gate and not asked:
        yield Finding(
            (*at, "gate", "max_latency_ms"),
            "max_latency_ms needs texts to be measured on; name some in verify.probes or verify.gold",
            at_key=True,
        )


def _conditions(gate: Mapping[str, Any]) -> list[str]:
    """The keys that ask for something, in the order they are written in."""
    nothing = {"metric": gate.get("metric"), "labels": "any", "min_step": 0}
    return [key for key, value in gate.items() if key not in nothing or value != nothing[key]]


def _gate(at: Path, gate: Mapping[str, Any]) -> Iterator[Finding]:
    metric = gate.get("metric", "")
    if metric and "minimum" not in gate and "max_drop" not in gate:
        yield Finding(
            (*at, "metric"),
            "metric is what minimum and max_drop go by, and neither is there",
            at_key=True,
        )
    for key in ("minimum", "max_drop"):
        value = gate.get(key)
        if isinstance(value, int | float) and value > 1 and _IS_SHARE.fullmatch(str(metric)):
            percent = f"; {value:g} % is {value / 100:g}" if value <= 100 else ""
            yield Finding((*at, key), f"gate.{key}: scores go from 0 to 1{percent}")


def _health(at: Path, health: Mapping[str, Any]) -> Iterator[Finding]:
    if not health:
        return
    within, every, timeout = (
        _duration(health, key, Health.model_fields[key].default) for key in ("within", "every", "timeout")
    )
    passes = health.get("passes", 1)
    if timeout > within:
        yield Finding(
            (*at, "timeout" if "timeout" in health else "within"),
            f'one check may take timeout = "{units.format_duration(timeout)}", longer than '
            f'within = "{units.format_duration(within)}"',
        )
    if isinstance(passes, int) and (passes - 1) * every > within:
        yield Finding(
            (*at, "passes"),
            f'{passes} checks every "{units.format_duration(every)}" take longer than '
            f'within = "{units.format_duration(within)}"',
        )


def _duration(table: Mapping[str, Any], key: str, default: float) -> float:
    """A duration of a table; the default also in place of one whose fault is told already."""
    value = table.get(key)
    try:
        return units.seconds(value) if isinstance(value, str) else default
    except ValueError:
        return default
