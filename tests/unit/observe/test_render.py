from __future__ import annotations

import json
import sys
import unicodedata
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spancat_daemon.observe.render import (
    Style,
    columns,
    escape_for_json,
    neutralise,
    render_event,
    render_malformed,
    seconds,
    size,
    style_for,
)

PLAIN = Style(zone=UTC)
STAMP = "2026-11-22T11:30:45.123456Z"


def render(event: str, style: Style = PLAIN, level: str = "info", **fields: Any) -> str:
    return render_event({"timestamp": STAMP, "level": level, "event": event, **fields}, style)


def test_a_rollback_tells_of_no_step_that_it_does_without() -> None:
    line = render("release.overwrite", release="r", settle_s=0.0, stage_s=0.0, verify_s=0.0, swap_s=0.007)
    assert line.endswith("r swap 7ms")
    rolled_back = render("release.rolled_back", release="r", from_release="000041-20261122T103045Z-aaaaaaaa")
    assert rolled_back.endswith("r ← 000041")


def test_sentences_leave_no_machine_fields_over() -> None:
    source = "/srv/runs/model-best"
    assert render("snapshot.started", trigger="manual", forced=False, source=source).endswith(
        f"snapshot.started manual ({source})"
    )
    assert render("snapshot.started", trigger="manual", forced=True).endswith("manual forced")
    assert render("checkpoint.changed", source=source, files=12, bytes=207_072).endswith(
        f"({source}) 12 files 207.1 kB"
    )
    assert render("checkpoint.torn", kind="torn", reason="mixed").endswith("checkpoint.torn — mixed")
    assert render("release.pinned", release="000041-20261122T103045Z-aaaaaaaa").endswith("pinned 000041")


def test_an_overwrite_is_a_sentence() -> None:
    line = render(
        "release.overwrite",
        rule="products",
        release="000042-20261122T113045Z-3f2a9c1b",
        previous_release="000041-20261122T103045Z-aaaaaaaa",
        trigger="change",
        forced=False,
        changed=True,
        component="spancat",
        model_sha256="ab" * 32,
        previous_model_sha256="cd" * 32,
        content_sha256="ab" * 32,
        previous_content_sha256="cd" * 32,
        bytes=12_300_000,
        bytes_written=1_200_000,
        labels_added=["LABEL"],
        labels_removed=["OLD"],
        metrics={"spans_sc_f": 0.71, "spancat_loss": 12.0},
        source="/srv/runs/model-best",
        settle_s=0.003,
        stage_s=0.012,
        verify_s=None,
        swap_s=0.0004,
        total_s=0.021,
        history_seq=84,
        history_sha256="ef" * 32,
    )
    assert line == (
        "2026-11-22 11:30:45.123 • release.overwrite products 000042 ← 000041 change +LABEL -OLD "
        "spans_sc_f 0.710 12.3 MB (1.2 MB written) settle 3ms stage 12ms swap 0.4ms total 21ms"
    )


def test_a_forced_overwrite_and_a_rollback_say_so() -> None:
    forced = render("release.overwrite", release="x", forced=True, changed=False, trigger="schedule")
    assert forced.endswith("x schedule unchanged content forced")
    assert " rollback" in render("release.overwrite", release="x", trigger="rollback")


def test_a_rejection_says_where_why_and_what_to_do() -> None:
    line = render(
        "snapshot.rejected",
        level="warning",
        rule="products",
        reason="there is a FIFO in the checkpoint",
        path="vocab/pipe",
        hint="remove it",
        source="/srv/x",
    )
    assert line.endswith(
        "▲ snapshot.rejected products — there is a FIFO in the checkpoint (vocab/pipe) (/srv/x) → remove it"
    )


def test_a_rejection_names_its_snapshot_and_each_place_once() -> None:
    line = render(
        "snapshot.rejected",
        rule="products",
        reason="no",
        path="/srv/x",
        source="/srv/x",
        snapshot="000002-20261122T103045Z-aaaaaaaa",
        gates=[{"gate": "minimum"}],
    )
    assert line.endswith("snapshot.rejected products 000002 — no (/srv/x)")


def test_going_back_by_itself_says_so_and_why() -> None:
    release, left = "000004-20261122T103045Z-aaaaaaaa", "000005-20261122T103045Z-bbbbbbbb"
    line = render(
        "release.rolled_back",
        release=release,
        from_release=left,
        automatic=True,
        reason="sick",
        history_seq=7,
    )
    assert line.endswith("release.rolled_back 000004 ← 000005 by itself — sick")
    swap = render(
        "release.overwrite",
        release=release,
        previous_release=left,
        trigger="rollback",
        forced=True,
        reason="sick",
    )
    assert swap.endswith("000004 ← 000005 rollback — sick")


def test_a_promotion_says_what_it_overrules_and_its_swap_does_not_say_it_again() -> None:
    promoted: dict[str, Any] = {
        "snapshot": "000003-20261122T103045Z-aaaaaaaa",
        "overruled": "too low",
        "reason": "I know",
    }
    release = "000005-20261122T103045Z-bbbbbbbb"
    line = render("release.promoted", release=release, history_seq=5, **promoted)
    assert line.endswith("release.promoted 000005 (rejected as 000003) — I know overruling: too low")
    assert render("release.overwrite", release=release, promoted=promoted).endswith(
        "release.overwrite 000005"
    )


