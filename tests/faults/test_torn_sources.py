"""Checkpoints that are written in every way, stopped and killed at every step: what is published was whole.

Beside each the same source is copied by what people use instead, and what they get is counted too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.judge import judge
from tests.faults.page import opening, run_of
from tests.faults.report import REPORT, ended, observed, tally
from tests.faults.strace_calls import untraceable
from tests.faults.torn_copiers import COPIERS, Copying
from tests.faults.torn_writers import ORDER, WRITERS, Generations, digests
from tests.pipelines import build
from tests.service import ROOT, Daemon, configure, until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.faults.torn_copiers import How

PROMISE = "each release is, byte for byte, one generation that was whole; the next whole one goes live"
QUIET_PROMISE = "while it never stops for as long as `settle`, each release is one whole generation"
LONGER = "only this: the next whole copy replaces it. Quiet is no proof, and what was torn is counted below"

KINDS = {"stopped": "stopped or killed after a step", "during": "written on while it is copied"}

exhaustive = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("not_first", tmp_path_factory.mktemp("base") / "model")


def play(kind: str, folder: Path, base: Path, rounds: int, *writers: str, seed: int = 0) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, "-m", "tests.faults.torn_rounds", kind, folder, base, seed or rounds, rounds]
    done = subprocess.run(
        [*map(str, command), *writers],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [counts["writer"] for counts in told] == list(writers)
    for counts in told:
        assert counts["outcomes"]["published"] >= rounds
        tally(f"{KINDS[kind]}: {counts['writer']}", rounds, PROMISE)
        count_peers(counts["peers"])


def count_peers(counts: Mapping[str, int]) -> None:
    observed("torn copies of a `cp -r` in a loop, of the same sources", counts["torn"], counts["copied"])
    observed(
        "torn copies of who waits for quiet and compares size, time and inode before and after",
        counts["accepted_torn"],
        counts["accepted"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_some_steps(in_memory: Path, base: Path, kind: str) -> None:
    play(kind, in_memory, base, 8, *WRITERS)


@exhaustive
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_step(in_memory: Path, base: Path, writer: str, kind: str) -> None:
    play(kind, in_memory, base, 1000, writer)


@exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_some_steps_on_a_disk(tmp_path: Path, base: Path, kind: str) -> None:
    play(kind, tmp_path / "rounds", base, 100, *WRITERS, seed=7)


# Times are no help where they are those of the copy, nor where an older copy is written over in any order.
IN_ORDER = [name for name in COPIERS if "rsync -rt" in name or name == "rm -r, then cp -a"]
CASES: list[tuple[str, How]] = [
    *((name, "order") for name in IN_ORDER),
    *((name, "shorter") for name in COPIERS),
    *((name, "longer") for name in COPIERS),
]
SAMPLE: list[tuple[str, How]] = [
    ("rsync -rt", "order"),
    ("cp -r", "shorter"),
    ("rsync -r --inplace", "shorter"),
    ("rm -r, then cp -r", "longer"),
    ("cp -a", "longer"),
]


def copied(folder: Path, base: Path, name: str, how: How, most: int | None) -> None:
    if missing := untraceable():
        pytest.skip(missing)
    program = COPIERS[name].command[0]
    if not any(Path(place, program).exists() for place in os.get_exec_path()):
        pytest.skip(f"{program} is not installed")
    copying = Copying(folder, base, name, how)
    may_tear = how == "longer" and not COPIERS[name].fresh
    with copying.site:
        calls = copying.prepare()
        chosen = calls if most is None else calls[:: max(1, len(calls) // most)]
        for number, call in enumerate(chosen):
            for stop in (bool(number % 2),) if most is not None else (True, False):
                copying.play(call, stop=stop)
                assert may_tear or not copying.torn, (
                    f"{call}, stop={stop}: what was published was never whole"
                )
    copying.site.judged(torn_allowed=may_tear)
    count_peers(copying.site.peers.counts())
    if how == "order":
        tally(f"stopped or killed at a call, taken by the order of times: `{name}`", copying.rounds, PROMISE)
    elif how == "shorter":
        tally(
            f"stopped for less than `settle`, or killed, at a call: `{name}`", copying.rounds, QUIET_PROMISE
        )
    else:
        fault = f"stopped for more than `settle`, or killed, at a call: `{name}`"
        if may_tear:
            observed(f"published torn: {fault}, over an older copy", copying.torn, copying.rounds)
        tally(fault, copying.rounds, LONGER if may_tear else PROMISE)


@pytest.mark.parametrize(("name", "how"), SAMPLE)
def test_some_calls_of_a_copier(in_memory: Path, base: Path, name: str, how: How) -> None:
    copied(in_memory, base, name, how, 6)


@exhaustive
@pytest.mark.parametrize(("name", "how"), CASES)
def test_every_call_of_a_copier(in_memory: Path, base: Path, name: str, how: How) -> None:
    copied(in_memory, base, name, how, None)


def test_what_will_be_renamed_over_a_file_is_no_part_of_a_release(in_memory: Path, base: Path) -> None:
    from tests.faults.torn_rounds import Site  # noqa: PLC0415

    with Site(in_memory, base) as site:
        for _ in WRITERS["in place, as spaCy saves"](site.source, site.next()):
            pass
        (site.source / "tok2vec/.model.Xy12Za").write_bytes(b"half of")
        (site.source / ".~tmp~").mkdir()
        (site.source / ".~tmp~/tokenizer").write_bytes(b"a whole one")
        site.must_be_live("with what rsync leaves when it is killed")
        (site.source / ".kept").write_bytes(b"whatever it is")
        assert site.settle().status == "published"
        assert site.live().keys() - site.saved[-1].keys() == {".kept"}


# -- the daemon itself, and a writer that takes its time ----------------------------------------


@pytest.mark.parametrize(
    ("writer", "pauses", "generations"),
    [
        ("in place, as spaCy saves", "0,0.1", 8),
        pytest.param("in place, as spaCy saves", "0,0.1,1.2", 40, marks=exhaustive),
        pytest.param("in place, as spaCy saves", "5", 3, marks=exhaustive),
        pytest.param("rmtree and copytree, as spaCy makes model-best", "0,0.1,1.2", 30, marks=exhaustive),
        pytest.param("a few bytes at a time", "0,0.1", 60, marks=exhaustive),
        pytest.param("a link that comes to lead elsewhere", "0,0.1", 60, marks=exhaustive),
        pytest.param("a directory renamed into place", "0,0.1", 60, marks=exhaustive),
        pytest.param("through mapped memory", "0,0.1,1.2", 40, marks=exhaustive),
    ],
)
def test_the_daemon_and_a_writer_that_pauses(
    tmp_path: Path, base: Path, writer: str, pauses: str, generations: int
) -> None:
    config = configure(tmp_path, more="[watch.keep]\nlast = 5")
    source = tmp_path / "runs/model-best"
    source.parent.mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.faults.torn_pauses",
        source,
        base,
        writer,
        pauses,
        str(generations),
    ]
    known = [digests(Generations(base)[number]) for number in range(generations)]
    with Daemon(config) as daemon:
        subprocess.run([*map(str, command)], cwd=ROOT, check=True)
        last = known[-1]["config.cfg"]
        until(lambda: _digest_of(tmp_path / "models/products") == last, what="the last one does not go live")
    assert judge(tmp_path / "models/products", known, log=daemon.events) == []
    swaps = Counter(event["event"] for event in daemon.events)
    assert swaps["release.published"] + swaps["release.overwrite"] > 1
    assert set(known[0]) == set(ORDER)
    tally(
        f"paused between files, for up to {max(pauses.split(','), key=float)} s, under the daemon",
        generations,
        PROMISE,
    )


def _digest_of(deploy: Path) -> str:
    try:
        manifest = json.loads((deploy / "current/release.json").read_bytes())
    except FileNotFoundError:
        return ""
    found: str = manifest["files"]["config.cfg"]["sha256"]
    return found


def test_what_others_tear_is_no_case_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "run.jsonl"
    record.write_text(opening(datetime.now(UTC)))
    monkeypatch.setenv(REPORT, str(record))
    tally("stopped", 5, PROMISE)
    for _ in range(2):
        observed("torn copies of others", 2, 3)
    ended(os.environ["PYTEST_CURRENT_TEST"], "passed")
    (suite,) = run_of(record.read_text().splitlines()).suites
    assert suite.cases == 5
    assert suite.notes == {"torn copies of others": (4, 6)}
