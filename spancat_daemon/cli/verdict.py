"""What a manifest's ``verification`` says, for people.

It is read as it lies on a disk: releases of other versions have other keys, and nothing here relies on any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spancat_daemon.cli.output import table
from spancat_daemon.observe.render import size

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_BYTES = "max_bytes"


def facts(verification: Mapping[str, Any], verifier: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """What was looked at, by what, and what came of it: a name and a text for each."""
    passed = verification.get("passed") is True
    level = str(verification.get("level", "")) or "no"
    about = ", ".join(f"{name} {version}" for name, version in (verifier or {}).items() if version)
    verdict = ("passed" if passed else "NOT passed") if verification else ""
    found = [("verified", " ".join(filter(None, (level, verdict, f"({about})" if about else ""))))]
    if not passed and verification.get("reason"):
        found.append(("reason", str(verification["reason"])))
    found += _promoted(_mapped(verification.get("promoted")))
    found += [("warning", str(warning)) for warning in _listed(verification.get("warnings"))]
    found += _loaded(verification)
    if _listed(verification.get("confined")):
        found.append(("confined in", ", ".join(map(str, _listed(verification.get("confined"))))))
    found += _probed(_mapped(verification.get("probed")))
    found += _scores("scores", _mapped(verification.get("evaluated")))
    found += _scores("live scores", _mapped(verification.get("live_evaluated")))
    found += _timed(_mapped(verification.get("timed")))
    if verification.get("live_reason"):
        found.append(("live", f"not compared with: {verification['live_reason']}"))
    return found


def show_gates(verification: Mapping[str, Any]) -> bool:
    """Print every gate with its figures, the failed ones first; tells whether there was one."""
    gates = [_mapped(gate) for gate in _listed(verification.get("gates"))]
    if not gates:
        return False
    table(
        ("gate", "of", "verdict", ">figure", ">limit", ">live", "from", "note"),
        [
            (
                str(gate.get("gate", "")),
                str(gate.get("of", "")),
                "passed" if gate.get("passed") is True else "NOT passed",
                *(_figure(gate, key) for key in ("value", "limit", "live")),
                str(gate.get("source", "")),
                str(gate.get("note", "")),
            )
            for gate in sorted(gates, key=lambda gate: gate.get("passed") is True)
        ],
        spare=("from", "note"),
    )
    return True


def _promoted(promoted: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not promoted:
        return []
    why = f": {promoted['reason']}" if promoted.get("reason") else ""
    return [("promoted", f"though it was rejected, as {promoted.get('snapshot', '')}{why}")]


def _loaded(verification: Mapping[str, Any]) -> list[tuple[str, str]]:
    load_s, peak = verification.get("load_s"), verification.get("peak_rss_bytes")
    if not _is_number(load_s) or not load_s:
        return []
    return [("loaded", f"in {load_s:.2f} s" + (f", with {size(peak)} of memory" if peak else ""))]


def _probed(probed: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not probed:
        return []
    spans = _number(probed.get("spans"))
    counted = (
        f"{_number(probed.get('passed'))} of {_number(probed.get('total'))} passed, {spans} spans in all"
    )
    return [
        ("probes", counted),
        *(("failed", str(failure)) for failure in _listed(probed.get("failures"))),
    ]


def _scores(name: str, evaluated: Mapping[str, Any]) -> list[tuple[str, str]]:
    scores = _mapped(evaluated.get("scores"))
    if not scores:
        return []
    whole = ", ".join(f"{key} {_number(value)}" for key, value in scores.items() if _is_number(value))
    found = [(name, f"{whole} ({_number(evaluated.get('documents'))} gold documents)")]
    for value in scores.values():
        for label, measures in _mapped(value).items():
            text = ", ".join(f"{key} {_number(score)}" for key, score in _mapped(measures).items())
            found.append(("", f"{label}: {text}"))
    return found


def _timed(timed: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not timed:
        return []
    live = timed.get("live_ms")
    beside = f", live {_number(live)} ms" if live is not None else ""
    snapshot, documents = _number(timed.get("snapshot_ms")), _number(timed.get("documents"))
    return [("latency", f"{snapshot} ms a document{beside} ({documents} documents)")]


def _figure(gate: Mapping[str, Any], key: str) -> str:
    value = gate.get(key)
    if gate.get("gate") == _OF_BYTES and _is_number(value):
        return size(value)
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapped(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
