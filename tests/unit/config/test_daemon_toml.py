"""The daemon.toml that is shipped says what the program does without it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from spancat_daemon.config import units
from spancat_daemon.config.load import parse
from spancat_daemon.config.model import (
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
from spancat_daemon.config.problems import ConfigurationError
from spancat_daemon.config.schema import json_schema

if TYPE_CHECKING:
    from pydantic import BaseModel

SHIPPED = Path(__file__).parents[3] / "daemon.toml"
TEXT = SHIPPED.read_text(encoding="utf-8")
UNCOMMENTED = re.sub(r"^#(?=[a-z_]+ = |\[)", "", TEXT, flags=re.MULTILINE)
VALID = (
    UNCOMMENTED.replace('writer = "spacy"', 'writer = "any"')
    .replace('gold = ""', 'gold = "gold.spacy"')
    .replace('command = ["/usr/local/bin/is-well"]', "")
)
"""All that is written or commented out, with what it needs, and without what can't stand beside it."""
REQUIRED = {"name", "source", "deploy"}
BARE = '[[watch]]\nname = "products"\nsource = "runs/products/model-best"\ndeploy = "models/products"\n'
MODELS: list[type[BaseModel]] = [DaemonSettings, LogSettings, Watch, Keep, Verify, Gate]
LEFT_OUT = {"minimum", "max_drop", "per_label_minimum", "max_bytes", "max_latency_ms"}
"""Conditions that are none unless they are written."""


def tables(text: str) -> list[dict[str, Any]]:
    data = tomllib.loads(text)
    (watch,) = data["watch"]
    return [data["daemon"], data["log"], watch, watch["keep"], watch["verify"], watch["gate"]]


def test_it_is_what_a_file_with_nothing_but_the_rule_means() -> None:
    assert parse(TEXT, SHIPPED, {}) == parse(BARE, SHIPPED, {})


def test_every_key_is_in_it() -> None:
    for model, table in zip(MODELS, tables(UNCOMMENTED), strict=True):
        assert list(table) == list(model.model_fields)
    watch = tables(UNCOMMENTED)[2]
    assert set(watch["health"]) == set(Health.model_fields)
    command, systemd, signal, webhook = watch["after"]
    assert list(command) == ["command", "timeout", "required"]
    assert set(command) == set(RunCommand.model_fields)
    assert {*systemd, *signal, *webhook} == {"systemd", "signal", "webhook"}
    assert list(signal["signal"]) == list(SignalTarget.model_fields)
    assert list(webhook["webhook"]) == list(WebhookTarget.model_fields)


@pytest.mark.parametrize("index", range(len(MODELS)))
def test_every_key_stands_there_with_its_default(index: int) -> None:
    model = MODELS[index]
    table = tables(TEXT)[index]
    for key, value in table.items():
        if key in REQUIRED | {"keep", "verify", "gate"}:
            continue
        bare = BARE + "[daemon]\n[log]\n[watch.keep]\nlast = 1\n[watch.verify]\n[watch.gate]\n"
        written = {**tables(bare)[index], key: value}
        # the empty path stands for none
        if value == "" and key != "metric":
            written.pop(key)
        default = model.model_fields[key].default
        assert getattr(model.model_validate(written, context={"file": True}), key) == default, key


def test_what_is_commented_out_is_only_what_has_to_be() -> None:
    assert set(tables(UNCOMMENTED)[2]) - set(tables(TEXT)[2]) == {"settle", "schedule", "after", "health"}
    assert set(tables(UNCOMMENTED)[5]) - set(tables(TEXT)[5]) == LEFT_OUT
    assert units.seconds(tables(UNCOMMENTED)[2]["settle"]) == Watch.model_fields["settle"].default
    with pytest.raises(ConfigurationError) as caught:
        parse(UNCOMMENTED, SHIPPED, {})
    settle, latency, health = (problem.message for problem in caught.value.problems)
    assert 'settle goes with writer = "any"' in settle
    assert "max_latency_ms needs texts" in latency
    assert "'url' and 'command' can't stand in one [watch.health]" in health


