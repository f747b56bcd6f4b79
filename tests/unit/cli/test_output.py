from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spancat_daemon.cli import output

if TYPE_CHECKING:
    import pytest


def test_a_table_without_a_terminal_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("", "name", ">size", "why"), [("*", "first", "10", "live"), ("", "日本", "9", "")])
    assert capsys.readouterr().out == (
        "   name   size  why\n"
        "*  first    10  live\n"
        "   日本      9\n"
    )  # fmt: skip


def test_nothing_from_a_disk_drives_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred\u202e"
    output.table(("label",), [(evil,)])
    output.data(evil)
    output.say(evil)
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "red" in text


def test_markup_in_a_cell_is_shown_as_it_is_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _on_a_terminal(
        monkeypatch, lambda: output.table(("label", "why"), [("[bold]X[/nope]", "\x1b[31m[red]")])
    )
    assert "[bold]X[/nope]" in shown
    assert "[red]" in shown
    assert "\x1b[31m" not in shown


def test_ids_are_not_cut_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    name = "000001-20261122T113045Z-3f2a9c1b"
    shown = _on_a_terminal(monkeypatch, lambda: output.table(("release", "why"), [(name, "last 5, pinned")]))
    assert name in shown


def test_a_terminal_that_is_too_narrow_gets_a_value_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [
        ("*", "000002-20261122T113045Z-3f2a9c1b", "10", "live"),
        ("", "000001-20261122T113045Z-3f2a9c1b", "", ""),
    ]
    shown = _on_a_terminal(monkeypatch, lambda: output.table(("", "release", ">size", "why"), rows))
    assert shown.splitlines() == [
        "* 000002-20261122T113045Z-3f2a9c1b",
        "  size     10",
        "  why      live",
        "000001-20261122T113045Z-3f2a9c1b",
    ]


def test_a_narrow_terminal_does_without_spare_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "45")
    name = "000001-20261122T113045Z-3f2a9c1b"
    shown = _on_a_terminal(
        monkeypatch,
        lambda: output.table(
            ("release", ">own", "why"), [(name, "10.5 MB", "last")], spare=("own", "not there")
        ),
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(len(line) <= 45 for line in plain.splitlines())
    assert "own" not in shown
    assert name in shown
    assert "last" in shown


def test_a_stream_that_lacks_a_character_gets_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    output.data("GÜTER \udcff")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"G\\xdcTER \\udcff\n"


def test_a_message_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("daemon.toml:1:1: wrong\n    key = 1\n    ^^^")
    assert capsys.readouterr().err == "spancat-daemon: daemon.toml:1:1: wrong\n    key = 1\n    ^^^\n"


def test_json_takes_paths_and_names_that_are_not_utf8(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.print_json({"path": Path("/x/é"), "odd": os.fsdecode(b"a\xff")})
    assert json.loads(capfdbinary.readouterr().out) == {"path": "/x/é", "odd": "a\\xff"}


_END = "<end>"


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch, show: object) -> str:
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", os.fdopen(follower, "w"))
    try:
        assert callable(show)
        show()
        sys.stdout.write(_END)
        sys.stdout.flush()
        shown = b""
        while not shown.endswith(_END.encode()):  # a terminal hands on what it has so far
            shown += os.read(leader, 65536)
        return shown.decode().removesuffix(_END)
    finally:
        sys.stdout.close()
        os.close(leader)
