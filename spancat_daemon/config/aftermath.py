"""``[[watch.after]]`` and ``[watch.health]``: what follows a swap."""

from __future__ import annotations

import re
import signal
from pathlib import Path  # noqa: TC003  # pydantic reads the annotations
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from spancat_daemon.config.problems import nearest, one_of
from spancat_daemon.config.values import Command, Positive, Seconds, Table, Text

NOT_ALONE: Final = "not_alone"
"""The type of the error that keys of which a table must have exactly one are none, or several.

Its context's ``key`` is the one that is too much, or empty."""

SYSTEMD_VERBS: Final = (
    "reload",
    "restart",
    "try-restart",
    "reload-or-restart",
    "try-reload-or-restart",
    "start",
    "stop",
)
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@\\][A-Za-z0-9:_.@\\-]*")


def _alone(value: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Refuses a table that has not exactly one of the keys; what is misspelt is told as unknown.

    Raises:
        PydanticCustomError: of type ``NOT_ALONE``.
    """
    written = [key for key in value if key in keys]
    if len(written) > 1:
        reason = (
            f"{' and '.join(map(repr, written))} can't stand in one {where}"
            f"; write {'one for each' if where.startswith('[[') else 'one of them'}"
        )
        raise PydanticCustomError(NOT_ALONE, "{reason}", {"reason": reason, "key": written[1]})
    if not written and not any(_nearly(key, keys) for key in value):
        raise PydanticCustomError(
            NOT_ALONE, "{reason}", {"reason": f"{where} needs one of {one_of(keys)}", "key": ""}
        )


def _nearly(key: str, keys: tuple[str, ...]) -> str:
    """The one of the keys that a misspelt one means, or ``""``."""
    return next((known for known in keys if repr(known) in nearest(key, keys)), "")


def _is_url(value: str) -> str:
    # urlsplit and an HTTP client must not read different things
    if any(character.isspace() or not character.isprintable() for character in value):
        raise ValueError(f"{value!r} is not a URL: it holds a space or an unprintable character")
    example = ', such as "http://127.0.0.1:8000/health"'
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{value!r} is not a URL: {error}") from None
    if "://" not in value:
        raise ValueError(f"{value!r} has no scheme; write http:// or https:// and a host{example}")
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"{value!r} must begin with http:// or https://, not with {parts.scheme}://")
    if not host:
        raise ValueError(f"{value!r} names no host{example}")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password: it is logged")
    return value


def _is_job(value: str) -> str:
    verb, *units = value.split() or [""]
    if verb not in SYSTEMD_VERBS:
        near = nearest(verb, SYSTEMD_VERBS) or f"; it can be {one_of(SYSTEMD_VERBS)}"
        raise ValueError(f"{verb!r} is nothing that can be told to systemd{near}")
    if not units:
        raise ValueError(f'must name a unit after {verb!r}, such as "{verb} ner-api.service"')
    for unit in units:
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"{unit!r} can't be the name of a unit")
    return value


def _is_signal(value: str) -> str:
    name = value.removeprefix("SIG")
    if name in {"KILL", "STOP"}:
        raise ValueError(f"{value!r} can't be caught, so nobody reloads at it; write 'HUP' or 'USR1'")
    known = [known.name.removeprefix("SIG") for known in signal.Signals]
    if name not in known:
        near = nearest(name.upper(), known) or ", such as 'HUP' or 'USR1'"
        raise ValueError(f"{value!r} is not a signal{near}")
    return name


Url = Annotated[Text, AfterValidator(_is_url), Field(json_schema_extra={"pattern": r"^https?://[^/?#]"})]
"""An ``http`` or ``https`` URL with a host."""


class _After(Table):
    timeout: Positive = 30.0
    """How long it may take, all tries included."""

    required: StrictBool = False
    """Its failure takes the release back."""


class RunCommand(_After):
    """A program that is told of a swap by its environment."""

    command: Command
    """The program and its arguments; no shell reads them."""


class SystemdJob(_After):
    """A job for systemd."""

    systemd: Annotated[
        Text,
        AfterValidator(_is_job),
        Field(json_schema_extra={"pattern": rf"^({'|'.join(SYSTEMD_VERBS)}) +\S"}),
    ]
    """As systemctl takes it: "reload ner-api.service"."""


class SignalTarget(Table):
    """A process, and what to send it."""

    pidfile: Path
    """The file that holds its number. {1} as in deploy."""

    name: Annotated[str, AfterValidator(_is_signal)] = "HUP"
    """The signal's name, with or without SIG."""


class SendSignal(_After):
    """A signal to a process."""

    signal: SignalTarget
    """Whom, and which."""


class WebhookTarget(Table):
    """An address that is told of a swap."""

    url: Url
    """Where the JSON is posted."""

    secret_file: Path | None = None
    """The file with the secret that the body is signed with. Empty: it is not signed."""


class PostWebhook(_After):
    """A signed HTTP request."""

    webhook: WebhookTarget
    """Where to."""


KINDS_OF_AFTER: Final = ("command", "systemd", "signal", "webhook")


def _kind_of_after(value: Any) -> str:
    """The model that a table means: by the key it has, or by the one it nearly has."""
    if isinstance(value, _After):
        return next(kind for kind in KINDS_OF_AFTER if hasattr(value, kind))
    keys = [str(key) for key in value] if isinstance(value, dict) else []
    written = [key for key in keys if key in KINDS_OF_AFTER]
    near = [kind for key in keys if (kind := _nearly(key, KINDS_OF_AFTER))]
    return [*written, *near, "command"][0]


def _one_kind(value: Any) -> Any:
    if isinstance(value, dict):
        _alone(value, KINDS_OF_AFTER, "[[watch.after]]")
    return value


After = Annotated[
    Annotated[
        Annotated[RunCommand, Tag("command")]
        | Annotated[SystemdJob, Tag("systemd")]
        | Annotated[SendSignal, Tag("signal")]
        | Annotated[PostWebhook, Tag("webhook")],
        Discriminator(_kind_of_after),
    ],
    BeforeValidator(_one_kind),
]
"""One notification."""


class Health(Table):
    """What must be well after a swap, else the release before comes back: one of command and url."""

    command: Command | None = None
    """A program that ends with status 0 if all is well."""

    url: Url | None = None
    """An address that answers with a 2xx status if all is well."""

    within: Positive = 60.0
    """How long after the swap all must be well."""

    every: Seconds = 2.0
    """The time between two checks."""

    timeout: Positive = 5.0
    """How long one check may take."""

    passes: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """How many checks in a row must find all well."""

    @model_validator(mode="before")
    @classmethod
    def _one_check(cls, value: Any) -> Any:
        if isinstance(value, dict):
            _alone(value, ("command", "url"), "[watch.health]")
        return value
