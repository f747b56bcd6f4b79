"""What [watch.verify], [watch.gate], [[watch.after]] and [watch.health] can say, and what they can't."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from spancat_daemon.config.load import parse
from spancat_daemon.config.model import (
    Configuration,
    Health,
    PostWebhook,
    RunCommand,
    SendSignal,
    SignalTarget,
    SystemdJob,
    Verify,
    WebhookTarget,
)
from spancat_daemon.config.problems import ConfigurationError

FILE = Path("/srv/app/daemon.toml")
RULE = '[[watch]]\nname = "products"\nsource = "runs/best"\ndeploy = "models"\n'
VERIFY = "[watch.verify]\n"
GATE = "[watch.gate]\n"
AFTER = "[[watch.after]]\n"
SECOND = AFTER + "command = ['x']\n" + AFTER
HEALTH = "[watch.health]\nurl = 'http://localhost/'\n"


def read(text: str) -> Configuration:
    return parse(dedent(text), FILE, {})


def messages(text: str) -> list[str]:
    """Each problem as ``line:column: message``."""
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    return [f"{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


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
            SECOND + "[watch.after.webhook]\nurl = 'http://x'\nsecretfile = 'y'",
            "10:1: unknown key 'secretfile' in [watch.after.webhook] \"products\"; did you mean 'secret_file",
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
        ("after = { command = ['x'] }", "5:9: after: what is told of a swap begins with [[watch.after]]"),
        ("[watch.after]\ncommand = ['x']", "5:1: after: what is told of a swap begins with [[watch.after]]"),
        ("after = ['reload']", "5:10: after number 1 must be a table, not the text 'reload'"),
        (VERIFY + "probes = 5", "6:10: verify.probes must be a path in quotes, not the number 5"),
        (VERIFY + "timeout = 5", '6:11: verify.timeout must be a duration in quotes, such as "5s"'),
        (VERIFY + "memory = 5", '6:10: verify.memory must be a size in quotes, such as "5GiB"'),
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
        ("[daemon]\nscrub_rate = 5", '6:14: scrub_rate must be a size in quotes, such as "5GiB"'),
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
            '10:1: max_bytes is a condition on what verify.level = "none" does not look at; write level',
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
        (GATE + "minimum = 75", "6:11: gate.minimum: scores go from 0 to 1; 75 % is 0.75"),
        (
            GATE + "metric = 'spans_sc_p'\nmax_drop = 2",
            "7:12: gate.max_drop: scores go from 0 to 1; 2 %",
        ),
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


def test_terms_are_what_the_file_says_them() -> None:
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
