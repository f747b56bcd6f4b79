"""Files of probes: what they say, and where they are wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.verify import probes as under_test
from spancat_daemon.verify.probes import BadProbes, ProbeProblem, read_probes, unknown_labels
from spancat_daemon.verify.verdict import Probe, Span

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "probes.jsonl"


def problems(file: Path, content: str | bytes) -> tuple[ProbeProblem, ...]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadProbes) as caught:
        read_probes(file)
    first = caught.value.problems[0]
    assert caught.value.where == f"{file}:{first.line}:{first.column}"
    assert str(caught.value).startswith(f"{caught.value.where}: {first.message}")
    return caught.value.problems


def test_what_a_file_says(file: Path) -> None:
    file.write_bytes(
        b"\xef\xbb\xbf"
        b'{"text": "Acme is in K\\u00f6ln.", "spans": [[0, 4, "ORG"], [11, 15, "PLACE"]],'
        b' "absent": [[0, 2, "X"]]}\r\n'
        b"\r\n"
        b"   \n"
        b'{"text": ""}\n'
        + '{"spans": [], "text": "Tür \u2028 é"}\n{"absent": [[0, 1, "GÜTER"]], "text": "🚪"}'.encode()
    )

    assert read_probes(file) == (
        Probe("Acme is in Köln.", (Span(0, 4, "ORG"), Span(11, 15, "PLACE")), (Span(0, 2, "X"),), 1),
        Probe("", None, (), 4),
        Probe("Tür \u2028 é", (), (), 5),
        Probe("🚪", None, (Span(0, 1, "GÜTER"),), 6),
    )


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ('{"text": "a",}', 14, "not JSON: "),
        ("Acme is here.", 1, "not JSON: Expecting value"),
        ('{"text": "Tür"} {}', 17, "not JSON: Extra data"),
        ("[" * 100_000, 1, "not JSON that can be read: "),
        ('{"text": ' + "9" * 5000 + "}", 1, "not JSON that can be read: "),
        ('  ["a"]', 3, "a list, not an object"),
        ("null", 1, "null, not an object"),
        ('{"text": "a", "Span": []}', 15, "unknown key 'Span'; did you mean 'spans'?"),
        ('{"text": "a", "text": "b"}', 15, "the key 'text' is there more than once"),
        (
            '{"text": "a", "spans": [{"x": 1, "x": 2}]}',
            25,
            'a span must be [start, end, "LABEL"], not an object',
        ),
        (' {"spans": []}', 2, "'text' is missing"),
        ('{"text": 7}', 2, "'text' must be a string, not a number"),
        ('{"text": null}', 2, "'text' must be a string, not null"),
        ('{"text": "\\ud83d"}', 2, "'text' holds half of a surrogate pair"),
        (
            '{"text": "a", "spans": "b"}',
            15,
            "'spans' must be a list of [start, end, \"LABEL\"], not a string",
        ),
        ('{"text": "a", "absent": null}', 15, "'absent' must be a list of [start, end, \"LABEL\"], not null"),
        (
            '{"text": "a", "spans": [0, 1, "B"]}',
            15,
            "'spans' must be a list of [start, end, \"LABEL\"], not a single",
        ),
        ('{"text": "a", "spans": [7]}', 25, 'a span must be [start, end, "LABEL"], not a number'),
        ('{"text": "a", "spans": [[0, 1]]}', 25, 'a span must be [start, end, "LABEL"], not a list of 2'),
        ('{"text": "a", "spans": [[0, true, "B"]]}', 25, "a span's start and end must be whole numbers"),
        ('{"text": "a", "spans": [[0.0, 1, "B"]]}', 25, "a span's start and end must be whole numbers"),
        ('{"text": "a", "spans": [[0, 1, ""]]}', 25, "a span's label must be a string that isn't empty"),
        ('{"text": "a", "spans": [[-1, 1, "B"]]}', 25, "a span can't start at -1"),
        ('{"text": "ab", "spans": [[1, 1, "B"]]}', 26, "a span must end after it starts, not at 1 after 1"),
        ('{"text": "ab", "spans": [[2, 1, "B"]]}', 26, "a span must end after it starts, not at 1 after 2"),
        ('{"text": "🚪", "spans": [[0, 2, "B"]]}', 25, "a span can't end at 2: the text has 1 characters"),
        (
            '{"text": "ab", "spans": [[0, 1, "B"]], "absent": [[1, 2, "B"], [0,1,"B"]]}',
            64,
            "the same span can't be in 'spans' and in 'absent'",
        ),
        (
            '{"spans": [[0, 1, "B"] , [0, 9, "B"]], "absent": [], "text": "ab"}',
            26,
            "a span can't end at 9: the text has 2 characters",
        ),
    ],
)
def test_one_thing_wrong(line: str, column: int, message: str, file: Path) -> None:
    (found,) = problems(file, f'{{"text": "fine"}}\n{line}\n{{"text": "fine"}}\n')

    assert (found.line, found.column, found.text) == (2, column, line)
    assert found.message.startswith(message)
    assert "\n" not in found.message


def test_all_that_is_wrong_is_told_at_once(file: Path) -> None:
    found = problems(
        file,
        '{"txt": "a"}\n'
        "# a comment\n"
        '{"text": "a", "spans": [[0, 1, "B"], [0, 2, "B"], 3], "note": "x"}\n'
        '{"text": "a"\n',
    )

    assert [(problem.line, problem.column) for problem in found] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 38),
        (3, 51),
        (3, 55),
        (4, 13),
    ]


def test_the_error_says_how_many_more_there_are(file: Path) -> None:
    file.write_text("a\nb\nc\n")
    with pytest.raises(BadProbes, match=r"\(and 2 more problems\); each line is an object: \{"):
        read_probes(file)
    file.write_text("a\nb\n")
    with pytest.raises(BadProbes, match=r"\(and 1 more problem\);"):
        read_probes(file)


def test_another_format_does_not_give_endless_problems(file: Path) -> None:
    assert len(problems(file, "text,label\n" * 5000)) == 100
    assert len(problems(file, '{"text": "a", "spans": [' + "0, " * 5000 + "0]}")) == 100


def test_bytes_that_are_not_utf8(file: Path) -> None:
    (found,) = problems(file, b'{"text": "fine"}\n{"text": "T\xc3\xbcr K\xf6ln"}\n')
    assert (found.line, found.column, found.message) == (2, 16, "not UTF-8: byte 0xf6")
    assert found.text == '{"text": "Tür K\N{REPLACEMENT CHARACTER}ln"}'

    (found,) = problems(file, '{"text": "fine"}'.encode("utf-16"))
    assert found.message == "is UTF-16; it must be UTF-8"


@pytest.mark.parametrize("content", ["", "\n\r\n  \n", "\N{BYTE ORDER MARK}"])
def test_no_probes(content: str, file: Path) -> None:
    (found,) = problems(file, content)
    assert (found.line, found.column, found.message) == (1, 1, "holds no probes")


def test_what_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b'{"text": "a"}\n' * 3)
    monkeypatch.setattr(under_test, "MOST_BYTES", 41)

    def reason(name: str) -> str:
        with pytest.raises(BadProbes) as caught:
            read_probes(tmp_path / name)
        return caught.value.reason

    assert reason("missing") == "can't be read: No such file or directory"
    assert reason("pipe") == "is not a file"
    assert reason(".") == "is not a file"
    assert reason("a\0b").startswith("can't be read: ")
    assert reason("large").startswith("is larger than ")


def test_labels_that_the_model_does_not_have() -> None:
    found = unknown_labels(
        [
            Probe("a b", (Span(0, 1, "PLASE"), Span(2, 3, "PLASE"), Span(0, 1, "ORG")), (), 3),
            Probe("a b", None, (Span(0, 1, "X"),), 7),
            Probe("a b", None, (), 8),
        ],
        ("ORG", "PLACE"),
    )

    assert [(problem.line, problem.column, problem.message) for problem in found] == [
        (3, 1, "'PLASE' is not a label of the model (ORG, PLACE); did you mean 'PLACE'?"),
        (7, 1, "'X' is not a label of the model (ORG, PLACE)"),
    ]
