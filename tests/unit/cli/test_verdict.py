from __future__ import annotations

from typing import Any

import pytest

from spancat_daemon.cli.verdict import facts, show_gates


@pytest.mark.parametrize(
    ("verification", "said"),
    [
        ({}, {"verified": "no"}),
        ({"level": "structure", "passed": True}, {"verified": "structure passed (spacy 3.8.7)"}),
        ({"level": 3, "passed": "yes", "reason": ["x"]}, {"verified": "3 NOT passed", "reason": "['x']"}),
        ({"gates": {"a": 1}, "warnings": "w", "probed": 7, "timed": [2], "load_s": "x"}, {}),
        ({"evaluated": {"scores": [1]}, "live_evaluated": 4}, {}),
        (
            {"evaluated": {"scores": {"f": {"A": 1, "B": {"f": None}}}}, "probed": {"failures": [3]}},
            {"probes": "- of - passed, - spans in all", "failed": "3", "": "B: f -"},
        ),
        (
            {"passed": True, "promoted": {"snapshot": "000002-x", "reason": "it is good"}},
            {"promoted": "though it was rejected, as 000002-x: it is good"},
        ),
        ({"live_reason": "it is gone"}, {"live": "not compared with: it is gone"}),
        ({"timed": {"documents": 3, "snapshot_ms": 1.5}}, {"latency": "1.5 ms a document (3 documents)"}),
    ],
)
def test_any_verification_that_a_manifest_may_have_is_shown(
    verification: dict[str, Any], said: dict[str, str]
) -> None:
    verifier = {"spacy": "3.8.7", "thinc": ""} if verification.get("level") == "structure" else None
    shown = dict(facts(verification, verifier))
    assert {name: shown.get(name) for name in said} == said


def test_gates_of_any_shape(capsys: pytest.CaptureFixture[str]) -> None:
    nothing_to_show: list[dict[str, Any]] = [{}, {"gates": {"a": 1}}, {"gates": []}]
    for nothing in nothing_to_show:
        assert not show_gates(nothing)
    assert capsys.readouterr().out == ""
    gates = [1, {}, {"gate": "labels", "value": ["A", "B"], "limit": "same", "passed": True}]
    assert show_gates({"gates": [*gates, {"gate": "max_bytes", "value": "big", "limit": 2e6}]})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[3] == ["max_bytes", "NOT", "passed", "big", "2.0", "MB", "-"]
    assert lines[4] == ["labels", "passed", "A,", "B", "same", "-"]
