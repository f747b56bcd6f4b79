from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spancat_daemon.errors import Rejected
from spancat_daemon.observe.jsonline import LINE_LIMIT_BYTES, dumps, dumps_line


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Place:
    path: Path
    sizes: tuple[int, ...]


class Nasty:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Odd:
    def __repr__(self) -> str:
        return "odd \udcff"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Path("/srv/a"), "/srv/a"),
        (Path("/srv/caf\udce9"), "/srv/caf\\xe9"),
        ("caf\udce9 é", "caf\\xe9 é"),
        ("lone \ud800", "lone \\ud800"),
        (b"ok \xff", "ok \\xff"),
        (bytearray(b"x"), "x"),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", 1}), ["b", 1]),
        ((1, "two"), [1, "two"]),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006Z"),
        (Place(Path("/x"), (1, 2)), {"path": "/x", "sizes": [1, 2]}),
        (Place(Path("/x\udcff"), (1,)), {"path": "/x\\xff", "sizes": [1]}),
        (Colour.RED, "red"),
        (float("nan"), None),
        (1 << 63, 1 << 63),
        (1 << 80, str(1 << 80)),
        (-(1 << 80), str(-(1 << 80))),
        ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "None": "b", "(1, 2)": "c"}),
        ({"x\udcff": 1}, {"x\\xff": 1}),
        (Nasty(), "<Nasty whose repr raises RuntimeError>"),
        (Odd(), "odd \\xff"),
        (object, "<class 'object'>"),
        (True, True),
        ("line\nbreak\x1b[31m\x00", "line\nbreak\x1b[31m\x00"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_has_a_form(value: Any, shown: Any) -> None:
    line = dumps_line({"event": "x", "value": value})
    assert b"\n" not in line
    assert json.loads(line) == {"event": "x", "value": shown}
    assert json.loads(dumps(value)) == shown


def test_cycles_and_depth_end() -> None:
    cycle: dict[str, Any] = {"name": "x"}
    cycle["self"] = cycle
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    line = dumps_line({"event": "x", "cycle": cycle, "deep": deep, "after": "kept"})
    assert json.loads(line)["after"] == "kept"


def test_an_exception_has_its_place_and_cause_but_no_variables() -> None:
    def outer() -> None:
        try:
            inner()
        except ValueError as error:
            raise Rejected("no", where="/x", hint="mend it") from error

    def inner() -> None:
        password = "hunter2" * 3  # noqa: F841  # what must not be shown
        int("\udcff")

    with pytest.raises(Rejected) as raised:
        outer()
    line = dumps_line({"event": "x", "error": raised.value})
    assert b"hunter2" not in line
    shown = json.loads(line)["error"]
    assert shown["type"] == "spancat_daemon.errors.Rejected"
    assert shown["message"] == "/x: no; mend it"
    assert shown["cause"]["message"].endswith("'\\udcff'")
    assert shown["cause"]["frames"][-1].endswith(" inner")


def test_exception_groups_and_endless_causes() -> None:
    error: BaseException = ValueError("first")
    for _ in range(50):
        try:
            raise RuntimeError("next") from error  # noqa: TRY301  # a chain is wanted
        except RuntimeError as raised:
            error = raised
    line = dumps_line({"event": "x", "error": ExceptionGroup("all", [error, KeyError("k")])})
    assert [each["type"] for each in json.loads(line)["error"]["exceptions"]] == ["RuntimeError", "KeyError"]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        "é\n\x00" * 100_000,
        ["label" * 3] * 100_000,
        {f"key{number}": number for number in range(100_000)},
        {"a" * 50_000: 1},
        [[["x" * 1000] * 20] * 20] * 20,
        b"\xff" * 1_000_000,
        ["\udcff" * 100_000],
    ],
    ids=lambda value: type(value).__name__,
)
def test_huge_values_are_cut_and_the_rest_is_kept(value: Any) -> None:
    fields = {"event": "release.overwrite", "rule": "products", "value": value, "history_sha256": "ab" * 32}
    line = dumps_line(fields)
    assert len(line) <= LINE_LIMIT_BYTES < 48 * 1024
    kept = json.loads(line)
    assert kept["cut"] is True
    assert {key: kept[key] for key in ("event", "rule", "history_sha256")} == {
        key: fields[key] for key in ("event", "rule", "history_sha256")
    }


def test_thousands_of_fields_keep_the_first() -> None:
    line = dumps_line({"event": "x", **{f"key{number}": "v" * 90 for number in range(5000)}})
    assert len(line) <= LINE_LIMIT_BYTES
    assert json.loads(line)["event"] == "x"
    assert json.loads(line)["key0"] == "v" * 90


_JSONABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.builds(Path, st.text(st.characters(exclude_characters="\0", codec="utf-8"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=())), _JSONABLE))
def test_nothing_raises_and_everything_is_one_line_of_json(fields: dict[str, Any]) -> None:
    line = dumps_line(fields)
    assert b"\n" not in line
    assert isinstance(json.loads(line), dict)


def test_numbers_of_numpys_kind_are_numbers() -> None:
    class Float64(float):
        """Like numpy's, which is a subclass of float that orjson does not take."""

    assert json.loads(dumps_line({"event": "x", "f": Float64(0.5)})) == {"event": "x", "f": 0.5}
