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
from spancat_daemon.config.model import Configuration, CronSchedule, IntervalSchedule, Keep
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
        ("writer = 'spool'\nsettle = '2s'", '6:1: settle goes with writer = "any"'),
        ("on_change = false\npoll = '1s'", "6:1: poll looks for changes, but on_change = false"),
        ("keep = { best = 1, metric = '' }", "5:29: best needs a metric"),
    ],
)
def test_one_wrong_line_is_one_problem(line: str, expected: str) -> None:
    rule = RULE.replace('name = "products"', "# no name") if line.startswith("name") else RULE
    (message,) = messages(f"{rule}{line}\n")
    assert expected in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("runs/model-best", "3:10: model-best is what spaCy saves to; with writer = "),
        ("runs/*/model-last/", "3:10: model-last is what spaCy saves to"),
        ("runs/spool/new", '3:10: with writer = "spool" source is the spool itself, without the "new" in it'),
        ("runs/spool/tmp/", 'without the "tmp" in it'),
    ],
)
def test_a_source_that_is_no_spool(source: str, expected: str) -> None:
    rule = RULE.replace("runs/best", source).replace("models", "models/{1}" if "*" in source else "models")
    assert read(rule).watch[0].writer == "spacy"
    (message,) = messages(rule + 'writer = "spool"\n')
    assert expected in message


def test_a_spool_is_a_source_like_others() -> None:
    rule = RULE.replace("runs/best", "runs/*/spool").replace("models", "models/{1}")
    (watch,) = read(rule + 'writer = "spool"\npoll = "5s"\n').watch
    assert (watch.writer, watch.source) == ("spool", "/srv/app/runs/*/spool")
    (message,) = messages(RULE + 'writer = "spol"\n')
    assert "'spool'" in message


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
        (RULE + "[daemon]\nmin_free = 5", '6:12: min_free must be a size in quotes, such as "5GiB"'),
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


KEYS = [
    "cron", "every", "last", "best", "metric", "y", "level", "probes", "python", "min_pass", "minimum",
    "labels", "per_label_minimum", "within", "passes", "command", "systemd", "signal", "webhook", "url",
    "pidfile", "name", "timeout",
]  # fmt: skip
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
