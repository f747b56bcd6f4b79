"""Snapshots between the evaluations: what is in them, and what happens when they can't be written."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import secrets
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.training import snapshot_logger
from tests.integration.training.running import Watcher, entries, signal, trained, wait_for_entry, whole
from tests.pipelines import build, predictions, texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPOOL = {"every_steps": 2, "spool_keep": 99}


def frozen(config: Any, source: Path) -> None:
    """Train a tok2vec further, beside components that are frozen, and with one that annotates."""
    others = {name: {"source": str(source)} for name in ("sentencizer", "tok2vec", "tagger", "ner")}
    config["components"] = {**others, "spancat": config["components"]["spancat"]}
    config["components"]["spancat"]["model"]["tok2vec"]["width"] = 24
    config["nlp"]["pipeline"] = list(config["components"])
    config["training"]["frozen_components"] = ["tagger", "ner"]
    config["training"]["annotating_components"] = ["sentencizer", "tagger"]


def without_averages(config: Any) -> None:
    config["training"]["optimizer"] = {"@optimizers": "Adam.v1", "use_averages": False}


@pytest.mark.parametrize("how", ["default", "frozen", "without_averages"])
def test_an_entry_is_what_to_disk_would_have_written_at_its_step(tmp_path: Path, how: str) -> None:
    output, watcher = tmp_path / "output", Watcher()
    source = build("not_first", tmp_path / "source") if how == "frozen" else tmp_path

    def change(config: Any) -> None:
        if how == "frozen":
            frozen(config, source)
        if how == "without_averages":
            without_averages(config)

    def on_step(_info: Any) -> None:
        step = len(watcher.steps) - 1
        if step and step % 2 == 0:
            averages = None if how == "without_averages" else watcher.optimizer.averages
            with watcher.nlp.use_params(averages):
                watcher.nlp.to_disk(tmp_path / f"wanted-{step}")
            wait_for_entry(output / "spool", step)

    watcher.on_step = on_step
    done = trained(output, watcher, SPOOL, change=change)
    assert done.raised is None
    found = {whole(entry)["step"]: entry for entry in entries(output / "spool")}
    assert list(found) == [2, 4, 6, 8, 10]
    for step, entry in found.items():
        assert re.fullmatch(rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-{step:09d}-{os.getpid()}", entry.name)
        wanted = tmp_path / f"wanted-{step}"
        for file in (file for file in wanted.rglob("*") if file.is_file()):
            path = file.relative_to(wanted)
            if path.name != "meta.json":
                assert (entry / path).read_bytes() == file.read_bytes(), (step, path)
        meta, full = (json.loads((folder / "meta.json").read_bytes()) for folder in (entry, wanted))
        assert meta.pop("performance") == ({} if step % 4 else full["performance"])
        assert {**meta, "performance": full["performance"]} == full
        assert meta["spancat_daemon"] == {"step": step}
    newest = max(found)
    assert predictions(found[newest], texts()) == predictions(tmp_path / f"wanted-{newest}", texts())
    assert not list((output / "spool/tmp").iterdir())
    assert "5 written, 5 of them kept; 0 older ones removed, 0 dropped unwritten, 0 failed" in done.stderr


def test_only_the_newest_are_kept_and_it_says_so(tmp_path: Path) -> None:
    done = trained(tmp_path / "output", Watcher(), {"every_seconds": 1e-9, "spool_keep": 2})
    found = entries(tmp_path / "output/spool")
    written = int(re.search(r"(\d+) written, 2 of them kept", done.stderr)[1])  # type: ignore[index]
    assert [whole(entry)["step"] for entry in found][-1] == 11
    assert len(found) == 2
    assert done.stderr.count("removed the oldest") == 1
    assert f"{written - 2} older ones removed" in done.stderr


def test_a_spool_elsewhere_for_a_training_that_saves_nothing(tmp_path: Path) -> None:
    done = trained(None, Watcher(), {**SPOOL, "spool": str(tmp_path / "elsewhere")})
    assert done.raised is None
    assert [whole(entry)["step"] for entry in entries(tmp_path / "elsewhere")][-1] == 10


@pytest.mark.parametrize("spool", ["model-last", "x/../model-best/spool"])
def test_a_spool_in_what_spacy_deletes_is_refused(tmp_path: Path, spool: str, plain: dict[str, str]) -> None:
    done = trained(tmp_path / "output", Watcher(), {**SPOOL, "spool": spool})
    assert done.raised is None
    assert done.result() == plain
    assert "nothing saved between evaluations: spaCy itself writes in " in done.stderr


def test_a_clock_that_was_set_back_makes_no_older_entries(tmp_path: Path) -> None:
    new = tmp_path / "output/spool/new"
    ahead = new / "29991231T235959.999999Z-000000100-1"
    ahead.mkdir(parents=True)
    foreign = new / "a-users-own"
    foreign.mkdir()
    watcher = Watcher()

    def on_step(_info: Any) -> None:
        if (step := len(watcher.steps) - 1) in {4, 8}:
            wait_for_entry(tmp_path / "output/spool", step)

    watcher.on_step = on_step
    trained(tmp_path / "output", watcher, {"every_steps": 4, "spool_keep": 3})
    names = sorted(path.name for path in new.iterdir() if path != foreign)
    assert names[0] == ahead.name
    assert [name.split("-")[1] for name in names[1:]] == ["000000004", "000000008"]
    assert foreign.exists()


def test_names_that_are_no_times_change_nothing(tmp_path: Path) -> None:
    new = tmp_path / "output/spool/new"
    foreign = {f"{time}Z-000000100-1" for time in ("20261399T000000.000000", "20990230T000000.000000")}
    foreign.add("99991231T235959.999999Z-000000100-1")
    for name in foreign:
        (new / name).mkdir(parents=True)
    done = trained(tmp_path / "output", Watcher(), {"every_steps": 11, "spool_keep": 99})
    assert "1 written, 1 of them kept" in done.stderr
    assert len(list(new.iterdir())) == len(foreign) + 1


def test_what_killed_trainings_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    tmp = tmp_path / "output/spool/tmp"
    ended, alive = (f"bench-{digit * 16}" for digit in "ab")
    for name in (ended, alive, "a-users-own"):
        (tmp / name / "constant/vocab").mkdir(parents=True)
        (tmp / f"{name}.lock").touch()
    with (tmp / f"{alive}.lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        trained(tmp_path / "output", Watcher(), SPOOL)
    kept = {alive, f"{alive}.lock", "a-users-own", "a-users-own.lock"}
    assert {path.name for path in tmp.iterdir()} == kept


def test_trainings_of_the_same_number_share_a_spool(tmp_path: Path) -> None:
    """As in two containers."""
    one, other = (snapshot_logger._Bench(tmp_path / "tmp") for _ in range(2))
    mine, theirs = one.take(), other.take()
    one.clear_others()
    assert mine != theirs
    assert theirs.is_dir()
    (theirs / "constant").mkdir()
    other.leave()
    assert not theirs.exists()
    one.leave()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_slow_disk_drops_the_oldest_and_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool's disk stands still for the whole training, and until its last save is told."""
    output, watcher = tmp_path / "output", Watcher()
    stuck, go_on = threading.Event(), threading.Event()
    real = os.fsync

    def fsync(fd: int) -> None:
        stuck.set()
        assert go_on.wait(60)
        real(fd)

    def once_the_last_save_is_told() -> None:
        assert stuck.wait(60)
        while not (signal(output) or {}).get("final"):
            go_on.wait(0.005)
        go_on.set()

    def on_step(_info: Any) -> None:
        if len(watcher.steps) == 4:
            assert stuck.wait(60)  # on the first copy, of step 2, before there is another one

    watcher.on_step = on_step
    monkeypatch.setattr(os, "fsync", fsync)
    observer = threading.Thread(target=once_the_last_save_is_told)
    observer.start()
    done = trained(output, watcher, SPOOL)
    observer.join()
    monkeypatch.undo()
    assert done.raised is None
    # 2 is being written, 8 and 10 wait; 4 and 6 gave way
    assert [whole(entry)["step"] for entry in entries(output / "spool")] == [2, 8, 10]
    assert done.stderr.count("dropped step 4") == 1
    assert "3 written, 3 of them kept; 0 older ones removed, 2 dropped unwritten" in done.stderr
    assert done.result() == trained(tmp_path / "plain", Watcher()).result()


