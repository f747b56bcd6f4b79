"""What daemon.toml can say: its tables, keys, types and defaults.

The models are the one place that knows the keys; their descriptions become the JSON schema. They check each
value by itself. What values have to do with each other is checked in ``checks``, so that one wrong value
does not hide what is wrong elsewhere. ``load.load`` does both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, StrictBool, Tag, field_validator

from spancat_daemon.config import cron as cron_expressions
from spancat_daemon.config import patterns
from spancat_daemon.config.aftermath import (
    After,
    Health,
    PostWebhook,
    RunCommand,
    SendSignal,
    SignalTarget,
    SystemdJob,
    WebhookTarget,
)
from spancat_daemon.config.problems import nearest
from spancat_daemon.config.terms import Gate, Verify
from spancat_daemon.config.values import Count, Duration, Seconds, Size, Table, Text

__all__ = [
    "After",
    "Configuration",
    "CronSchedule",
    "DaemonSettings",
    "Gate",
    "Health",
    "IntervalSchedule",
    "Keep",
    "LogSettings",
    "PostWebhook",
    "RunCommand",
    "Schedule",
    "SendSignal",
    "SignalTarget",
    "SystemdJob",
    "Verify",
    "Watch",
    "WebhookTarget",
]

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME: Final = 100


def _some_time(value: float) -> float:
    if value <= 0:
        raise ValueError("must be more than nothing: quiet time is all that proves a foreign copy whole")
    return value


def _no_busy_poll(value: float) -> float:
    if 0 < value < 0.1:
        raise ValueError('must be "0s" or at least "100ms"')
    return value


def _no_busy_scrub(value: float) -> float:
    if 0 < value < 1:
        raise ValueError('must be "0s" or at least "1s"')
    return value


class DaemonSettings(Table):
    """The daemon itself."""

    state_dir: Path = Path("var")
    """Where the daemon keeps its own state. $STATE_DIRECTORY, as set by systemd, wins."""

    control_socket: Path = Path()
    """The socket that commands talk to. Empty: control.sock in $RUNTIME_DIRECTORY, or else in state_dir."""

    workers: Annotated[int, Field(strict=True, ge=1, le=64)] = 2
    """Snapshots under way at once."""

    reconcile_every: Seconds = 300.0
    """How often everything is scanned, whatever events said."""

    min_free: Size = 1 << 30
    """Free space that must be left after a snapshot; with less, publishing pauses."""

    scrub_every: Annotated[Duration, AfterValidator(_no_busy_scrub)] = 604800.0
    """How often stored releases are read and compared with their digests. "0s": never."""

    scrub_rate: Size = 32 << 20
    """Bytes a second that are read for it."""

    heal: StrictBool = False
    """Replace a live release that was found corrupted by the last good one."""


class LogSettings(Table):
    """Where events go and how they look."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious events that are logged."""

    format: Literal["auto", "console", "json"] = "auto"
    """How events look on standard output. auto: console on a terminal, json elsewhere."""

    file: Path | None = None
    """A file that JSON lines are appended to as well; reopened on SIGHUP. Empty: none."""


class CronSchedule(Table):
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


class IntervalSchedule(Table):
    """Work at even distances."""

    every: Seconds
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


class Keep(Table):
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


class Watch(Table):
    """A rule: which checkpoints go where, when, and on what terms."""

    name: Annotated[str, Field(json_schema_extra={"pattern": NAME_PATTERN, "maxLength": LONGEST_NAME})]
    """What the rule is called in commands and logs."""

    source: Annotated[Text, Field(json_schema_extra={"minLength": 1})]
    """The checkpoint directory that a trainer writes, or its spool; *, ? and [...] match several."""

    deploy: Annotated[Text, Field(json_schema_extra={"minLength": 1})]
    """The deployment folder. With wildcards in source: {1} is what the first of them matched, and so on."""

    component: Annotated[Text, Field(json_schema_extra={"minLength": 1})] = "auto"
    """The name of the span categorizer in the pipeline. auto: the only one there is."""

    contents: Literal["pipeline", "component", "standalone"] = "pipeline"
    """What a release holds: the whole pipeline; the span categorizer and the pipes it needs; or that one pipe
    alone, with a copy of the tok2vec that it listens to, so that model.bin holds all weights."""

    swap: Literal["symlink", "exchange"] = "symlink"
    """How a release goes live: current is a link, or a directory that is exchanged."""

    writer: Literal["spacy", "any", "spool"] = "spacy"
    """Who writes the checkpoint: spaCy itself, whose order of writing is a proof, or any copying tool.

    spool: source is the spool of a training's SnapshotLogger, and the checkpoint its newest entry.
    """

    settle: Annotated[Duration, AfterValidator(_some_time)] = 2.0
    """With writer = "any": how long a checkpoint must have been quiet."""

    on_change: StrictBool = True
    """Look at the checkpoint whenever it changes."""

    poll: Annotated[Duration, AfterValidator(_no_busy_poll)] = 0.0
    """More than nothing: look this often instead of waiting for events, as on NFS."""

    schedule: tuple[Schedule, ...] = ()
    """Times to look at the checkpoint, whether or not it changed."""

    keep_rejected: Count = 3
    """How many of the last rejected snapshots stay, to be looked into."""

    keep: Keep = Keep()
    """Which releases stay."""

    verify: Verify = Verify()
    """What a snapshot must be seen to do before it goes live."""

    gate: Gate = Gate()
    """Conditions that a snapshot must meet to go live."""

    after: tuple[After, ...] = ()
    """What is told of each swap, in this order."""

    health: Health | None = None
    """What must be well after a swap."""

    @property
    def loads(self) -> bool:
        """Whether spaCy is needed: to see a snapshot work, or to make what it is to hold."""
        return self.contents == "standalone" or self.verify.effective_level in {"load", "probes"}

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


class Configuration(Table):
    """A daemon.toml, read and checked."""

    path: Path
    """The file it was read from, absolute."""

    daemon: DaemonSettings = DaemonSettings()
    """The daemon itself."""

    log: LogSettings = LogSettings()
    """Where events go and how they look."""

    watch: tuple[Watch, ...]
    """The rules, one for each checkpoint, or for each family of checkpoints."""