def test_a_refused_reload_says_each_problem_once() -> None:
    one, two = "/d.toml:1:1: a", "/d.toml:2:1: b"
    assert render("daemon.reload_refused", reason=one, problems=[one]).endswith(f"refused — {one}")
    several = render("daemon.reload_refused", reason="2 problems", problems=[one, two])
    assert several.endswith(f"refused — 2 problems {one}; {two}")


def test_what_a_sentence_does_not_know_is_shown_all_the_same() -> None:
    assert render("snapshot.failed", reason="x", errno=28).endswith("— x errno=28")
    line = render("something.new", rule="r", a=1, b="two", c=[1, 2], d={"k": True}, e=None, f=0.123456789)
    assert line.endswith("something.new r a=1 b=two c=1, 2 d={k: yes} e=none f=0.123457")


def test_an_exception_is_one_line() -> None:
    described = {"type": "ValueError", "message": "a\nb", "cause": {"type": "OSError", "message": "c"}}
    assert render("x", exception=described).endswith("exception=ValueError: a\\nb ← OSError: c")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical", "strange", 7, None])
def test_every_level_has_a_line(level: Any) -> None:
    assert "happened" in render_event({"timestamp": STAMP, "level": level, "event": "happened"}, PLAIN)


def test_each_dangerous_character_of_unicode_is_shown_as_an_escape() -> None:
    dangerous = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    ]
    assert len(dangerous) > 2000
    left = [hex(ord(character)) for character in dangerous if character in neutralise(character)]
    assert left == []
    assert neutralise("Größe 模型 👍 ~") == "Größe 模型 👍 ~"


@pytest.mark.parametrize(
    "field",
    ["timestamp", "level", "event", "rule", "release", "reason", "trigger", "metrics", "new\x1b[2Jkey"],
)
@pytest.mark.parametrize("event", ["release.overwrite", "snapshot.rejected", "unknown.event"])
def test_no_field_can_drive_the_terminal(event: str, field: str) -> None:
    nasty = "\x1b[2J\x1b]0;title\x07 \n\r\x9b31m \u202egnp.exe\u2066\u200b\ud800"
    fields: dict[str, Any] = {"timestamp": STAMP, "level": "info", "event": event, field: nasty}
    for value in (nasty, [nasty], {nasty: nasty}, {"type": nasty, "message": nasty}):
        fields[field] = value
        line = render_event(fields, PLAIN)
        assert neutralise(line) == line
    assert neutralise(render_malformed(nasty.encode("utf-8", "surrogatepass"), PLAIN)) == render_malformed(
        nasty.encode("utf-8", "surrogatepass"), PLAIN
    )


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(
    event=st.sampled_from(
        ["release.overwrite", "release.pruned", "snapshot.failed", "disk.low", "log.dropped"]
    )
    | _ANY,
    fields=st.dictionaries(
        st.sampled_from(
            [
                "timestamp",
                "level",
                "rule",
                "release",
                "bytes",
                "total_s",
                "metrics",
                "labels_added",
                "changed",
                "free",
            ]
        )
        | st.text(),
        _ANY,
    ),
    width=st.none() | st.integers(1, 120),
)
def test_any_event_is_one_harmless_line_that_fits(
    event: Any, fields: dict[str, Any], width: int | None
) -> None:
    line = render_event({**fields, "event": event}, Style(width=width, zone=UTC))
    assert neutralise(line) == line
    if width is not None and str(fields.get("level", "info")) not in {"warning", "error", "critical"}:
        assert columns(line) <= width


def test_long_lines_are_cut_to_the_terminal_but_not_when_something_is_wrong() -> None:
    narrow = Style(width=60, zone=UTC)
    line = render("checkpoint.changed", narrow, reason="模" * 100)
    assert columns(line) <= 60
    assert line.endswith("…")
    assert render("snapshot.failed", narrow, level="error", reason="x" * 500).endswith("x" * 500)


def test_colour_is_added_around_what_is_shown_without_changing_it() -> None:
    fields: dict[str, Any] = {"level": "error", "rule": "r", "reason": "\x1b[0m", "a": 1}
    coloured = render("snapshot.failed", Style(colour=True, zone=UTC), **fields)
    assert "\x1b[1;31m✖\x1b[0m" in coloured
    stripped = coloured
    for code in ("0", "1", "2", "32", "33", "36", "1;31"):
        stripped = stripped.replace(f"\x1b[{code}m", "")
    assert stripped == render("snapshot.failed", **fields)


def test_json_stays_the_same_json_but_harmless() -> None:
    value = {"a": "\x9b31m \u202e \U000e0001 \x7f", "b\u2066": 'quote " \\ é 模'}
    text = escape_for_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert neutralise(text) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0ms"),
        (0.0004, "0.4ms"),
        (0.0123, "12ms"),
        (3.21, "3.2s"),
        (125, "2m05s"),
        (7260, "2h01m"),
        ("x", "x"),
    ],
)
def test_seconds(value: Any, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_960, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (4e12, "4.0 TB"),
        (None, "none"),
    ],
)
def test_sizes(value: Any, text: str) -> None:
    assert size(value) == text


def test_no_colour_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    assert style_for(sys.stdout, {}) == Style()