def test_a_disk_that_hangs_for_ever_is_left_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, real = threading.Event(), os.fsync

    def fsync(fd: int) -> None:
        assert go_on.wait(60)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(snapshot_logger, "_END_S", 0.01)
    done = trained(tmp_path / "output", Watcher(), SPOOL)
    assert "still being written" in done.stderr
    assert (signal(tmp_path / "output") or {})["final"]
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "spool"]
    assert writer.daemon
    go_on.set()
    writer.join(60)
    assert not writer.is_alive()


def spool_is_a_file(output: Path, _watcher: Watcher, _patch: pytest.MonkeyPatch) -> None:
    output.mkdir()
    (output / "spool").write_text("in the way")


def signal_is_a_folder(output: Path, _watcher: Watcher, _patch: pytest.MonkeyPatch) -> None:
    (output / "written.json/full").mkdir(parents=True)


def spool_becomes_a_file(output: Path, watcher: Watcher, _patch: pytest.MonkeyPatch) -> None:
    def on_step(_info: Any) -> None:
        if len(watcher.steps) == 5 and (output / "spool").exists():
            in_the_way = output / "in the way"
            in_the_way.touch()
            while (output / "spool").is_dir():  # the writer may make it again at this moment
                (output / "spool").rename(output / f"moved-{secrets.token_hex(4)}")
                with contextlib.suppress(IsADirectoryError):
                    in_the_way.rename(output / "spool")

    watcher.on_step = on_step


