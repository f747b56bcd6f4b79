"""Which tables a daemon.toml can have, which keys they have, and what they are called in messages."""

from __future__ import annotations

import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config.aftermath import NOT_ALONE
from spancat_daemon.config.model import (
    Configuration,
    CronSchedule,
    DaemonSettings,
    Gate,
    Health,
    IntervalSchedule,
    Keep,
    LogSettings,
    PostWebhook,
    RunCommand,
    SendSignal,
    SignalTarget,
    SystemdJob,
    Verify,
    Watch,
    WebhookTarget,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from spancat_daemon.config.places import Path

_MODELS: Final[Mapping[tuple[str, ...], tuple[type[BaseModel], ...]]] = MappingProxyType(
    {
        (): (Configuration,),
        ("daemon",): (DaemonSettings,),
        ("log",): (LogSettings,),
        ("watch",): (Watch,),
        ("watch", "keep"): (Keep,),
        ("watch", "schedule"): (CronSchedule, IntervalSchedule),
        ("watch", "verify"): (Verify,),
        ("watch", "gate"): (Gate,),
        ("watch", "after"): (RunCommand, SystemdJob, SendSignal, PostWebhook),
        ("watch", "after", "signal"): (SignalTarget,),
        ("watch", "after", "webhook"): (WebhookTarget,),
        ("watch", "health"): (Health,),
    }
)
"""The models a table can have, by its path without the numbers of array elements."""

_HEADERS: Final[Mapping[tuple[str, ...], str]] = MappingProxyType(
    {
        ("watch",): "[[watch]]",
        ("watch", "schedule"): "a schedule of [[watch]]",
        ("watch", "after"): "[[watch.after]]",
    }
)

_UNIONS: Final = frozenset(
    {("watch", "schedule"), ("watch", "after"), ("watch", "gate", "per_label_minimum")}
)
"""Where pydantic puts the kind of a value into its path, which the file does not have."""


def path_of(error: ErrorDetails) -> Path:
    """The path in the file of what pydantic found."""
    found = error["loc"]
    for length in range(3, len(found)):
        head = found[:length]
        if _shape(head) in _UNIONS and (isinstance(head[-1], int) or head[-1] == "per_label_minimum"):
            found = (*head, *found[length + 1 :])
            break
    if error["type"] == NOT_ALONE and error["ctx"]["key"]:
        return (*found, error["ctx"]["key"])
    return found


def models_at(path: Path) -> tuple[type[BaseModel], ...]:
    """The models that the table at a path can have; none where labels are the keys, or nothing is known."""
    return _MODELS.get(_shape(path), ())


def keys_of(path: Path) -> tuple[str, ...]:
    """The keys that the table at a path can have."""
    keys = dict.fromkeys(key for model in models_at(path) for key in model.model_fields)
    if not path:
        del keys["path"]  # what the file is, not what it says
    return tuple(keys)


def homes_of(key: str) -> list[str]:
    """The headers of all tables that have a key."""
    return [header(shape) for shape in _MODELS if shape and key in keys_of(shape)]


def header(path: Path) -> str:
    """How a table begins: ``[[watch]]``, ``[watch.keep]``."""
    shape = _shape(path)
    return _HEADERS.get(shape) or f"[{'.'.join(shape)}]"


def table_name(path: Path, document: Mapping[str, Any]) -> str:
    """A table as its header is written, with the name of the rule it belongs to."""
    if not path:
        return "the file"
    name = header(path)
    return f"{name} {rule_name(int(path[1]), document)}" if path[0] == "watch" and len(path) > 1 else name


def rule_name(index: int, document: Mapping[str, Any]) -> str:
    """``"products"``, or ``#2`` for a rule whose name can't be told."""
    rules = document.get("watch")
    rule = rules[index] if isinstance(rules, list) and index < len(rules) else None
    name = rule.get("name") if isinstance(rule, dict) else None
    return f'"{name}"' if isinstance(name, str) and name.isprintable() and name else f"#{index + 1}"


def subject(path: Path) -> str:
    """What a message is about: ``poll``, ``keep.last``, ``after.signal.name``, ``after number 2``."""
    names = [_written(part) for part in path if isinstance(part, str)]
    if not names:
        return "the file"
    shown = ".".join(names[1:] if len(names) > 1 else names)
    last = path[-1]
    return f"{shown} number {last + 1}" if isinstance(last, int) else shown


def at(path: Path, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table at a path of the document, or an empty one."""
    value: Any = document
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return {}
    return value if isinstance(value, dict) else {}


def _shape(path: Path) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


def _written(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
