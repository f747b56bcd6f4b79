from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.config import patterns
from spancat_daemon.config.expand import find_target, glob_root, targets
from spancat_daemon.config.load import parse
from spancat_daemon.config.model import RunCommand, SendSignal
from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from spancat_daemon.config.model import Configuration

TEXT = """\
[[watch]]
name = "products"
source = "runs/products"
deploy = "models/products"
[[watch]]
name = "runs"
source = "exp/*/run-[0-9]*/model-best"
deploy = "out/{2}/of-{1}"
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return parse(TEXT, tmp_path / "daemon.toml", {})


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)


def test_matches_come_in_order_and_a_plain_rule_always(configuration: Configuration, tmp_path: Path) -> None:
    assert [target.rule for target in targets(configuration)] == ["products"]
    make(tmp_path, "exp/b/run-2/model-best", "exp/b/run-1/model-best", "exp/a/run-10/model-best")
    make(tmp_path, "exp/.hidden/run-1/model-best", "exp/a/run-x/model-best", "exp/c/run-3/model-last")
    (tmp_path / "exp" / "file").touch()
    (tmp_path / "exp" / "loop").symlink_to("loop")
    found = targets(configuration)
    assert [target.rule for target in found] == ["products", "runs/a/run-10", "runs/b/run-1", "runs/b/run-2"]
    assert found[0].source == tmp_path / "runs/products"
    assert found[0].deploy == tmp_path / "models/products"
    assert found[1].source == tmp_path / "exp/a/run-10/model-best"
    assert found[1].deploy == tmp_path / "out/run-10/of-a"
    assert found[1].watch is configuration.watch[1]


def test_paths_of_a_rules_tables_are_filled_in_for_each_match(tmp_path: Path) -> None:
    text = (
        TEXT
        + """\
