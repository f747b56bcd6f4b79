from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spancat_daemon.config.places import DEEPEST, Path, Place, Places, TooDeep, locate

if TYPE_CHECKING:
    from collections.abc import Iterator

NASTY = "ab#[]{}=,.'\"\\ \t☃é𝄞\n"


def paths(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if path:
        yield path, value
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from paths(child, (*path, key))


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@st.composite
def strings(draw: st.DrawFn) -> str:
    text = draw(st.text(alphabet=NASTY, max_size=12))
    kind = draw(st.sampled_from(["basic", "literal", "multi", "multi literal"]))
    if kind == "literal" and "'" not in text and "\n" not in text:
        return f"'{text}'"
    if kind == "multi":
        body = text.replace("\\", "\\\\").replace('"', '\\"')
        tail = draw(st.sampled_from(["", '"', '""']))
        return f'"""{body}{tail}"""'
    if kind == "multi literal":
        return f"'''{text.replace(chr(39), '')}{draw(st.sampled_from(['', chr(39), chr(39) * 2]))}'''"
    return quoted(text)


GAPS = st.sampled_from(["", " ", "\n", ' # a ] } comment = "x\n', "\n\t\n"])
SPACES = st.sampled_from(["", " ", "\t "])
PLAIN = st.sampled_from(
    [
        "1",
        "-17",
        "0x_ff".replace("_", ""),
        "1_000",
        "3.5e2",
        "inf",
        "true",
        "false",
        "1979-05-27",
        "07:32:00",
        "1979-05-27 07:32:00Z",
        "1979-05-27T07:32:00.5+02:00",
    ]
)


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    text = "[" + draw(GAPS)
    items = draw(st.lists(values, max_size=3))
    for number, item in enumerate(items):
        comma = "," if number < len(items) - 1 or draw(st.booleans()) else ""
        text += item + draw(GAPS) + comma + draw(GAPS)
    return text + "]"


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(keys_, max_size=3, unique_by=decoded))
    pairs = [f"{draw(SPACES)}{key}{draw(SPACES)}={draw(SPACES)}{draw(values)}{draw(SPACES)}" for key in keys]
    return "{" + ",".join(pairs) + "}"


def decoded(key: str) -> str:
    return next(iter(tomllib.loads(f"{key} = 1")))


keys_ = st.one_of(
    st.from_regex(r"\A[A-Za-z0-9_-]{1,5}\Z"),
    st.text(alphabet=NASTY.replace("\n", ""), max_size=5).map(quoted),
    st.text(alphabet="ab.#]= ", max_size=5).map(lambda text: f"'{text}'"),
)
values_ = st.recursive(
    st.one_of(strings(), PLAIN), lambda inner: arrays(inner) | inline_tables(inner), max_leaves=6
)


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Statements of one table: plain and dotted keys, with comments and blank lines between."""
    text = ""
    for key in draw(st.lists(keys_, max_size=3, unique_by=decoded)):
        rest = draw(st.lists(keys_, max_size=2))
        dot = f"{draw(SPACES)}.{draw(SPACES)}"
        comment = draw(st.sampled_from(["", " # why = [not]", "  "]))
        text += (
            f"{draw(SPACES)}{dot.join([key, *rest])}{draw(SPACES)}={draw(SPACES)}{draw(values_)}{comment}\n"
        )
        text += draw(st.sampled_from(["", "\n", "# [table]\n", "\t\n"]))
    return text


@st.composite
def documents(draw: st.DrawFn) -> str:
    text = draw(bodies())
    # names of tables can't meet those of keys at the root: they begin with what no key here holds
    for number in range(draw(st.integers(0, 3))):
        name = f"{draw(SPACES)}T{number}{draw(SPACES)}"
        if draw(st.booleans()):
            text += f"{draw(SPACES)}[{name}.{draw(keys_)}] # sub\n" if draw(st.booleans()) else f"[{name}]\n"
            text += draw(bodies())
            continue
        for _ in range(draw(st.integers(1, 3))):
            text += f"[[{name}]]\n{draw(bodies())}"
            if draw(st.booleans()):
                text += f"[{name}.'sub table'.deep]\n{draw(bodies())}"
            for _ in range(draw(st.integers(0, 2))):
                text += f'[[{name}."more".x]]\n{draw(bodies())}'
    return text


@settings(deadline=None, max_examples=150)
@given(documents())
def test_every_place_points_at_the_key_and_value_it_is_the_place_of(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # the names drawn met each other
    places = locate(text)
    expected = dict(paths(data))
    assert set(places.spans) == set(expected)
    for path, value in expected.items():
        span = places.spans[path]
        raw = places.raw(path)
        is_header = (
            raw == ""
            or (raw.startswith("[") and isinstance(value, dict))
            or (
                isinstance(value, list)
                and raw.startswith("[[")
                and "sub" not in raw
                and not _is_value(raw, value)
            )
        )
        if not is_header:
            assert _is_value(raw, value), (path, raw)
        key = path[-1]
        if isinstance(key, str):
            written = places.text[span.key :]
            assert any(written.startswith(form) for form in (key, quoted(key), f"'{key}'")), (
                path,
                written[:20],
            )
        place = places.key(path)
        assert places.line(place.line)[place.column - 1 :] == places.text[span.key :].split("\n")[0]


def _is_value(raw: str, value: Any) -> bool:
    try:
        return bool(tomllib.loads(f"x = {raw}")["x"] == value)
    except tomllib.TOMLDecodeError:
        return False


TEXT = """\
# top
title = "a # b" # c
'odd key'."x.y" = 1

