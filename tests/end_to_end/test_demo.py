"""`demo` as a user runs it: a real training, the real daemon, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.service import ROOT, command

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def temporary() -> Iterator[Path]:
    # Not tmp_path: a socket's path has room for 107 bytes
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        yield Path(folder)
        assert _processes_of(Path(folder)) == []


def _processes_of(folder: Path) -> list[str]:
    """Command lines of processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in line or str(folder) in str((process / "cwd").readlink()):
                found.append(line)
        except OSError:
            continue
    return found


def _start(temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("demo", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
    )


def test_a_release_is_live_while_the_trainer_still_trains(temporary: Path) -> None:
    with _start(temporary, "--steps", "48", "--keep") as demo:
        told, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, told
    lines = told.splitlines()
    first_release = next(number for number, line in enumerate(lines) if "release.published" in line)
    last_evaluation = max(number for number, line in enumerate(lines) if line.startswith("spacy train: step"))
    assert first_release < last_evaluation
    (folder,) = temporary.iterdir()
    current = folder / "models" / "products" / "current"
    assert str(current) in told
    for said in ("$ spancat-daemon list products", "$ spancat-daemon rollback products", "unbroken"):
        assert said in told

    listed = subprocess.run(
        command("-c", folder / "daemon.toml", "list", "products", "--json"),
        check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    live = next(entry for entry in json.loads(listed.stdout) if entry["live"])
    best = folder / "runs" / "products" / "model-best"
    assert (current / "model.bin").read_bytes() == (best / "spancat" / "model").read_bytes()
    assert re.search(rf"now {live['id']}, loaded with spacy\.load", told)
    # The daemon of the demonstration uses the file that is shipped
    assert (folder / "daemon.toml").read_bytes() == (ROOT / "daemon.toml").read_bytes()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)], ids=["INT", "TERM"]
)
def test_interrupted_it_leaves_nothing_behind(temporary: Path, number: signal.Signals, code: int) -> None:
    with _start(temporary) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("spacy train: step"):
                break
        demo.send_signal(number)
        rest = demo.stdout.read()
        assert demo.wait(60) == code, rest
    assert "Traceback" not in rest
    assert list(temporary.iterdir()) == []


def test_a_training_that_fails_is_told_and_leaves_nothing_behind(temporary: Path) -> None:
    # The trainer's own interpreter start fails, the daemon's does not
    site = temporary / "broken" / "spacy"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("raise RuntimeError('no spaCy today')")
    with subprocess.Popen(
        command("demo"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site.parent), str(ROOT)]),
            "TMPDIR": str(temporary),
        },
    ) as demo:
        _, told = demo.communicate(timeout=120)
    assert demo.returncode == 1
    assert "spacy train failed" in told
    assert "no spaCy today" in told
    assert [path.name for path in temporary.iterdir()] == ["broken"]
