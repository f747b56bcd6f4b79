from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spancat_daemon.config.load import LARGEST_BYTES, find, load, parse
from spancat_daemon.config.model import (
    Configuration,
    CronSchedule,
    Health,
    IntervalSchedule,
    Keep,
    PostWebhook,
    RunCommand,
    SendSignal,
    SignalTarget,
    SystemdJob,
    Verify,
    WebhookTarget,
)
from spancat_daemon.config.problems import ConfigurationError, Problem
from spancat_daemon.errors import ExitCode, UsageError

RULE = '[[watch]]\nname = "products"\nsource = "runs/best"\ndeploy = "models"\n'
FILE = Path("/srv/app/daemon.toml")


def read(text: str, environ: dict[str, str] | None = None) -> Configuration:
    return parse(dedent(text), FILE, environ or {})


def messages(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """Each problem as ``line:column: message``."""
    with pytest.raises(ConfigurationError) as caught:
        read(text, environ)
    return [f"{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


def test_the_shortest_file_is_a_rule() -> None:
    configuration = read(RULE)
    assert configuration.path == FILE
    assert configuration.daemon.state_dir == Path("/srv/app/var")
    assert configuration.daemon.control_socket == Path("/srv/app/var/control.sock")
    assert configuration.log.file is None
    (watch,) = configuration.watch
    assert (watch.source, watch.deploy) == ("/srv/app/runs/best", "/srv/app/models")
    assert watch.keep == Keep(last=5)
    assert hash(configuration) == hash(read(RULE))


def test_everything_can_be_said() -> None:
    configuration = read("""
        [daemon]
        state_dir = "/var/lib/x"
        control_socket = "run/c.sock"
        workers = 4
        reconcile_every = "90s"
        min_free = "500MB"
        [log]
        level = "debug"
        format = "json"
        file = "log/x.jsonl"
        [[watch]]
        name = "runs"
        source = "runs/*/model-best"
        deploy = "models/{1}"
        component = "spancat_2"
        contents = "component"
        swap = "exchange"
        writer = "any"
        settle = "1.5s"
        poll = "10s"
        schedule = [{ cron = "0 3 * * 7", timezone = "Europe/Berlin" }, { every = "1h", force = true }]
        [watch.keep]
        daily = 7
        within = "2d"
    """)
    assert configuration.daemon.control_socket == Path("/srv/app/run/c.sock")
    assert configuration.daemon.min_free == 500_000_000
    assert configuration.log.file == Path("/srv/app/log/x.jsonl")
    (watch,) = configuration.watch
    assert watch.settle == 1.5
    assert watch.schedule == (
        CronSchedule(cron="0 3 * * 7", timezone="Europe/Berlin"),
        IntervalSchedule(every=3600.0, force=True),
    )
    assert watch.keep == Keep(last=5, daily=7, within=172_800.0)


def test_an_empty_keep_keeps_everything_and_an_absent_one_the_last_five() -> None:
    assert read(RULE + "[watch.keep]\n").watch[0].keep.empty
    assert read(RULE + "keep = {}\n").watch[0].keep.empty
    assert read(RULE + "keep.last = 0\n").watch[0].keep.empty
    assert not read(RULE).watch[0].keep.empty
    assert not read(RULE + "keep = { last = 0, weekly = 1 }\n").watch[0].keep.empty


def test_what_a_wrong_key_looks_like() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read('[[watch]]\nname = "products"\n  contnts = "pipeline"\nsource = "s"\ndeploy = "d"\n')
    assert str(caught.value) == dedent("""\
        /srv/app/daemon.toml:3:3: unknown key 'contnts' in [[watch]] "products"; did you mean 'contents'?
              contnts = "pipeline"
              ^""")
    assert caught.value.exit_code is ExitCode.USAGE


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
        [daemn]
        [log]
        level = 3
        [[watch]]
        name = "a b"
        sorce = "${NONE}/x"
        deploy = "/d"
        poll = "1x"
        on_change = false
        settle = "1s"
        [[watch]]
        name = "c"
        source = "/s"
        deploy = "/d"
        [watch.keep]
        last = "many"
        [[watch]]
        name = "c"
        source = "/s"
        deploy = "/s/d"
    """
    found = messages(text)
    assert [message.split(":")[0] for message in found] == [
        "1",
        "3",
        "5",
        "6",
        "6",
        "8",
        "10",
        "16",
        "18",
        "20",
        "20",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # types
        ("name = 3", "5:8: name must be text in quotes, not the number 3"),
        ("on_change = 'yes'", "5:13: on_change must be true or false, without quotes, not the text 'yes'"),
        ("on_change = 1", "5:13: on_change must be true or false, without quotes, not the number 1"),
        ("poll = 5", '5:8: poll must be a duration in quotes, such as "5s"'),
        ("poll = 0", '5:8: poll must be a duration in quotes, such as "0s"'),
        ("poll = -1", '5:8: poll must be a duration in quotes, such as "5m"'),
        ("poll = inf", '5:8: poll must be a duration in quotes, such as "5m"'),
        ("poll = [1]", '5:8: poll must be a duration in quotes, such as "5m"'),
        ("poll = 2020-01-01", '5:8: poll must be a duration in quotes, such as "5m"'),
        ("component = 2020-01-01", "5:13: component must be text in quotes, not a date or time"),
        ("schedule = '0 3 * * *'", "5:12: schedule must be a list in [ ], not the text '0 3 * * *'"),
        ("schedule = ['0 3 * * *']", "5:13: schedule number 1 must be a table, not the text '0 3 * * *'"),
        ("keep = 5", "5:8: keep must be a table, not the number 5"),
        ("keep.last = 1.5", "5:13: keep.last must be a whole number, without quotes, not the number 1.5"),
        ("keep.last = true", "5:13: keep.last must be a whole number, without quotes, not true"),
        ("keep.last = -1", "5:13: keep.last must be at least 0"),
        ("keep.last = 99999999999999999999", "5:13: keep.last must be at most 1000000"),
        # values
        (
            "poll = '5 minutes'",
            "5:8: poll: '5 minutes' is not a duration; write a number and a unit without a space",
        ),
        ("poll = '5min'", "5:8: poll: '5min' has the unknown unit 'min'"),
        ("poll = '1ms'", '5:8: poll must be "0s" or at least "100ms"'),
        (
            "swap = 'symlnk'",
            "5:8: swap must be 'symlink' or 'exchange', not 'symlnk'; did you mean 'symlink'?",
        ),
        ("swap = true", "5:8: swap must be 'symlink' or 'exchange', not true"),
        ("component = ''", "5:13: component must not be empty"),
        ("component = 'a/b'", "5:13: component: 'a/b' can't be the name of a component"),
        ('component = "a\\u0007"', "5:13: component must not hold control characters"),
        ("writer = 'any'\nsettle = '0s'", "6:10: settle must be more than nothing"),
        # schedules
        (
            "schedule = [{ cron = '0 24 * * *' }]",
            "5:22: schedule.cron: '24' is not a hour in '0 24 * * *'; they go from 0",
        ),
        (
            "schedule = [{ cron = '@daily', timezone = 'Berlin' }]",
            "5:43: schedule.timezone: 'Berlin' is not a time zone",
        ),
        (
            "schedule = [{ cron = '@daily', timezone = 'Europe' }]",
            "5:43: schedule.timezone: 'Europe' is not a time zone",
        ),
        (
            "schedule = [{ cron = '@daily', timezone = '../x' }]",
            "5:43: schedule.timezone: '../x' is not a time zone",
        ),
        ("schedule = [{ cron = '@daily', timezone = '' }]", "5:43: schedule.timezone: '' is not a time zone"),
        ("schedule = [{ cron = '@daily', timezone = 'Europe/Berln' }]", "did you mean 'Europe/Berlin'?"),
        ("schedule = [{ every = '0s' }]", '5:23: schedule.every must be at least "1s"'),
        (
            "schedule = [{ force = true }]",
            "5:13: the key 'cron' is missing in a schedule of [[watch]] \"products\"; write",
        ),
        (
            "schedule = [{ evry = '1h' }]",
            "5:15: unknown key 'evry' in a schedule of [[watch]] \"products\"; did you mean 'every'?",
        ),
        (
            "schedule = [{ cron = '@daily', every = '1h' }]",
            "5:32: 'cron' and 'every' can't stand in one schedule",
        ),
        (
            "schedule = [{ every = '1h', timezone = 'UTC' }]",
            "5:29: 'timezone' goes with 'cron', not with 'every'",
        ),
        # keys that belong elsewhere
        (
            "level = 'info'",
            "5:1: unknown key 'level' in [[watch]] \"products\"; it belongs in [log] or [watch.verify]",
        ),
        (
            "labels = 'same'",
            "5:1: unknown key 'labels' in [[watch]] \"products\"; it belongs in [watch.gate]",
        ),
        ("last = 5", "5:1: unknown key 'last' in [[watch]] \"products\"; it belongs in [watch.keep]"),
        ("[watch.keep]\npoll = '1s'", "it belongs in [[watch]], above [watch.keep]"),
        ("[watch.kep]", "5:8: unknown key 'kep' in [[watch]] \"products\"; did you mean 'keep'?"),
        ("zzz = 1", "5:1: unknown key 'zzz' in [[watch]] \"products\"; it has 'name', 'source'"),
        # combinations
        ("settle = '2s'", '5:1: settle goes with writer = "any"'),
        ("on_change = false\npoll = '1s'", "6:1: poll looks for changes, but on_change = false"),
        ("keep = { best = 1, metric = '' }", "5:29: best needs a metric"),
    ],
)
def test_one_wrong_line_is_one_problem(line: str, expected: str) -> None:
    rule = RULE.replace('name = "products"', "# no name") if line.startswith("name") else RULE
    (message,) = messages(f"{rule}{line}\n")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: there is no [[watch]]: nothing to do; add [[watch]] with"),
        ("[log]\n\n", "1:1: there is no [[watch]]"),
        ("watch = []", "1:1: there is no [[watch]]"),
        ("watch = 3", "1:9: watch: a rule begins with [[watch]]"),
        ('[watch]\nname = "a"', "1:1: watch: a rule begins with [[watch]]"),
        ("[watch.keep]\nlast = 1", "watch: a rule begins with [[watch]]"),
        ("watch = [1]", "1:10: watch number 1 must be a table, not the number 1"),
        ("[[wach]]\nname = 'a'", "1:3: unknown key 'wach'; did you mean 'watch'?"),
        (RULE + "[daemon]\nworkers = 0", "6:11: workers must be at least 1"),
        (RULE + "[daemon]\nstate_dir = ''", "6:13: state_dir must not be empty"),
        (RULE + "[daemon]\nstate_dir = 5", "6:13: state_dir must be a path in quotes, not the number 5"),
        (RULE + "[daemon]\nreconcile_every = '0s'", '6:19: reconcile_every must be at least "1s"'),
        (RULE + "[daemon]\nmin_free = 5", '6:12: min_free must be a size in quotes, such as "5B"'),
        (RULE + "[daemon]\nlast = 5", "6:1: unknown key 'last' in [daemon]; it belongs in [watch.keep]"),
        ("daemon = 1\n" + RULE, "1:10: daemon must be a table, not the number 1"),
        ("workers = 1\n" + RULE, "1:1: unknown key 'workers'; it belongs in [daemon]"),
        ("path = 'x'\n" + RULE, "1:1: unknown key 'path'"),
        ("zzz = 'x'\n" + RULE, "1:1: unknown key 'zzz'; there are [daemon], [log] and [[watch]]"),
        (RULE + "[log]\nlevel = 'warn'", "did you mean 'warning'?"),
        (RULE.replace('"models"', '""'), "4:10: deploy must not be empty"),
        (RULE.replace('"models"', '"~/models"'), "4:10: deploy: '~' is not filled in; write ${HOME} instead"),
        (RULE.replace('"models"', '"a\\u0000"'), "4:10: deploy must not hold a NUL character"),
        (
            RULE.replace('source = "runs/best"', ""),
            "1:1: the key 'source' is missing in [[watch]] \"products\"",
        ),
        (
            RULE.replace("source", "sorce"),
            "3:1: unknown key 'sorce' in [[watch]] \"products\"; did you mean 'source'?",
        ),
        (RULE.replace("products", "-x"), "2:8: name: '-x' is not a name; write letters"),
        (RULE.replace("products", "a" * 101), "2:8: name must not be longer than 100 characters"),
        # sources and where they lead
        (RULE.replace("runs/best", "runs/**/b"), "3:10: source: '**' is not supported"),
        (
            RULE.replace("runs/best", "runs/[ab/b"),
            "3:10: source: the '[' in '[ab' is never closed; write '[[]'",
        ),
        (RULE.replace("runs/best", "runs/*/../b"), "3:10: source: '..' can't follow a wildcard"),
        (RULE.replace("runs/best", "runs/*/b"), "4:10: deploy must use {1}, what '*' in source matched"),
        (
            RULE.replace("models", "models/{1}"),
            "{1} stands for a wildcard that source does not have: it has none",
        ),
        (RULE.replace("models", "models/*"), "4:10: deploy can't hold wildcards; name one folder"),
        (RULE.replace("runs/best", "*/b").replace("models", "{1}/{2}/{0}"), "{0} stands for a wildcard"),
        (
            RULE.replace("runs/best", "*/r-?/b").replace("models", "m/{1}-{2}"),
            "two placeholders in one folder's name",
        ),
        (
            RULE.replace("models", "runs/best"),
            "4:10: deploy lies inside its own source, '/srv/app/runs/best' at line 3",
        ),
        (RULE.replace("models", "runs/best/x"), "deploy lies inside its own source"),
        (RULE.replace("models", "runs"), "deploy is around its own source"),
        (RULE.replace("models", "."), "deploy is around its own source"),
        (RULE.replace("models", "/"), "deploy is around its own source"),
        (
            RULE.replace("runs/best", "runs/*").replace("models", "runs/{1}/out"),
            "deploy lies inside its own source",
        ),
        (
            RULE.replace("models", "var"),
            "4:10: deploy holds state_dir of [daemon], '/srv/app/var'; keep the two apart",
        ),
        (RULE + "[log]\nfile = 'models/log'", "4:10: deploy holds log.file, '/srv/app/models/log'"),
        (RULE + "[daemon]\ncontrol_socket = 'runs/best/c'", "3:10: source holds control_socket of [daemon]"),
        (RULE + f"[daemon]\ncontrol_socket = '/{'x' * 107}'", "6:18: the path of the control socket"),
    ],
)
def test_problems_of_the_whole(text: str, expected: str) -> None:
    assert expected in "\n".join(messages(text))


VERIFY = "[watch.verify]\n"
GATE = "[watch.gate]\n"
AFTER = "[[watch.after]]\n"
HEALTH = "[watch.health]\nurl = 'http://localhost/'\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # keys, at every depth and in every notation
        (
            VERIFY + "levl = 'load'",
            "6:1: unknown key 'levl' in [watch.verify] \"products\"; did you mean 'level'?",
        ),
        (
            "verify = { timout = '1s' }",
            "5:12: unknown key 'timout' in [watch.verify] \"products\"; did you mean",
        ),
        (
            "verify.probs = 'x'",
            "5:8: unknown key 'probs' in [watch.verify] \"products\"; did you mean 'probes'?",
        ),
        (
            VERIFY + "minimum = 1",
            "6:1: unknown key 'minimum' in [watch.verify] \"products\"; it belongs in [watch.gate]",
        ),
        (VERIFY + "keep_rejected = 1", "it belongs in [[watch]], above [watch.verify]"),
        ("[watch.verfy]", "5:8: unknown key 'verfy' in [[watch]] \"products\"; did you mean 'verify'?"),
        (
            GATE + "max_dorp = 1",
            "6:1: unknown key 'max_dorp' in [watch.gate] \"products\"; did you mean 'max_drop'?",
        ),
        (GATE + "zzz = 1", "6:1: unknown key 'zzz' in [watch.gate] \"products\"; it has 'metric', 'minimum'"),
        (
            AFTER + "command = ['x']\ntimout = 1",
            "7:1: unknown key 'timout' in [[watch.after]] \"products\"; did you",
        ),
        (
            "after = [{ comand = ['x'] }]",
            "5:12: unknown key 'comand' in [[watch.after]] \"products\"; did you mean 'comm",
        ),
        (
            AFTER + "[watch.after.signl]\npidfile = 'p'",
            "6:14: unknown key 'signl' in [[watch.after]] \"products\"; did",
        ),
        (
            AFTER + "signal = { pidfil = 'x' }",
            "6:12: unknown key 'pidfil' in [watch.after.signal] \"products\"; did you mean 'pidfile'?",
        ),
        (
            AFTER + "command = ['x']\n" + AFTER + "[watch.after.webhook]\nurl = 'http://x'\nsecretfile = 'y'",
            "10:1: unknown key 'secretfile' in [watch.after.webhook] \"products\"; did you mean 'secret_file'?",
        ),
        (
            AFTER + "systemd = 'reload x'\npidfile = 'x'",
            "7:1: unknown key 'pidfile' in [[watch.after]] \"products\"; it belo",
        ),
        (AFTER + "systemd = 'reload x'\nurl = 'x'", "it belongs in [watch.after.webhook]"),
        (
            HEALTH + "evry = '1s'",
            "7:1: unknown key 'evry' in [watch.health] \"products\"; did you mean 'every'?",
        ),
        (
            HEALTH + "required = true",
            "7:1: unknown key 'required' in [watch.health] \"products\"; it belongs in [[watch.a",
        ),
        (AFTER + "signal = {}", "6:10: the key 'pidfile' is missing in [watch.after.signal] \"products\""),
        (AFTER + "webhook = {}", "6:11: the key 'url' is missing in [watch.after.webhook] \"products\""),
        # one of several keys
        (AFTER, "5:1: [[watch.after]] needs one of 'command', 'systemd', 'signal' or 'webhook'"),
        ("after = [{}]", "5:10: [[watch.after]] needs one of 'command', 'systemd'"),
        (AFTER + "timeout = '1s'\nrequired = true", "5:1: [[watch.after]] needs one of 'command', 'systemd'"),
        (
            AFTER + "command = ['x']\nsystemd = 'reload x'",
            "7:1: 'command' and 'systemd' can't stand in one [[watch.after]]; write one for each",
        ),
        (
            "after = [{ systemd = 'reload x', signal = { pidfile = 'x' }, command = ['x'] }]",
            "5:34: 'systemd' and 'signal' and 'command' can't stand in one [[watch.after]]",
        ),
        ("[watch.health]\nwithin = '5x'", "5:1: [watch.health] needs one of 'command' or 'url'"),
        (
            HEALTH + "command = ['x']",
            "7:1: 'url' and 'command' can't stand in one [watch.health]; write one of them",
        ),
        (
            "[watch.health]\nurll = 'x'",
            "6:1: unknown key 'urll' in [watch.health] \"products\"; did you mean 'url'?",
        ),
        # types
        ("verify = 'load'", "5:10: verify must be a table, not the text 'load'"),
        ("after = { command = ['x'] }", "5:9: after must be a list in [ ], not a table"),
        ("[watch.after]\ncommand = ['x']", "5:1: after must be a list in [ ], not a table"),
        ("after = ['reload']", "5:10: after number 1 must be a table, not the text 'reload'"),
        (VERIFY + "probes = 5", "6:10: verify.probes must be a path in quotes, not the number 5"),
        (VERIFY + "timeout = 5", '6:11: verify.timeout must be a duration in quotes, such as "5s"'),
        (VERIFY + "memory = 5", '6:10: verify.memory must be a size in quotes, such as "5B"'),
        (GATE + "minimum = '0.5'", "6:11: gate.minimum must be a number, not the text '0.5'"),
        (GATE + "minimum = true", "6:11: gate.minimum must be a number, not true"),
        (GATE + "minimum = nan", "6:11: gate.minimum must be a number, not nan"),
        (GATE + "max_drop = inf", "6:12: gate.max_drop must be a number, not inf"),
        (
            GATE + "min_step = 1.5",
            "6:12: gate.min_step must be a whole number, without quotes, not the number 1.5",
        ),
        (GATE + "per_label_minimum = '1'", "6:21: gate.per_label_minimum must be a number, not the text '1'"),
        (
            GATE + "per_label_minimum = { A = 'x' }",
            "6:27: gate.per_label_minimum.A must be a number, not the text 'x'",
        ),
        (
            "[watch.gate.per_label_minimum]\nA = 0.5\n'A B' = 2",
            '7:9: gate.per_label_minimum."A B" must be at most 1',
        ),
        (
            GATE + "per_label_minimum = {}",
            "6:21: gate.per_label_minimum must name a label, such as { PRODUCT = 0.8 }",
        ),
        (AFTER + "command = 'x'", "6:11: after.command must be a list in [ ], not the text 'x'"),
        (
            AFTER + "command = ['x', 5]",
            "6:17: after.command number 2 must be text in quotes, not the number 5",
        ),
        (AFTER + "signal = 'HUP'", "6:10: after.signal must be a table, not the text 'HUP'"),
        (
            HEALTH + "passes = 1.5",
            "7:10: health.passes must be a whole number, without quotes, not the number 1.5",
        ),
        # values
        (
            VERIFY + "level = 'lod'",
            "6:9: verify.level must be 'none', 'structure', 'load' or 'probes', not 'lod'; did",
        ),
        (VERIFY + "timeout = '0s'", "6:11: verify.timeout must be more than nothing"),
        (
            VERIFY + "memory = '100MiB'",
            '6:10: verify.memory must be at least "512MiB": spaCy alone takes half of that',
        ),
        (VERIFY + "min_pass = 0", "6:12: verify.min_pass must be more than 0"),
        (VERIFY + "min_pass = 75", "6:12: verify.min_pass must be at most 1"),
        (VERIFY + "gold = '~/x'", "6:8: verify.gold: '~' is not filled in; write ${HOME} instead"),
        (
            VERIFY + "python = '~/bin/python'",
            "6:10: verify.python: '~' is not filled in; write ${HOME} instead",
        ),
        (VERIFY + 'probes = "a\\u0000"', "6:10: verify.probes must not hold a NUL character"),
        (
            GATE + "labels = 'sames'",
            "6:10: gate.labels must be 'same', 'superset' or 'any', not 'sames'; did you mean 'same'?",
        ),
        (GATE + "max_drop = -0.1", "6:12: gate.max_drop must be at least 0"),
        (GATE + "min_step = -1", "6:12: gate.min_step must be at least 0"),
        (GATE + "per_label_minimum = 75", "6:21: gate.per_label_minimum must be at most 1"),
        (AFTER + "command = []", '6:11: after.command must name a program, such as ["/usr/local/bin/tell"'),
        (AFTER + "command = ['', 'x']", "6:11: after.command must begin with the name of a program"),
        (AFTER + 'command = ["x", "\\u0000"]', "6:17: after.command number 2 must not hold a NUL character"),
        (
            AFTER + "command = ['~/x']",
            "6:12: after.command number 1: '~' is not filled in; write ${HOME} instead",
        ),
        (AFTER + "command = ['x']\ntimeout = '0s'", "7:11: after.timeout must be more than nothing"),
        (
            AFTER + "systemd = 'reload'",
            "6:11: after.systemd must name a unit after 'reload', such as \"reload ner-api.",
        ),
        (
            AFTER + "systemd = 'relod x'",
            "6:11: after.systemd: 'relod' is nothing that can be told to systemd; did you m",
        ),
        (
            AFTER + "systemd = 'enable x'",
            "'enable' is nothing that can be told to systemd; it can be 'reload', 'restart'",
        ),
        (
            AFTER + "systemd = 'ner-api.service'",
            "6:11: after.systemd: 'ner-api.service' is nothing that can be told",
        ),
        (AFTER + "systemd = 'reload --now'", "6:11: after.systemd: '--now' can't be the name of a unit"),
        (AFTER + "systemd = 'reload n@{1}.service'", "'n@{1}.service' can't be the name of a unit"),
        (
            AFTER + "systemd = ' '",
            "6:11: after.systemd: '' is nothing that can be told to systemd; it can be",
        ),
        (AFTER + "systemd = ''", "6:11: after.systemd must not be empty"),
        (AFTER + "signal = { pidfile = '' }", "6:22: after.signal.pidfile must not be empty"),
        (
            AFTER + "signal = { pidfile = 'p', name = 'HUPP' }",
            "6:34: after.signal.name: 'HUPP' is not a signal; did you mean 'HUP'?",
        ),
        (AFTER + "signal = { pidfile = 'p', name = 'hup' }", "'hup' is not a signal; did you mean 'HUP'?"),
        (AFTER + "signal = { pidfile = 'p', name = '1' }", "'1' is not a signal, such as 'HUP' or 'USR1'"),
        (
            AFTER + "signal = { pidfile = 'p', name = 'SIGKILL' }",
            "after.signal.name: 'SIGKILL' can't be caught",
        ),
        (
            AFTER + "webhook = { url = 'x.example/hook' }",
            "6:19: after.webhook.url: 'x.example/hook' has no scheme; write",
        ),
        (
            AFTER + "webhook = { url = 'localhost:8000' }",
            "'localhost:8000' has no scheme; write http:// or https://",
        ),
        (
            AFTER + "webhook = { url = 'ftp://x' }",
            "'ftp://x' must begin with http:// or https://, not with ftp://",
        ),
        (
            AFTER + "webhook = { url = 'http:///hook' }",
            "'http:///hook' names no host, such as \"http://127.0.0.1",
        ),
        (
            AFTER + "webhook = { url = 'http://x:99999/' }",
            "'http://x:99999/' is not a URL: Port out of range",
        ),
        (AFTER + "webhook = { url = 'http://[::1/' }", "is not a URL: Invalid IPv6 URL"),
        (AFTER + "webhook = { url = 'http://a b/' }", "is not a URL: it holds a space or an unprintable"),
        (
            AFTER + "webhook = { url = 'http://me:pw@x/' }",
            "after.webhook.url must not hold a user or password",
        ),
        ("[watch.health]\nurl = '127.0.0.1/health'", "6:7: health.url: '127.0.0.1/health' has no scheme"),
        ("[watch.health]\ncommand = []", "6:11: health.command must name a program"),
        (HEALTH + "every = '10ms'", '7:9: health.every must be at least "1s"'),
        (HEALTH + "within = '0s'", "7:10: health.within must be more than nothing"),
        (HEALTH + "passes = 0", "7:10: health.passes must be at least 1"),
        ("keep_rejected = -1", "5:17: keep_rejected must be at least 0"),
        ("[daemon]\nscrub_every = '10ms'", '6:15: scrub_every must be "0s" or at least "1s"'),
        ("[daemon]\nscrub_rate = 5", '6:14: scrub_rate must be a size in quotes, such as "5B"'),
        ("[daemon]\nheal = 'yes'", "6:8: heal must be true or false, without quotes, not the text 'yes'"),
        # combinations
        (
            VERIFY + "level = 'none'\nprobes = 'p'",
            '6:9: level = "none" loads no model, which probes needs; remove one',
        ),
        (
            VERIFY + "level = 'structure'\nprobes = 'p'\ngold = 'g'",
            '6:9: level = "structure" loads no model, which probes or gold needs; remove one',
        ),
        (VERIFY + "level = 'probes'\nprobes = ''", '6:9: level = "probes" needs probes, or gold, to look at'),
        (VERIFY + "min_pass = 0.5", "6:1: min_pass is a share of probes, and there are none"),
        (
            VERIFY
            + "level = 'none'\n"
            + GATE
            + "labels = 'any'\nmin_step = 0\nmax_bytes = '1GB'\nminimum = 0",
            '10:1: max_bytes is a condition on what verify.level = "none" does not look at; write level = "structure"',
        ),
        (
            VERIFY + "level = 'none'\n" + GATE + "min_step = 1",
            '8:1: min_step is a condition on what verify.level = "none"',
        ),
        (
            GATE + "max_latency_ms = 1",
            "6:1: max_latency_ms needs texts to be measured on; name some in verify.probes",
        ),
        (GATE + "metric = 'x'", "6:1: metric is what minimum and max_drop go by, and neither is there"),
        (GATE + "minimum = 75", "6:11: minimum: scores go from 0 to 1; 75 % is 0.75"),
        (GATE + "metric = 'spans_sc_p'\nmax_drop = 2", "7:12: max_drop: scores go from 0 to 1; 2 % is 0.02"),
        (HEALTH + "timeout = '2m'", '7:11: one check may take timeout = "2m", longer than within = "1m"'),
        (HEALTH + "within = '3s'", '7:10: one check may take timeout = "5s", longer than within = "3s"'),
        (HEALTH + "passes = 40", '7:10: 40 checks every "2s" take longer than within = "1m"'),
        (
            "[daemon]\nscrub_rate = '0B'",
            '6:14: scrub_rate must be more than nothing; scrub_every = "0s" is the way',
        ),
        ("[daemon]\nheal = true\nscrub_every = '0s'", "6:1: heal mends what reading the releases finds"),
        # placeholders
        (
            VERIFY + "probes = '{1}/p'",
            "6:10: {1} stands for a wildcard that source does not have: it has none",
        ),
        (AFTER + "signal = { pidfile = '{1}' }", "6:22: {1} stands for a wildcard that source does not have"),
    ],
)
def test_one_wrong_line_about_terms_is_one_problem(text: str, expected: str) -> None:
    (message,) = messages(f"{RULE}{text}\n")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            VERIFY + "gold = '{1}/{2}'",
            "6:8: {2} stands for a wildcard that source does not have: it has only 1",
        ),
        (
            VERIFY + "python = 'runs/{1}/bin/python'",
            "6:10: {1} is not filled in here: python must not depend on what",
        ),
        (
            AFTER + "webhook = { url = 'http://x', secret_file = '{1}' }",
            "6:45: {1} is not filled in here: secret_file must not depend on what source matched",
        ),
    ],
)
def test_placeholders_stand_only_where_they_are_filled_in(text: str, expected: str) -> None:
    rule = RULE.replace("runs/best", "runs/*").replace('"models"', '"models/{1}"')
    (message,) = messages(f"{rule}{text}\n")
    assert expected in message


def test_a_folder_that_looks_like_a_placeholder_is_told_for_probes_too() -> None:
    rule = RULE.replace("runs/best", "/runs/*").replace('"models"', '"/models/{1}"')
    text = rule + VERIFY + "probes = '{1}.jsonl'\n"
    with pytest.raises(ConfigurationError, match="6:10: this file lies in a folder whose name looks like"):
        parse(text, Path("/{2}/d.toml"), {})


def test_terms_as_the_file_says_them() -> None:
    (watch,) = read("""
        [[watch]]
        name = "products"
        source = "runs/*"
        deploy = "models/{1}"
        [watch.verify]
        python = "venv/bin/python"
        memory = "2GiB"
        probes = "probes/{1}.jsonl"
        gold = "../gold.spacy"
        min_pass = 0.9
        [watch.gate]
        minimum = 0.7
        per_label_minimum = { PRODUCT = 0.8, BRAND = 1 }
        max_bytes = "1GiB"
        max_latency_ms = 2
        [[watch.after]]
        command = ["bin/told", "~", ""]
        [[watch.after]]
        systemd = "try-reload-or-restart ner@a.service ner-api"
        required = true
        timeout = "5s"
        [[watch.after]]
        signal.pidfile = "run/{1}.pid"
        signal.name = "SIGUSR1"
        [[watch.after]]
        [watch.after.webhook]
        url = "https://[::1]:8443/hook?a=b"
        secret_file = "secret"
        [watch.health]
        command = ["./well"]
        within = "3s"
        timeout = "3s"
    """).watch
    assert watch.verify.python == Path("/srv/app/venv/bin/python")
    assert watch.verify.probes == Path("/srv/app/probes/{1}.jsonl")
    assert watch.verify.gold == Path("/srv/gold.spacy")
    assert watch.verify.effective_level == "probes"
    assert watch.gate.per_label_minimum == {"PRODUCT": 0.8, "BRAND": 1.0}
    command, systemd, signal, webhook = watch.after
    assert isinstance(command, RunCommand)
    assert command.command == ("/srv/app/bin/told", "~", "")
    assert isinstance(systemd, SystemdJob)
    assert (systemd.required, systemd.timeout) == (True, 5.0)
    assert isinstance(signal, SendSignal)
    assert signal.signal == SignalTarget(pidfile=Path("/srv/app/run/{1}.pid"), name="USR1")
    assert isinstance(webhook, PostWebhook)
    assert webhook.webhook.secret_file == Path("/srv/app/secret")
    assert watch.health == Health(command=("/srv/app/well",), within=3.0, timeout=3.0)
    assert isinstance(hash(watch), int)


def test_empty_paths_are_none_and_bare_names_of_programs_stay() -> None:
    text = RULE + VERIFY + "python = ''\nprobes = ''\ngold = ''\nmin_pass = 1.0\n"
    assert read(text).watch[0].verify == Verify()
    assert read(RULE + VERIFY + "python = 'python3.10'\n").watch[0].verify.python == Path("python3.10")
    webhook = AFTER + "webhook = { url = 'http://x', secret_file = '' }\n"
    (step,) = read(RULE + webhook).watch[0].after
    assert step == PostWebhook(webhook=WebhookTarget(url="http://x"))
    (step,) = read(RULE + AFTER + "command = ['told']\n").watch[0].after
    assert step == RunCommand(command=("told",))


def test_a_missing_variable_in_a_table_of_a_table_is_one_problem() -> None:
    assert messages(RULE + AFTER + "webhook = { url = 'http://${HOST}/' }\n") == [
        "6:27: the environment variable HOST is not set; set it, or write ${HOST:-default}"
    ]


def test_a_state_folder_inside_of_the_deployment_folders_parent_is_fine() -> None:
    assert read(RULE.replace("models", "var/models")).watch[0].deploy == "/srv/app/var/models"


@pytest.mark.parametrize(
    ("source", "deploy", "expected"),
    [
        ("/a", "models", "'/srv/app/models' is also where rule \"products\" deploys to, at line 4"),
        ("/a", "./models//", "is also where"),
        ("/a", "models/x", "lies inside of where"),
        ("/a/*", "{1}", "is also where"),
        ("/a/*", "models/{1}", "lies inside of where"),
        ("models/current", "x", 'deploy is around the source of rule "other"'),
        ("/a", "runs/best/x", 'deploy lies inside the source of rule "products"'),
    ],
)
def test_rules_that_are_in_each_others_way(source: str, deploy: str, expected: str) -> None:
    other = f'[[watch]]\nname = "other"\nsource = "{source}"\ndeploy = "{deploy}"\n'
    assert expected in "\n".join(messages(RULE + other))


def test_families_of_folders_that_can_meet_are_refused_and_others_are_not() -> None:
    def two(first: str, second: str) -> str:
        return "".join(
            f'[[watch]]\nname = "r{i}"\nsource = "/s{i}/*"\ndeploy = "{deploy}"\n'
            for i, deploy in enumerate((first, second))
        )

    assert "is also where" in "\n".join(messages(two("/m/{1}", "/m/a-{1}")))
    assert "holds the folder where" in "\n".join(messages(two("/m/x/{1}", "/m/{1}")))
    assert len(read(two("/m/a-{1}", "/m/b-{1}")).watch) == 2
    assert len(read(two("/m/{1}-a", "/m/{1}-b")).watch) == 2


def test_the_same_checkpoint_may_go_to_two_places() -> None:
    other = RULE.replace("products", "small").replace("models", "small") + 'contents = "component"\n'
    assert [watch.name for watch in read(RULE + other).watch] == ["products", "small"]


def test_a_rule_that_only_works_by_hand_is_fine() -> None:
    assert read(RULE + "on_change = false\n").watch[0].schedule == ()


def test_duplicate_names_are_told_with_both_lines() -> None:
    other = RULE.replace("models", "m2")
    assert messages(RULE + other) == ["6:8: another rule, at line 2, has the name 'products' too"]


def test_links_are_seen_through(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "runs").symlink_to("big")
    text = RULE.replace("models", "big/best/out")
    with pytest.raises(ConfigurationError, match="deploy lies inside its own source"):
        parse(text, tmp_path / "daemon.toml", {})


def test_parent_folders_are_where_the_kernel_finds_them(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/away")
    configuration = parse(RULE.replace("runs/best", "near/../x"), tmp_path / "daemon.toml", {})
    assert configuration.watch[0].source == str(tmp_path.resolve() / "far" / "x")


def test_wildcards_in_the_name_of_the_files_folder_are_no_wildcards() -> None:
    configuration = parse(RULE, Path("/srv/a[b]*/daemon.toml"), {})
    assert configuration.watch[0].source == "/srv/a[[]b][*]/runs/best"
    text = RULE.replace("runs/best", "*").replace('"models"', '"{1}-m/x"')
    with pytest.raises(ConfigurationError, match="looks like a placeholder"):
        parse(text, Path("/{2}/d.toml"), {})


def test_variables_are_filled_in_before_anything_is_checked() -> None:
    text = RULE.replace("runs", "${RUNS:-runs}") + 'poll = "${POLL}"\n'
    configuration = read(text, {"POLL": "10s", "RUNS": "/data"})
    assert configuration.watch[0].source == "/data/best"
    assert configuration.watch[0].poll == 10.0


def test_a_missing_variable_is_placed_where_it_is_written() -> None:
    text = RULE.replace('"models"', '"""\\\n  a\\\n  ${NONE}/x"""')
    (message,) = messages(text)
    assert message.startswith("6:3: the environment variable NONE is not set")


def test_systemds_folders_win() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a:/run/b"}
    daemon = read(RULE + '[daemon]\nstate_dir = "mine"\n', environ).daemon
    assert (daemon.state_dir, daemon.control_socket) == (Path("/var/lib/a"), Path("/run/a/control.sock"))
    daemon = read(RULE + '[daemon]\ncontrol_socket = "c.sock"\n', environ).daemon
    assert daemon.control_socket == Path("/srv/app/c.sock")
    assert read(RULE, {"STATE_DIRECTORY": "/s"}).daemon.control_socket == Path("/s/control.sock")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = ", "1:5: not TOML: Invalid value; text stands in quotes"),
        (
            "[daemon]\nmin_free = 4GiB\n",
            "2:13: not TOML: Expected newline or end of document after a statement; text stands",
        ),
        (
            "[daemon]\nworkers 2\n",
            "2:9: not TOML: Expected '=' after a key in a key/value pair; write key = value",
        ),
        ('name = "a\n', "1:10: not TOML: the text is not closed with a quote"),
        ('a = 1\n  name = "a"\n  name = "b"\n', "3:3: not TOML: this key is given twice"),
        ("[log]\n[log]\n", "2:5: not TOML: this table is given twice"),
        ("x = [1,\n", "1:8: not TOML: Invalid value"),
    ],
)
def test_a_syntax_error_has_its_place_and_a_hint(text: str, expected: str) -> None:
    (message,) = messages(text)
    assert message.startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 5000,
        "x = " + "{a=" * 5000,
        "x = [\n" * 1 + "[\n" * 100_000,
        "x=" + "[" * 40 + "]" * 40,
        "a." * 8000 + "a=1",
        "[" + "a." * 8000 + "a]",
    ],
)
def test_deep_nesting_is_refused(text: str) -> None:
    (message,) = messages(text)
    assert "nested" in message


def test_a_line_beyond_reason_is_refused() -> None:
    assert messages("a." * 500_000) == ["1:1: the line is longer than 16384 characters; break it up"]


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet="[]{}=,.\"'\\#\n\t ${}:-watch.name1\x00\ufeff☃", max_size=60))
def test_nothing_but_a_configuration_error_is_raised(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    for problem in caught.value.problems:
        assert 1 <= problem.line <= text.count("\n") + 1
        assert problem.column >= 1


KEYS = (
    "cron every last best metric y level probes python min_pass minimum per_label_minimum labels within passes "
    "command systemd signal webhook url pidfile name timeout"
).split()
SCALARS = st.one_of(
    st.text(alphabet="ab/*{}1[$~.", max_size=8),
    st.integers(-3, 3),
    st.booleans(),
    st.just("5m"),
    st.floats(allow_nan=False),
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "name",
                "source",
                "deploy",
                "poll",
                "settle",
                "writer",
                "on_change",
                "keep",
                "schedule",
                "swap",
                "verify",
                "gate",
                "after",
                "health",
                "x",
            ]
        ),
        st.one_of(
            SCALARS,
            st.lists(SCALARS, max_size=2),
            st.dictionaries(st.sampled_from(KEYS), SCALARS),
            st.lists(st.dictionaries(st.sampled_from(KEYS), SCALARS), max_size=2),
            st.dictionaries(st.sampled_from(KEYS), st.dictionaries(st.sampled_from(KEYS), SCALARS)),
        ),
    )
)
def test_any_values_are_answered_with_problems(table: dict[str, object]) -> None:
    def written(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return f"'{value}'"
        if isinstance(value, list):
            return f"[{', '.join(map(written, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key} = {written(item)}' for key, item in value.items())}}}"
        return repr(value)

    text = RULE + "[[watch]]\n" + "".join(f"{key} = {written(value)}\n" for key, value in table.items())
    problems: tuple[Problem, ...] = ()
    try:
        read(text)
    except ConfigurationError as error:
        problems = error.problems
    lines = text.splitlines()
    assert all(problem.text == lines[problem.line - 1] for problem in problems)


def test_shown_lines_are_cut_and_cannot_drive_a_terminal() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(RULE + f'\tposition = "{"x" * 300}" # \u202e\n')
    line, caret = str(caught.value).splitlines()[1:]
    assert "\u202e" not in str(caught.value)
    assert len(line) < 110
    assert caret == "    \t^"
    with pytest.raises(ConfigurationError) as caught:
        read(RULE + f'x = "{"漢" * 150}"\n\x1b[31m = 1')
    assert "\x1b" not in str(caught.value)


def test_the_caret_stands_under_wide_characters() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(RULE + 'schedule = [{ every = "1h", "漢" = 1 }, { evry = "漢" }]\n')
    line, caret = str(caught.value).splitlines()[-2:]
    cells = sum(2 if character == "漢" else 1 for character in line[: line.index("evry")])
    assert caret == " " * cells + "^"


# reading the file


def test_a_relative_path_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "daemon.toml").write_text("\ufeff" + RULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    configuration = load(Path("etc/daemon.toml"), {})
    assert configuration.path == tmp_path / "etc" / "daemon.toml"
    assert configuration.watch[0].deploy == str(tmp_path / "etc" / "models")


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spancat_daemon.config.load.SEARCHED", (Path("daemon.toml"), tmp_path / "etc.toml"))
    with pytest.raises(UsageError, match="there is no configuration"):
        find(None, {})
    (tmp_path / "etc.toml").touch()
    assert find(None, {}) == tmp_path / "etc.toml"
    (tmp_path / "daemon.toml").symlink_to("nowhere")
    assert find(None, {}) == Path("daemon.toml")
    assert find(None, {"SPANCAT_DAEMON_CONFIG": "/x"}) == Path("/x")
    assert find(Path("/y"), {"SPANCAT_DAEMON_CONFIG": "/x"}) == Path("/y")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    fifo, large, binary, loop = (tmp_path / name for name in ("fifo", "large", "binary", "loop"))
    os.mkfifo(fifo)
    large.write_bytes(b"#" * 10_000_000)
    binary.write_bytes(b"x = 1\ny = '\xff'\n")
    loop.symlink_to(loop)
    for path, reason in (
        (tmp_path / "none", "can't be read: No such file or directory; name another with -c FILE"),
        (tmp_path, "is a folder"),
        (fifo, "is not a regular file"),
        (loop, "Too many levels of symbolic links"),
        (large, f"larger than {LARGEST_BYTES} bytes"),
        (binary, "binary:2:6: the byte 0xff is not UTF-8"),
        (Path("a\0b"), "can't be read"),
        (Path("/dev/null"), "is not a regular file"),
    ):
        with pytest.raises(UsageError) as caught:
            load(path, {})
        assert reason in str(caught.value)
        assert not isinstance(caught.value, ConfigurationError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "daemon.toml"
    path.touch(mode=0)
    with pytest.raises(UsageError, match="Permission denied"):
        load(path, {})


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError):
            load(path, {})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_reading_it_needs_no_heavy_library() -> None:
    code = (
        "import sys, spancat_daemon.config.load\n"
        "import spancat_daemon.config.expand\n"
        "import spancat_daemon.config.schema\n"
        "heavy = {'apscheduler', 'spacy', 'srsly', 'numpy', 'watchdog', 'structlog', 'rich', 'httpx'}\n"
        "print(*heavy & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