def test_what_is_commented_out_is_valid_where_it_can_stand() -> None:
    (watch,) = parse(VALID, SHIPPED, {}).watch
    assert watch.settle == Watch.model_fields["settle"].default
    cron, interval = watch.schedule
    assert isinstance(cron, CronSchedule)
    assert isinstance(interval, IntervalSchedule)
    shown = tables(UNCOMMENTED)[2]["schedule"][0]
    assert {key: shown[key] for key in ("timezone", "force")} == {
        key: CronSchedule.model_fields[key].default for key in ("timezone", "force")
    }
    kinds = [type(step).__name__ for step in watch.after]
    assert kinds == ["RunCommand", "SystemdJob", "SendSignal", "PostWebhook"]
    assert all((step.timeout, step.required) == (30.0, False) for step in watch.after)
    assert watch.health == Health(url="http://127.0.0.1:8000/health")
    assert all(getattr(watch.gate, key) is not None for key in LEFT_OUT)


def test_every_key_has_its_line_of_explanation() -> None:
    for number, line in enumerate(TEXT.splitlines(), start=1):
        if re.match(r"#?[a-z_]+ = ", line) and not re.match(r"#(schedule|webhook) ", line):
            assert re.search(r"(?<!^)# \S{1,}.{10,}", line), f"line {number}"


def test_the_schema_accepts_it_commented_or_not() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(tomllib.loads(TEXT))
    validator.validate(tomllib.loads(VALID))
    assert not validator.is_valid(tomllib.loads(UNCOMMENTED))


@pytest.mark.parametrize(
    "line",
    [
        "poll = 5",
        "poll = '5x'",
        "contnts = 1",
        "swap = 'x'",
        "on_change = 'a'",
        "keep = { last = -1 }",
        "name = '-'",
        "settle = '1s'",
        "schedule = [{ every = '1h', timezone = 'UTC' }]",
        "schedule = [{ cron = '@daily', every = '1h' }]",
        "schedule = [{}]",
        "verify = { level = 'deep' }",
        "verify = { min_pass = 0 }",
        "gate = { minimum = '0.5' }",
        "gate = { per_label_minimum = { A = 2 } }",
        "gate = { max_bytes = 5 }",
        "after = [{}]",
        "after = [{ command = ['x'], systemd = 'reload x' }]",
        "after = [{ command = [] }]",
        "after = [{ systemd = 'enable x' }]",
        "after = [{ webhook = { url = 'localhost' } }]",
        "health = { within = '1m' }",
        "health = { url = 'http://x', command = ['x'] }",
    ],
)
def test_the_schema_refuses_what_is_refused(line: str) -> None:
    text = f"{BARE.replace('name', '#') if line.startswith('name') else BARE}{line}\n"
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(tomllib.loads(text))
    with pytest.raises(ConfigurationError):
        parse(text, SHIPPED, {})


def test_the_schema_knows_that_variables_are_filled_in() -> None:
    text = BARE + 'poll = "${POLL}"\nswap = "${SWAP:-symlink}"\n'
    jsonschema.Draft202012Validator(json_schema()).validate(tomllib.loads(text))


def test_the_schema_explains_every_key_and_gives_its_default() -> None:
    schema = json_schema()
    models: tuple[type[BaseModel], ...] = (
        *MODELS, CronSchedule, IntervalSchedule, Health, RunCommand, SystemdJob, SendSignal, SignalTarget,
        PostWebhook, WebhookTarget,
    )  # fmt: skip
    for model in models:
        node = schema["$defs"][model.__name__]
        assert list(node["properties"]) == list(model.model_fields)
        assert node["description"]
        for key, field in node["properties"].items():
            assert field["description"], key
            info = model.model_fields[key]
            has = info.default is not None or info.annotation == Path | None  # an absent path is ""
            is_table = "$ref" in field  # whose own keys have defaults
            assert ("default" in field) == (has and not info.is_required() and not is_table), key
    for name, table in zip(("DaemonSettings", "LogSettings"), tables(TEXT)[:2], strict=True):
        for key, value in table.items():
            assert schema["$defs"][name]["properties"][key]["default"] == value
    assert set(schema["properties"]) == {"daemon", "log", "watch"}
    assert schema["required"] == ["watch"]