[daemon]
  workers = 2
[[watch]]
name = '''
two
lines'''
schedule = [
  { cron = "x", force = true }, # first
  {every="1h"},
]
[watch.keep]
last = 1
[[watch]]
name = "b"
keep.last = 2
"""


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("title",), (2, 1), (2, 9)),
        (("odd key",), (3, 1), (3, 1)),
        (("odd key", "x.y"), (3, 11), (3, 19)),
        (("daemon",), (5, 2), (5, 1)),
        (("daemon", "workers"), (6, 3), (6, 13)),
        (("watch",), (7, 3), (7, 1)),
        (("watch", 0), (7, 3), (7, 1)),
        (("watch", 0, "name"), (8, 1), (8, 8)),
        (("watch", 0, "schedule"), (11, 1), (11, 12)),
        (("watch", 0, "schedule", 0), (12, 3), (12, 3)),
        (("watch", 0, "schedule", 0, "force"), (12, 17), (12, 25)),
        (("watch", 0, "schedule", 1, "every"), (13, 4), (13, 10)),
        (("watch", 0, "keep"), (15, 8), (15, 1)),
        (("watch", 0, "keep", "last"), (16, 1), (16, 8)),
        (("watch", 1), (17, 3), (17, 1)),
        (("watch", 1, "keep", "last"), (19, 6), (19, 13)),
        (("watch", 1, "keep", "unheard of", "x"), (19, 1), (19, 1)),
        (("nowhere",), (1, 1), (1, 1)),
    ],
)
def test_places_of_a_configuration(path: Path, key: tuple[int, int], value: tuple[int, int]) -> None:
    places = locate(TEXT)
    assert places.key(path) == Place(*key)
    assert places.value(path) == Place(*value)


def test_windows_line_ends_count_as_one() -> None:
    places = locate(TEXT.replace("\n", "\r\n"))
    assert places.key(("watch", 1, "keep", "last")) == Place(19, 6)
    assert places.line(6) == "  workers = 2"


def test_a_table_that_follows_its_part_is_placed_at_its_own_header() -> None:
    places = locate("[a.b]\nx = 1\n[a]\ny = 2\n")
    assert places.value(("a",)) == Place(3, 1)
    assert places.key(("a", "b")) == Place(1, 4)


def test_depth_is_limited() -> None:
    def nested(levels: int) -> Places:
        return locate("x = " + "[" * levels + "]" * levels)

    assert len(nested(DEEPEST).spans) == DEEPEST
    with pytest.raises(TooDeep) as caught:
        nested(DEEPEST + 1)
    assert caught.value.place.line == 1
    with pytest.raises(TooDeep):
        locate(".".join("a" * (DEEPEST + 1)) + " = 1")


def test_an_empty_text_has_a_first_line() -> None:
    assert locate("").key(("a",)) == Place(1, 1)
    assert locate("").line(1) == ""
    assert locate("").last_line == 1
