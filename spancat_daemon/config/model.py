"""What daemon.toml can say: its tables, keys, types and defaults.

The models are the one place that knows the keys; their descriptions become the JSON schema. They check each
value by itself. What values have to do with each other is checked in ``checks``, so that one wrong value
does not hide what is wrong elsewhere. ``load.load`` does both.
"""

from __future__ import annotations

import re
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from spancat_daemon.config import cron as cron_expressions
from spancat_daemon.config import patterns, units
from spancat_daemon.config.problems import nearest

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME: Final = 100


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
        example = f'"{value}B"' if type(value) is int and _is_possible(value) else '"1GiB"'
        raise ValueError(f"must be a size in quotes, such as {example}")
    return value


def _at_least_a_second(value: float) -> float:
    if value < 1:
        raise ValueError('must be at least "1s"')
    return value


def _some_time(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than nothing: quiet time is all that proves a foreign copy whole")
    return value


def _more_than_nothing(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than nothing")
    return value


def _no_busy_poll(value: float) -> float:
    if 0 < value < 0.1:
        raise ValueError('must be "0s" or at least "100ms"')
    return value


def _is_something(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("must not hold control characters")
    return value


Duration = Annotated[
    float,
    BeforeValidator(_to_seconds),
    WithJsonSchema({"type": "string", "pattern": units.DURATION_PATTERN}),
]
"""Seconds; in the file text such as ``"5m"``."""

Size = Annotated[
    int,
    BeforeValidator(_to_bytes),
    WithJsonSchema({"type": "string", "pattern": units.SIZE_PATTERN}),
]
"""Bytes; in the file text such as ``"4GiB"``."""

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
Text = Annotated[str, AfterValidator(_is_something)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DaemonSettings(_Table):
    """The daemon itself."""

    state_dir: Path = Path("var")
    """Where the daemon keeps its own state. $STATE_DIRECTORY, as set by systemd, wins."""

    control_socket: Path = Path()
    """The socket that commands talk to. Empty: control.sock in $RUNTIME_DIRECTORY, or else in state_dir."""

    workers: Annotated[int, Field(strict=True, ge=1, le=64)] = 2
    """Snapshots under way at once."""

    reconcile_every: Annotated[Duration, AfterValidator(_at_least_a_second)] = 300.0
    """How often everything is scanned, whatever events said."""

    min_free: Size = 1 << 30
    """Free space that must be left after a snapshot; with less, publishing pauses."""

    scrub_every: Duration = 604800.0
    """How often stored releases are read and compared with their digests. "0s": never."""

    scrub_rate: Size = 32 << 20
    """Bytes a second that are read for it."""

    heal: StrictBool = False
    """Replace a live release that was found corrupted by the last good one."""


class LogSettings(_Table):
    """Where events go and how they look."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious events that are logged."""

    format: Literal["auto", "console", "json"] = "auto"
    """How events look on standard output. auto: console on a terminal, json elsewhere."""

    file: Path | None = None
    """A file that JSON lines are appended to as well; reopened on SIGHUP. Empty: none."""


class CronSchedule(_Table):
    """Work at times of the calendar."""

    cron: Annotated[str, Field(examples=["0 3 * * *"])]
    """When, as in crontab(5): minute, hour, day of the month, month, day of the week (0 and 7: Sunday)."""

    timezone: str = "UTC"
    """The time zone of the expression, such as Europe/Berlin."""

    force: StrictBool = False
    """Make and swap in a release although nothing changed."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        cron_expressions.trigger_fields(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        import zoneinfo  # noqa: PLC0415  # only where a schedule has one

        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            near = nearest(value, sorted(zoneinfo.available_timezones()))
            raise ValueError(
                f"{value!r} is not a time zone{near or ', such as UTC or Europe/Berlin'}"
            ) from None
        return value


class IntervalSchedule(_Table):
    """Work at even distances."""

    every: Annotated[Duration, AfterValidator(_at_least_a_second)]
    """The time between two runs."""

    force: StrictBool = False
    """Make and swap in a release although nothing changed."""


def _kind_of_schedule(value: Any) -> str:
    """The model that a table means, also where its telling key is misspelt."""
    if isinstance(value, CronSchedule):
        return "cron"
    if isinstance(value, IntervalSchedule):
        return "every"
    keys = list(value) if isinstance(value, dict) else []
    if "every" in keys and "cron" not in keys:
        return "every"
    if "cron" in keys or "timezone" in keys:
        return "cron"
    return "every" if any("every" in nearest(str(key), ["cron", "every"]) for key in keys) else "cron"


Schedule = Annotated[
    Annotated[CronSchedule, Tag("cron")] | Annotated[IntervalSchedule, Tag("every")],
    Discriminator(_kind_of_schedule),
]


class Keep(_Table):
    """Retention: a release stays if any line wants it. The live one and the one before it always stay.

    Each line that is not written keeps its default, so daily = 7 alone also keeps the last 5. A table
    with nothing in it keeps everything.
    """

    last: Count = 5
    """The newest so many releases."""

    within: Duration = 0.0
    """All releases of this last stretch of time."""

    hourly: Count = 0
    """The newest release of each of the last so many hours that have one."""

    daily: Count = 0
    """The newest release of each of the last so many days that have one."""

    weekly: Count = 0
    """The newest release of each of the last so many weeks that have one."""

    best: Count = 0
    """The so many releases with the highest metric."""

    metric: str = "spans_sc_f"
    """The metric that best goes by, a key of performance in the checkpoint's meta.json."""

    @property
    def empty(self) -> bool:
        """No line wants anything: nothing is ever deleted."""
        return not (self.last or self.within or self.hourly or self.daily or self.weekly or self.best)


Positive = Annotated[Duration, AfterValidator(_more_than_nothing)]
"""A duration that is more than nothing."""

Share = Annotated[float, Field(ge=0, le=1)]
Command = Annotated[tuple[Text, ...], Field(min_length=1)]


class Verify(_Table):
    """How a snapshot is seen to work before it goes live."""

    level: Literal["none", "structure", "load", "probes"] = "load"
    """What is seen: nothing but that the checkpoint is settled; that its parts agree; that spaCy loads it and
    it predicts; that it predicts what probes, or gold documents, say. probes or gold imply "probes"."""

    python: Path | None = None
    """The interpreter that will serve the model, with its spaCy 3.2.2 or later. Empty: the daemon's own."""

    timeout: Positive = 120.0
    """How long one verification may take."""

    memory: Size = 4 << 30
    """The address space that the verifying process may have."""

    idle: Duration = 60.0
    """How long the verifying process stays, unused, with spaCy imported."""

    probes: Path | None = None
    """A JSONL file of texts with spans they must, or must not, give. Empty: none."""

    min_pass: Annotated[Share, Field(gt=0)] = 1.0
    """The share of probes that must pass."""

    gold: Path | None = None
    """A .spacy file of annotated documents to evaluate on. Empty: none."""

    @property
    def effective_level(self) -> Literal["none", "structure", "load", "probes"]:
        """The level, with what probes and gold imply."""
        return "probes" if self.probes or self.gold else self.level


class Gate(_Table):
    """Conditions that a snapshot must meet to go live; what is not written is no condition."""

    metric: str = ""
    """The score that minimum and max_drop go by. Empty: spans_<key>_f of the span categorizer's key."""

    minimum: float | None = None
    """The least that the score may be."""

    max_drop: Annotated[float, Field(ge=0)] | None = None
    """How far the score may be below the live release's, on the same evaluation."""

    per_label_minimum: Share | Annotated[dict[str, Share], Field(min_length=1)] | None = None
    """The least F-score of every label, or of those named."""

    labels: Literal["same", "superset", "any"] = "any"
    """Compared with the live release's: the same in the same order, at least those, or whatever they are."""

    max_bytes: Size | None = None
    """The largest that a release may be."""

    min_step: Annotated[int, Field(strict=True, ge=0)] = 0
    """The training step from which on checkpoints go live; 1: not the first, nearly untrained, one."""

    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """How many milliseconds a document, at the median, may take longer than with the live release."""


class _After(_Table):
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

    systemd: Text
    """As systemctl takes it: "reload ner-api.service"."""


class SignalTarget(_Table):
    """A process, and what to send it."""

    pidfile: Path
    """The file that holds its number."""

    name: str = "HUP"
    """The signal's name."""


class SendSignal(_After):
    """A signal to a process."""

    signal: SignalTarget
    """Whom, and which."""


class WebhookTarget(_Table):
    """An address that is told of a swap."""

    url: Text
    """Where the JSON is posted."""

    secret_file: Path | None = None
    """The file with the secret that the body is signed with. Empty: it is not signed."""


class PostWebhook(_After):
    """A signed HTTP request."""

    webhook: WebhookTarget
    """Where to."""


_KINDS_OF_AFTER: Final = ("command", "systemd", "signal", "webhook")


def _kind_of_after(value: Any) -> str:
    """The model that a table means: by the key it has, or by the one it nearly has."""
    if isinstance(value, _After):
        return next(kind for kind in _KINDS_OF_AFTER if hasattr(value, kind))
    keys = list(value) if isinstance(value, dict) else []
    written = [kind for kind in _KINDS_OF_AFTER if kind in keys]
    near = [
        kind for kind in _KINDS_OF_AFTER for key in keys if repr(kind) in nearest(str(key), _KINDS_OF_AFTER)
    ]
    return [*written, *near, "command"][0]


After = Annotated[
    Annotated[RunCommand, Tag("command")]
    | Annotated[SystemdJob, Tag("systemd")]
    | Annotated[SendSignal, Tag("signal")]
    | Annotated[PostWebhook, Tag("webhook")],
    Discriminator(_kind_of_after),
]


class Health(_Table):
    """What must be well after a swap, else the release before comes back: one of command and url."""

    command: Command | None = None
    """A program that ends with status 0 if all is well."""

    url: Text | None = None
    """An address that answers with a 2xx status if all is well."""

    within: Positive = 60.0
    """How long after the swap all must be well."""

    every: Annotated[Duration, AfterValidator(_at_least_a_second)] = 2.0
    """The time between two checks."""

    timeout: Positive = 5.0
    """How long one check may take."""

    passes: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """How many checks in a row must find all well."""


class Watch(_Table):
    """A rule: which checkpoints go where, when, and on what terms."""

    name: Annotated[str, Field(json_schema_extra={"pattern": NAME_PATTERN, "maxLength": LONGEST_NAME})]
    """What the rule is called in commands and logs."""

    source: Annotated[Text, Field(json_schema_extra={"minLength": 1})]
    """The checkpoint directory that a trainer writes; *, ? and [...] in a folder's name match several."""

    deploy: Annotated[Text, Field(json_schema_extra={"minLength": 1})]
    """The deployment folder. With wildcards in source: {1} is what the first of them matched, and so on."""

    component: Annotated[Text, Field(json_schema_extra={"minLength": 1})] = "auto"
    """The name of the span categorizer in the pipeline. auto: the only one there is."""

    contents: Literal["pipeline", "component"] = "pipeline"
    """What a release holds: the whole pipeline, or the span categorizer and what it needs."""

    swap: Literal["symlink", "exchange"] = "symlink"
    """How a release goes live: current is a link, or a directory that is exchanged."""

    writer: Literal["spacy", "any"] = "spacy"
    """Who writes the checkpoint: spaCy itself, whose order of writing is a proof, or any copying tool."""

    settle: Annotated[Duration, AfterValidator(_some_time)] = 2.0
    """With writer = "any": how long a checkpoint must have been quiet."""

    on_change: StrictBool = True
    """Look at the checkpoint whenever it changes."""

    poll: Annotated[Duration, AfterValidator(_no_busy_poll)] = 0.0
    """More than nothing: look this often instead of waiting for events, as on NFS."""

    schedule: tuple[Schedule, ...] = ()
    """Times to look at the checkpoint, whether or not it changed."""

    keep: Keep = Keep()
    """Which releases stay."""

    keep_rejected: Count = 3
    """How many of the last rejected snapshots stay, to be looked into."""

    verify: Verify = Verify()
    """How a snapshot is seen to work before it goes live."""

    gate: Gate = Gate()
    """Conditions that a snapshot must meet to go live."""

    after: tuple[After, ...] = ()
    """What is told of each swap, in this order."""

    health: Health | None = None
    """What must be well after a swap."""

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not re.fullmatch(NAME_PATTERN, value):
            raise ValueError(
                f"{value!r} is not a name; write letters, digits, '.', '_' and '-', the first of them "
                "a letter or digit"
            )
        if len(value) > LONGEST_NAME:
            raise ValueError(f"must not be longer than {LONGEST_NAME} characters")
        return value

    @field_validator("source")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        patterns.check_source(value)
        return value

    @field_validator("component")
    @classmethod
    def _is_component(cls, value: str) -> str:
        if "/" in value:
            raise ValueError(f"{value!r} can't be the name of a component: it holds a '/'")
        return value

    @field_validator("keep", mode="before")
    @classmethod
    def _empty_keeps_all(cls, value: Any) -> Any:
        return {"last": 0} if value == {} else value


class Configuration(_Table):
    """A daemon.toml, read and checked."""

    path: Path
    """The file it was read from, absolute."""

    daemon: DaemonSettings = DaemonSettings()
    """The daemon itself."""

    log: LogSettings = LogSettings()
    """Where events go and how they look."""

    watch: tuple[Watch, ...]
    """The rules, one for each checkpoint, or for each family of checkpoints."""
