"""Loaders that are kept: real children, a clock that is ours where time matters."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon.release.staging import Abandoned
from spancat_daemon.verify import warm
from spancat_daemon.verify.verdict import Examination, LoadVerdict, Subject
from spancat_daemon.verify.warm import WarmLoaders
from tests.examining import subject_of
from tests.misbehaving import interpreter, misbehave
from tests.pipelines import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANY = Examination(subject=Subject(path=Path("/nowhere"), component="spancat", model_sha256="0" * 64))
ANSWER: dict[str, Any] = {
    "ok": True,
    "reason": "",
    "fault": "",
    "labels": [],
    "spans_key": "sc",
    "threshold": None,
    "model_sha256": "",
    "warnings": [],
    "confined": [],
    "probed": None,
    "evaluated": None,
    "live_evaluated": None,
    "timed": None,
    "live_reason": "",
    "load_s": 0,
    "peak_rss_bytes": 0,
    "held_bytes": 1,
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Asker:
    """Examines with few words."""

    def __init__(self, loaders: WarmLoaders, python: str) -> None:
        self.loaders = loaders
        self.python = python

    def ask(self, examination: Examination = ANY, **other: Any) -> LoadVerdict:
        usual: dict[str, Any] = {
            "python": self.python,
            "memory_bytes": 4 << 30,
            "timeout_s": 120.0,
            "idle_s": 60.0,
        }
        return self.loaders.examine(examination, **{**usual, **other})


@contextmanager
def loaders(python: str, at_most: int = 1, clock: Clock | None = None) -> Iterator[Asker]:
    with WarmLoaders(at_most=at_most, monotonic=clock or Clock()) as held:
        yield Asker(held, python)


@pytest.fixture
def stub(tmp_path: Path) -> Callable[[str], str]:
    """A loader that imports no spaCy; ``answer(n)`` of the given code is its n-th answer, or None."""

    def make(code: str = "def answer(n): return ANSWER", name: str = "python") -> str:
        path = tmp_path / name
        path.write_text(
            f"#!{sys.executable} -I\n"
            "import json, os, sys, time\n"
            f"log = os.open({str(tmp_path / 'started')!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
            "os.write(log, b'%d ' % os.getpid())\n"
            f"ANSWER = json.loads({json.dumps(ANSWER)!r})\n"
            f"{code}\n"
            "print(json.dumps({'ready': True, 'python': str(os.getpid())}), flush=True)\n"
            "for n, line in enumerate(sys.stdin, 1):\n"
            "    print(json.dumps(answer(n)), flush=True)\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


def started(tmp_path: Path) -> list[int]:
    """Return the numbers of all loaders that were ever started."""
    path = tmp_path / "started"
    return list(map(int, path.read_text().split())) if path.exists() else []


def living(tmp_path: Path) -> list[int]:
    return [pid for pid in started(tmp_path) if Path("/proc", str(pid)).exists()]


def test_one_is_used_again_and_ended_when_idle(stub: Callable[..., str], tmp_path: Path) -> None:
    clock = Clock()
    with loaders(stub(), clock=clock) as held:
        assert held.loaders.reap() is None
        first = held.ask(idle_s=10)
        clock.now = 9.0
        assert held.loaders.reap() == 1.0
        assert held.ask(idle_s=10).python == first.python
        assert held.loaders.reap() == 10.0
        clock.now = 19.0
        assert held.loaders.reap() is None
        assert living(tmp_path) == []
        assert held.ask(idle_s=0).python != first.python
        assert living(tmp_path) == []  # not to be kept at all
    assert len(started(tmp_path)) == 2


def test_each_has_its_interpreter_and_its_limit(stub: Callable[..., str], tmp_path: Path) -> None:
    other = stub(name="other")
    with loaders(stub(), at_most=2) as held:
        one = held.ask().python
        two = held.ask(python=other).python
        assert held.ask().python == one
        assert held.ask(python=other).python == two
        assert len(started(tmp_path)) == 2
        # The one unused longest makes room.
        three = held.ask(memory_bytes=1 << 30).python
        assert living(tmp_path) == [int(two), int(three)]
        held.loaders.resize(1)
        assert living(tmp_path) == [int(three)]
    assert living(tmp_path) == []


def test_bad_verdict_counts_only_of_a_fresh_one(stub: Callable[..., str], tmp_path: Path) -> None:
    bad = "{**ANSWER, 'ok': False, 'fault': 'release', 'reason': 'bad'}"
    with loaders(stub(f"def answer(n): return ANSWER if n == 1 else {bad}")) as held:
        assert held.ask().ok
        # The second answer of the first one is bad; the first of the next is good, and it is kept.
        assert held.ask().ok
        assert len(started(tmp_path)) == 2
        assert living(tmp_path) == started(tmp_path)[1:]

    (tmp_path / "started").unlink()
    with loaders(stub(f"def answer(n): return {bad}")) as held:
        assert held.ask().reason == "bad"
        assert len(started(tmp_path)) == 1
        assert living(tmp_path) == []


def test_one_that_was_killed_meanwhile(stub: Callable[..., str], tmp_path: Path) -> None:
    with loaders(stub()) as held:
        first = held.ask()
        os.kill(int(first.python), signal.SIGKILL)
        second = held.ask()
    assert second.ok
    assert first.python != second.python


@pytest.mark.parametrize(
    ("held_bytes", "lives"),
    [("(100 << 20) + (n > 2) * (110 << 20)", 5), ("(100 << 20) + (n > 2) * (120 << 20)", 3), ("n == 1", 5)],
)
def test_one_that_grows_is_retired(
    held_bytes: str, lives: int, stub: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_MOST_ANSWERS", 5)
    with loaders(stub(f"def answer(n): return {{**ANSWER, 'held_bytes': int({held_bytes})}}")) as held:
        answered = [held.ask().python for _ in range(6)]
    assert answered.count(answered[0]) == lives


def test_at_most_so_many_work_at_once(stub: Callable[..., str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = f"def answer(n): open({str(gate)!r}).read(); return ANSWER"
    verdicts: list[LoadVerdict] = []
    with loaders(stub(code), at_most=2) as held:
        threads = [threading.Thread(target=lambda: verdicts.append(held.ask())) for _ in range(4)]
        for thread in threads:
            thread.start()
        # Open for both sides, so that opening it blocks nobody, and what is read ends when this closes it.
        while len(started(tmp_path)) < 2:
            pass
        while any(thread.is_alive() for thread in threads):
            os.close(os.open(gate, os.O_RDWR))
            assert len(started(tmp_path)) == 2
    assert [verdict.ok for verdict in verdicts] == [True] * 4


def test_waiting_and_working_can_be_given_up(stub: Callable[..., str], tmp_path: Path) -> None:
    arrived = tmp_path / "arrived"
    os.mkfifo(arrived)
    code = f"def answer(n): open({str(arrived)!r}, 'w').close(); time.sleep(1000)"
    outcome: list[type[BaseException]] = []
    with WarmLoaders(at_most=1) as warm_loaders:
        held = Asker(warm_loaders, stub(code))

        def work() -> None:
            try:
                held.ask()
            except Abandoned as error:
                outcome.append(type(error))

        thread = threading.Thread(target=work)
        thread.start()
        arrived.read_bytes()
        # One works, so the other waits; and is no longer wanted.
        with pytest.raises(Abandoned):
            held.ask(abandoned=lambda: True)
        assert not outcome
    thread.join()
    assert outcome == [Abandoned]
    assert living(tmp_path) == []
    with pytest.raises(Abandoned):
        held.ask()


def test_interpreter_that_is_not_there() -> None:
    with loaders("/nowhere/python") as held:
        for _ in range(2):
            verdict = held.ask()
            assert (verdict.fault, verdict.reason) == (
                "verifier",
                "can't run /nowhere/python: No such file or directory",
            )


def test_next_checkpoint_after_a_bad_one_gets_a_fresh_loader(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "interpreter")
    good = Examination(subject=subject_of(build("own", tmp_path / "good")))
    spinning = misbehave(build("own", tmp_path / "spinning"), "while True: pass")
    hungry = misbehave(build("own", tmp_path / "hungry"), "x = [bytearray(1 << 24) for _ in range(300)]")
    with WarmLoaders(at_most=1) as warm_loaders:
        held = Asker(warm_loaders, python)
        assert held.ask(good).ok
        verdict = held.ask(Examination(subject=subject_of(spinning)), timeout_s=2.0)
        if (
            verdict.fault == "verifier"
        ):  # on a starved machine the loader has not come to the checkpoint by then
            verdict = held.ask(Examination(subject=subject_of(spinning)), timeout_s=100.0)
        assert (verdict.ok, verdict.fault) == (False, "limit")
        assert held.ask(good).ok
        verdict = held.ask(Examination(subject=subject_of(hungry)), memory_bytes=1 << 30)
        assert (verdict.ok, verdict.fault) == (False, "limit")
        assert held.ask(good, memory_bytes=1 << 30).ok


def quick_to_load(path: Path) -> Path:
    """Put a trained pipeline there that loads quickly, for want of a language with exceptions."""
    nlp = spacy.blank("xx")
    suggester = {"@misc": "spacy.ngram_suggester.v1", "sizes": [1]}
    embed = {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "width": 8,
        "depth": 1,
        "embed_size": 50,
        "window_size": 1,
        "maxout_pieces": 2,
        "subword_features": True,
        "pretrained_vectors": None,
    }
    nlp.add_pipe("spancat", config={"suggester": suggester, "model": {"tok2vec": embed}})
    doc = nlp.make_doc("Berlin and Paris")
    doc.spans["sc"] = [spacy.tokens.Span(doc, 0, 1, label="PLACE")]
    examples = [spacy.training.Example(nlp.make_doc(doc.text), doc)]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(5):
        nlp.update(examples, sgd=optimizer)
    nlp.to_disk(path)
    return path


def test_300_verifications_leave_nothing_behind(tmp_path: Path) -> None:
    """Here, in the process that asks; the loader's own memory has a limit, and the loader an end."""
    examination = Examination(subject=subject_of(quick_to_load(tmp_path / "release")))

    def state() -> tuple[int, int, int, int]:
        gc.collect()
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        traced, _ = tracemalloc.get_traced_memory()
        return rss, traced, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    most_bytes = 0
    with WarmLoaders(at_most=1) as warm_loaders:
        held = Asker(warm_loaders, sys.executable)
        tracemalloc.start()
        try:
            before = after = (0, 0, 0, 0)
            for number in range(1, 301):
                verdict = held.ask(examination)
                assert verdict.ok, verdict
                most_bytes = max(most_bytes, verdict.peak_rss_bytes)
                if number == 60:
                    before = state()
            after = state()
        finally:
            tracemalloc.stop()
    assert after[0] - before[0] < 2 << 20
    assert after[1] - before[1] < 64 << 10
    assert after[2:] == before[2:]
    assert most_bytes < 300 << 20