def no_memory(_output: Path, watcher: Watcher, patch: pytest.MonkeyPatch) -> None:
    def on_setup() -> None:
        def copied(*_: Any) -> None:
            raise MemoryError

        patch.setattr(snapshot_logger._Training, "_copied", copied)

    watcher.on_setup = on_setup


def a_model_that_does_not_save(_output: Path, watcher: Watcher, patch: pytest.MonkeyPatch) -> None:
    """In the middle of the copy, with the averages in the model."""
    from thinc.api import Model  # noqa: PLC0415  # as patched here alone

    real = Model.to_bytes

    def to_bytes(self: Any) -> bytes:
        nlp = watcher.nlp
        if self is nlp.get_pipe("spancat").model and not nlp.__dict__.get("saving"):  # type: ignore[attr-defined]
            raise RuntimeError("no copy of this")
        return real(self)

    def before_to_disk(nlp: Any) -> Any:
        nlp.__dict__["saving"] = True
        return nlp

    watcher.before_to_disk = before_to_disk
    watcher.on_step = lambda _info: watcher.nlp.__dict__.pop("saving", None)
    patch.setattr(Model, "to_bytes", to_bytes)


def nothing_works(_output: Path, _watcher: Watcher, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of ours")

    for method in ("_signal", "_between", "_evaluated"):
        patch.setattr(snapshot_logger._Training, method, fail)


def no_setup(_output: Path, _watcher: Watcher, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of ours")

    patch.setattr(snapshot_logger, "_watched", fail)


FAULTS: dict[str, tuple[Callable[..., None], str]] = {
    "a file for the spool": (spool_is_a_file, "could not write a snapshot to the spool"),
    "a folder for the signal": (signal_is_a_folder, "could not tell the daemon of a save"),
    "the spool becomes a file": (spool_becomes_a_file, "could not write a snapshot to the spool"),
    "no memory": (no_memory, "could not save between evaluations: MemoryError"),
    "no copy": (a_model_that_does_not_save, "could not save between evaluations: RuntimeError: no copy"),
    "nothing works": (nothing_works, "could not save between evaluations: RuntimeError: a bug of ours"),
    "no setup": (no_setup, "the training goes on without it: RuntimeError: a bug of ours"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a training without our logger leaves."""
    return trained(tmp_path_factory.mktemp("plain") / "output", Watcher()).result()


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_the_training_is_the_same(
    tmp_path: Path, fault: str, plain: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, watcher = tmp_path / "output", Watcher()
    put_in, complaint = FAULTS[fault]
    put_in(output, watcher, monkeypatch)
    done = trained(output, watcher, {"every_steps": 1})
    assert done.raised is None
    assert done.result() == plain
    assert done.stderr.count(f"daemon: {complaint}") == 1  # once for all


@pytest.mark.parametrize("terms", ["size=64k", "ro"])
@pytest.mark.root
def test_a_spool_that_is_full_or_read_only(tmp_path: Path, terms: str, plain: dict[str, str]) -> None:
    spool = tmp_path / "output/spool"
    spool.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", terms, "none", spool], check=True)
    try:
        done = trained(tmp_path / "output", Watcher(), SPOOL)
        left = list(spool.glob("*/*"))
    finally:
        subprocess.run(["umount", spool], check=True)
    assert done.raised is None
    assert done.result() == plain
    why = {"size=64k": "[Errno 28]", "ro": "[Errno 30]"}[terms]
    assert re.findall(r"could not write a snapshot to the spool: OSError: (\[Errno \d+\])", done.stderr) == [
        why
    ]
    assert "0 written, 0 of them kept; 0 older ones removed" in done.stderr
    assert left == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_killed_is_replaced(tmp_path: Path, plain: dict[str, str]) -> None:
    watcher = Watcher()

    def on_step(_info: Any) -> None:
        if len(watcher.steps) != 6:
            return
        (writer,) = [thread for thread in threading.enumerate() if thread.name == "spool"]
        spool = writer._args[0].__self__  # type: ignore[attr-defined]
        set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert writer.ident is not None
        assert set_exception(ctypes.c_ulong(writer.ident), ctypes.py_object(SystemExit)) == 1
        with spool._changed:
            spool._changed.notify()  # it dies when it wakes
        writer.join(60)
        assert not writer.is_alive()

    watcher.on_step = on_step
    done = trained(tmp_path / "output", watcher, SPOOL)
    assert done.raised is None
    assert done.result() == plain
    assert [whole(entry)["step"] for entry in entries(done.output / "spool")][-1] == 10
    assert done.stderr.count("the spool's thread had ended") == 1
    assert not list((done.output / "spool/tmp").iterdir())
