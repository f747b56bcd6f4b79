"""Bytes that others wrote: only the documented errors, in bounded time and memory; see `fuzzing.targets`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzzing.targets import CORPUS, TARGETS, send
from tests.faults.judge import judge
from tests.faults.report import tally
from tests.pipelines import build
from tests.service import ROOT, Daemon, configure, run

if TYPE_CHECKING:
    from pathlib import Path

PROMISE = "only the documented errors, fit for a terminal; no crash, no hang, no memory beyond a bound"
FEW = 25
MANY = 1_000


def kept(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_was_found_stays_found(name: str) -> None:
    inputs = kept(name)
    assert inputs
    for data in inputs:
        TARGETS[name].run(data)
    tally(f"{name.replace('_', ' ')}: every input that ever found something", len(inputs), PROMISE)


def spoilt(seeds: list[bytes], words: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Real bytes with some cut out, and others put in, here and there."""
    piece = st.one_of(st.binary(max_size=8), st.sampled_from((*words, b"\0", b"\n", b"[" * 200, b"9" * 5000)))
    change = st.tuples(st.integers(0, 1 << 16), st.integers(0, 64), piece)

    def apply(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for at, out, new in changes:
            start = at % (len(seed) + 1)
            seed = seed[:start] + new + seed[start + out :]
        return seed

    return st.builds(apply, st.sampled_from(seeds), st.lists(change, min_size=1, max_size=4))


def spoil(name: str, examples: int) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(kept(name), target.words))
    def holds(data: bytes) -> None:
        target.run(data)

    holds()
    tally(f"{name.replace('_', ' ')}: real bytes, spoilt", examples, PROMISE)


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_bytes(name: str) -> None:
    spoil(name, FEW)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TARGETS)
def test_many_spoilt_bytes(name: str) -> None:
    spoil(name, MANY if name != "answers" else MANY // 10)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TARGETS)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    fuzzing = [sys.executable, "-m", "tests.faults.fuzzing", name, str(tmp_path), "-max_total_time=20"]
    done = subprocess.run(fuzzing, check=False, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-5000:]
    executed = done.stderr.partition("stat::number_of_executed_units:")[2].split()[0]
    tally(f"{name.replace('_', ' ')}: guided by coverage", int(executed), PROMISE)


def test_a_real_daemon_answers_raw_bytes_and_goes_on(tmp_path: Path) -> None:
    build("default", tmp_path / "runs/model-best")
    with Daemon(configure(tmp_path)) as daemon:
        daemon.wait_for("release.published")
        inputs = kept("request")
        for data in inputs:
            assert not send(tmp_path / "var/control.sock", data).startswith(b"HTTP/1.1 500"), data
        told = run("status", "--json", config=daemon.config)
        assert json.loads(told.stdout)
        assert not [event for event in daemon.events if event["event"] == "control.failed"]
    assert judge(tmp_path / "models/products") == []
    tally("raw bytes on the control socket of a running daemon", len(inputs), PROMISE)


# A copy of each attack without the protection: what it costs to believe the bytes.
COSTLY = {
    "small_lists": ("orjson.loads(b'[' + b'[],' * 2_500_000 + b'1]')", "read_outline(b'[nlp]', BYTES)"),
    "defaults": (
        "p = configparser.RawConfigParser(); p.read_string(BYTES.decode()); [p.items(s) for s in p]",
        "parse_config(BYTES)",
    ),
    "dotted": ("tomllib.loads(BYTES.decode())", "load.parse(BYTES.decode(), Path('/x/daemon.toml'), {})"),
}
BYTES = {
    "small_lists": "b'[' + b'[],' * 2_500_000 + b'1]'",
    "defaults": "b'[DEFAULT]\\n' + b''.join(b'k%d=1\\n' % n for n in range(6000)) + "
    "b''.join(b'[s%d]\\n' % n for n in range(600))",
    "dotted": "b''.join(b'k%d%s = 1\\n' % (n, b'.a' * 8000) for n in range(3))",
}
_IMPORTS = """
import configparser, orjson, resource, tomllib
from pathlib import Path
from spancat_daemon.checkpoint.configuration import parse_config
from spancat_daemon.checkpoint.layout import read_outline
from spancat_daemon.config import load
from spancat_daemon.errors import SpancatDaemonError
"""


def peak_mb(code: str) -> int:
    """The most memory that a process had while it ran some code, beyond what it had before."""
    measured = f"{_IMPORTS}\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n{code}\n"
    measured += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    done = subprocess.run(
        [sys.executable, "-c", measured], check=True, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    return int(done.stdout)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COSTLY)
def test_memory_is_bounded_where_it_would_not_be(name: str) -> None:
    believing, ours = COSTLY[name]
    data = f"BYTES = {BYTES[name]}"
    refused = f"{data}\ntry:\n    {ours}\n    raise SystemExit('believed')\nexcept SpancatDaemonError: pass"
    assert peak_mb(refused) < 60 + 25 * (name == "small_lists")
    assert peak_mb(f"{data}\nkept = {believing}" if name != "defaults" else f"{data}\n{believing}") > 90
    tally("small files that would take gigabytes to read", 1, "refused, in bounded memory")
