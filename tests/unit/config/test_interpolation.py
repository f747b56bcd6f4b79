from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spancat_daemon.config.interpolation import BadVariable, interpolate

ENVIRON = {"HOME": "/home/ann", "EMPTY": "", "NESTED": "${HOME}", "_x1": "y"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${HOME}/runs", "/home/ann/runs"),
        ("${HOME}${_x1}", "/home/anny"),
        ("[${EMPTY}]", "[]"),
        ("${EMPTY:-else}", "else"),
        ("${NONE:-else}", "else"),
        ("${NONE:-}", ""),
        ("${HOME:-else}", "/home/ann"),
        ("${NONE:-a:-b $x}", "a:-b $x"),
        ("${NESTED}", "${HOME}"),
        ("$HOME $5 $$ $", "$HOME $5 $$ $"),
        ("$${HOME}", "${HOME}"),
        ("$${", "${"),
        ("$$${HOME}", "$${HOME}"),
    ],
)
def test_variables_are_filled_in(text: str, expected: str) -> None:
    assert interpolate(text, ENVIRON) == expected


@pytest.mark.parametrize(
    ("text", "offset", "reason"),
    [
        ("a/${NONE}", 2, "the environment variable NONE is not set.*NONE:-default"),
        ("${", 0, "begins no variable"),
        ("${}", 0, "begins no variable"),
        ("x${1a}", 1, "begins no variable"),
        ("${HOME", 0, "begins no variable"),
        ("${HOME-x}", 0, "begins no variable"),
        ("${HOME} ${A B}", 8, "begins no variable"),
    ],
)
def test_what_stands_for_nothing_is_refused_with_its_offset(text: str, offset: int, reason: str) -> None:
    with pytest.raises(BadVariable, match=reason) as caught:
        interpolate(text, ENVIRON)
    assert caught.value.offset == offset
    assert text[offset:].startswith(caught.value.written)


def test_a_variable_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadVariable, match="ODD is not UTF-8"):
        interpolate("${ODD}", {"ODD": "a\udcff"})


@given(st.text())
def test_any_text_can_be_escaped(text: str) -> None:
    assert interpolate(text.replace("${", "$${"), {}) == text


@given(st.text(alphabet="${}:-A a"), st.text())
def test_nothing_but_bad_variable_is_raised(text: str, value: str) -> None:
    offset = None
    try:
        interpolate(text, {"A": value})
    except BadVariable as error:
        offset = error.offset
    assert offset is None or text.startswith("${", offset)