[watch.verify]
probes = "probes/{2}-{1}.jsonl"
gold = "gold.spacy"
[[watch.after]]
command = ["told", "{1}"]
[[watch.after]]
signal = { pidfile = "/run/{1}.pid", name = "USR1" }
"""
    )
    make(tmp_path, "exp/a/run-1/model-best", "exp/b/run-{1}/model-best")
    rules = parse(text.replace("[0-9]", "?"), tmp_path / "daemon.toml", {})
    first, second = targets(rules)[1:]
    assert first.watch.verify.probes == tmp_path / "probes/run-1-a.jsonl"
    assert first.watch.verify.gold == tmp_path / "gold.spacy"
    command, signal = first.watch.after
    assert isinstance(command, RunCommand)
    assert command.command == ("told", "{1}")
    assert isinstance(signal, SendSignal)
    assert (signal.signal.pidfile, signal.signal.name) == (Path("/run/a.pid"), "USR1")
    assert second.watch.verify.probes == tmp_path / "probes/run-{1}-b.jsonl"
    # what did not change compares equal, which is how the daemon knows it from what did
    assert targets(rules)[1] == first
    assert find_target(rules, "runs/a/run-1") == first


def test_a_match_is_any_thing_at_a_named_end_and_a_folder_at_a_wildcard(tmp_path: Path) -> None:
    text = TEXT.replace("exp/*/run-[0-9]*/model-best", "exp/*").replace("out/{2}/of-{1}", "out/{1}")
    configuration = parse(text, tmp_path / "daemon.toml", {})
    make(tmp_path, "exp/run", "elsewhere")
    (tmp_path / "exp" / "log.txt").touch()
    (tmp_path / "exp" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [target.rule for target in targets(configuration)] == ["products", "runs/linked", "runs/run"]
    text = TEXT.replace("*/run-[0-9]*", "*").replace("out/{2}/of-{1}", "out/{1}")
    (tmp_path / "exp" / "run" / "model-best").touch()
    found = targets(parse(text, tmp_path / "daemon.toml", {}))
    assert [target.rule for target in found] == ["products", "runs/run"]


def test_a_folder_that_cannot_be_searched_is_told(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "exp/a/run-1/model-best", "exp/b/run-1/model-best")
    really = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    told: list[tuple[Path, OSError]] = []
    found = targets(configuration, unreadable=lambda path, error: told.append((path, error)))
    assert [target.rule for target in found] == ["products", "runs/b/run-1"]
    assert [(path, error.errno) for path, error in told] == [(tmp_path / "exp/a", errno.EACCES)]
    assert len(targets(configuration)) == 2


def test_names_that_look_like_patterns_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "a[1]{1}"
    make(folder, "exp/{2}/run-1/model-best", "exp/*/run-1/model-best", "exp/\udcff/run-1/model-best")
    text = TEXT.replace("out/", "/out/")
    configuration = parse(text, folder / "daemon.toml", {})
    found = {target.rule: target for target in targets(configuration)}
    assert found["products"].source == folder / "runs/products"
    assert found["products"].deploy == folder / "models/products"
    assert found["runs/{2}/run-1"].deploy == Path("/out/run-1/of-{2}")
    assert found["runs/*/run-1"].source == folder / "exp/*/run-1/model-best"
    assert found["runs/\udcff/run-1"].source.is_dir()


def test_a_target_is_found_by_its_name(configuration: Configuration, tmp_path: Path) -> None:
    assert find_target(configuration, "products") == targets(configuration)[0]
    make(tmp_path, "exp/a/run-1/model-best", "out/run-7/of-gone")
    assert find_target(configuration, "runs/a/run-1") == targets(configuration)[1]
    gone = find_target(configuration, "runs/gone/run-7")
    assert (gone.source, gone.deploy) == (
        tmp_path / "exp/gone/run-7/model-best",
        tmp_path / "out/run-7/of-gone",
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("prodcts", "did you mean 'products'?"),
        ("zzz", "rules are 'products', 'runs'"),
        ("", "rules are"),
        ("products/x", "has no wildcards"),
        ("runs", "has wildcards; name one of its matches; there are 'runs/a/run-1'"),
        ("runs/a", "is no match of the rule 'runs', now or before"),
        ("runs/a/run-2", "did you mean 'runs/a/run-1'?"),
        ("runs/../run-1", "is no match"),
        ("runs//run-1", "is no match"),
        ("runs/a/run-1/x", "is no match"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_there_are(
    configuration: Configuration, tmp_path: Path, name: str, hint: str
) -> None:
    make(tmp_path, "exp/a/run-1/model-best")
    with pytest.raises(UsageError) as caught:
        find_target(configuration, name)
    assert hint in str(caught.value)


def test_without_a_match_the_pattern_is_named(configuration: Configuration) -> None:
    with pytest.raises(UsageError, match=r"nothing matches .*exp/.* now"):
        find_target(configuration, "runs")


def test_many_matches_are_not_all_listed(configuration: Configuration, tmp_path: Path) -> None:
    make(tmp_path, *(f"exp/a/run-{number}/model-best" for number in range(14)))
    with pytest.raises(UsageError, match="and 4 more"):
        find_target(configuration, "runs")


@pytest.mark.parametrize(
    ("pattern", "root"),
    [("/a/b/*/c", "/a/b"), ("/*", "/"), ("/a/b", "/a/b"), ("/a[[]/x?/c", "/a["), ("/a/[bc]/d", "/a")],
)
def test_the_root_of_a_pattern_has_no_wildcards(pattern: str, root: str) -> None:
    assert glob_root(pattern) == Path(root)


@given(st.text(alphabet="ab*?[]!{}1.", min_size=1, max_size=8))
def test_an_escaped_name_matches_itself_alone(name: str) -> None:
    escaped = patterns.escape(name)
    assert patterns.literal(escaped) == name
    assert patterns.matches(escaped, name)


@given(
    st.text(alphabet="ab*?[]!-", min_size=1, max_size=8), st.text(alphabet="ab*?[]!-", min_size=1, max_size=5)
)
def test_a_component_is_literal_only_if_it_matches_one_name(component: str, other: str) -> None:
    try:
        name = patterns.literal(component)
    except ValueError as error:
        assert "never closed" in str(error)  # noqa: PT017  # which of the two it is depends on what was drawn
        return
    if name is not None:
        assert patterns.matches(component, name)
        assert patterns.matches(component, other) == (other == name)
