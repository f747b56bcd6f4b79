"""Examining releases in a child: real ones with real spaCy, and children that misbehave in every way."""

from __future__ import annotations

import json
import os
import selectors
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import spacy
import thinc

from spancat_daemon.release.staging import Abandoned
from spancat_daemon.verify.child import LoaderProcess, cannot_run
from spancat_daemon.verify.verdict import Examination, LoadVerdict, Probe, Subject
from tests.examining import subject_of
from tests.misbehaving import interpreter, misbehave
from tests.pipelines import VARIANTS, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANY = Examination(subject=Subject(path=Path("/nowhere"), component="spancat", model_sha256="0" * 64))
LABELS = ("ORG", "PLACE", "GÜTER")
LONG_S = 120.0


def examine(
    examination: Examination,
    *,
    python: str = sys.executable,
    timeout_s: float = LONG_S,
    memory_bytes: int | None = None,
) -> LoadVerdict:
    """Ask a loader of its own."""
    with LoaderProcess(python=python, memory_bytes=memory_bytes) as loader:
        return loader.ask(examination, timeout_s=timeout_s)


def of(path: Path, component: str = "spancat", **said: object) -> Examination:
    return Examination(subject=subject_of(path, component, **said))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build("default", tmp_path / "release")


@pytest.fixture(scope="module")
def loader() -> Iterator[LoaderProcess]:
    """One that is kept, for releases that do it no harm."""
    with LoaderProcess() as kept:
        yield kept


@pytest.fixture
def fake_python(tmp_path: Path) -> Callable[[str], str]:
    """An interpreter that says it is ready, and then, whatever it is asked, runs the given code."""

    def make(code: str, *, ready: bool = True) -> str:
        path = tmp_path / "python"
        first = "print('{\"ready\": true}', flush=True)\n" if ready else ""
        path.write_text(f"#!{sys.executable}\nimport os, sys, signal, time\n{first}{textwrap.dedent(code)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture(scope="module")
def knows_misbehaviour(tmp_path_factory: pytest.TempPathFactory) -> str:
    return interpreter(tmp_path_factory.mktemp("interpreter"))


def test_every_variant_loads_in_one_loader(tmp_path: Path, loader: LoaderProcess) -> None:
    for variant in VARIANTS:
        component = "products" if variant == "renamed" else "spancat"
        examination = of(build(variant, tmp_path / variant), component)

        verdict = loader.ask(examination, timeout_s=LONG_S)

        assert (verdict.ok, verdict.reason, verdict.fault, verdict.warnings) == (True, "", "", ()), variant
        assert verdict.labels == LABELS
        assert verdict.spans_key == ("xx" if variant == "custom_key" else "sc")
        assert verdict.model_sha256 == examination.subject.model_sha256
    assert loader.asked >= len(VARIANTS)


def test_verdict_names_what_loaded_it(release: Path, loader: LoaderProcess) -> None:
    verdict = loader.ask(of(release), timeout_s=LONG_S)

    assert (verdict.spacy, verdict.thinc) == (spacy.about.__version__, thinc.__version__)
    assert verdict.python == ".".join(map(str, sys.version_info[:3]))
    assert verdict.verifier["spacy"] == verdict.spacy
    assert verdict.threshold == pytest.approx(0.3)
    assert 10 << 20 < verdict.peak_rss_bytes < 1 << 30
    assert 0 < verdict.load_s < verdict.total_s


def test_all_that_is_asked_is_answered(release: Path, tmp_path: Path, loader: LoaderProcess) -> None:
    gold = tmp_path / "gold.spacy"
    nlp = spacy.load(release)
    spacy.tokens.DocBin(docs=[nlp("Acme Corp opened an office in Berlin.")], store_user_data=True).to_disk(
        gold
    )
    live = subject_of(build("default", tmp_path / "live", generation=1))
    probes = (Probe("Acme Corp sells doors.", None, (), 1),)

    verdict = loader.ask(
        Examination(subject=subject_of(release), live=live, probes=probes, gold=gold, latency=True),
        timeout_s=LONG_S,
    )

    assert (verdict.ok, verdict.live_reason) == (True, "")
    assert verdict.probed is not None
    assert verdict.probed.total == 1
    assert verdict.evaluated is not None
    assert verdict.evaluated.scores["spans_sc_f"] == 1.0
    assert verdict.live_evaluated is not None
    assert verdict.live_evaluated.documents == 1
    assert verdict.timed is not None
    assert verdict.timed.snapshot_ms > 0
    assert verdict.timed.live_ms is not None

    # Of a live release that is broken nothing is known, and nothing is held against the new one.
    (live.path / "spancat/model").unlink()
    verdict = loader.ask(
        Examination(subject=subject_of(release), live=live, gold=gold, latency=True), timeout_s=LONG_S
    )
    assert verdict.ok
    assert verdict.live_evaluated is None
    assert verdict.live_reason.startswith("the live release can't load: FileNotFoundError")
    assert verdict.timed is not None
    assert verdict.timed.live_ms is None

    # Nor does a file that can't be read say anything about the new one.
    verdict = loader.ask(
        Examination(subject=subject_of(release), gold=tmp_path / "none.spacy"), timeout_s=LONG_S
    )
    assert (verdict.ok, verdict.fault) == (False, "verifier")
    assert "none.spacy" in verdict.reason


def test_what_is_damaged_or_not_what_the_manifest_says(
    release: Path, tmp_path: Path, loader: LoaderProcess
) -> None:
    def reason(examination: Examination) -> str:
        verdict = loader.ask(examination, timeout_s=LONG_S)
        assert (verdict.ok, verdict.fault) == (False, "release")
        assert "\n" not in verdict.reason
        return verdict.reason

    whole = of(release)
    assert "is then not the one in model.bin" in reason(of(release, model_sha256="0" * 64))
    assert "labels of 'spancat' are" in reason(of(release, labels=LABELS[::-1]))
    (release / "tok2vec/model").unlink()
    assert reason(whole).startswith("spacy.load fails: FileNotFoundError")
    (release / "spancat/model").write_bytes(b"\x80")
    assert reason(whole).startswith("spacy.load fails: ")
    (release / "config.cfg").unlink()
    assert reason(whole).startswith("spacy.load fails: OSError: [E053]")
    # It goes on as if nothing had been.
    assert loader.ask(of(build("own", tmp_path / "good")), timeout_s=LONG_S).ok


def test_checkpoint_of_another_spacy(release: Path, loader: LoaderProcess) -> None:
    def ask(wanted: str, *, damaged: bool = False) -> LoadVerdict:
        meta = json.loads((release / "meta.json").read_text())
        (release / "meta.json").write_text(json.dumps(meta | {"spacy_version": wanted}))
        examination = of(release)
        if damaged:
            (release / "spancat/model").unlink()
        return loader.ask(examination, timeout_s=LONG_S)

    version = spacy.about.__version__
    newer = ask(">=9.1.0,<9.2.0")
    assert (newer.ok, newer.fault) == (False, "release")
    assert (
        f"the checkpoint needs spaCy >=9.1.0,<9.2.0 (its meta.json says so), and {sys.executable}"
        in newer.reason
    )
    assert newer.reason.endswith(f"has {version}")

    older = ask(">=3.2.2,<3.3.0")
    assert older.ok
    assert "[W095]" in older.warnings[0]

    broken = ask(">=3.2.2,<3.3.0", damaged=True)
    assert broken.reason.startswith("spacy.load fails: FileNotFoundError")
    assert "it was made for spaCy >=3.2.2,<3.3.0" in broken.reason


def test_relative_path_through_a_link(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: LoaderProcess
) -> None:
    (tmp_path / "current").symlink_to("release")
    examination = of(release)
    monkeypatch.chdir(tmp_path)
    relative = Subject(
        path=Path("current"), component="spancat", model_sha256=examination.subject.model_sha256
    )
    assert loader.ask(Examination(subject=relative), timeout_s=LONG_S).ok


@pytest.mark.parametrize(
    ("code", "fault", "reason"),
    [
        # Processes: at once, through a shell, by way of a pool; all in sessions of their own.
        (
            "import os\nif os.fork() == 0: os.setsid()",
            "limit",
            "Operation not permitted (<module> at <string>:2)",
        ),
        (
            "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)",
            "limit",
            "nothing that is loaded may write files, start processes or use the network",
        ),
        ("import os; os.execv('/bin/true', ['true'])", "limit", "Operation not permitted"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "limit", "use the network"),
        ("open('/dev/shm/spancat-daemon-test', 'w')", "limit", "Permission denied"),
        ("x = bytearray(3 << 30)", "limit", "spacy.load fails: it needs more memory than it may have"),
        (
            "import os; os.kill(os.getpid(), 11)",
            "release",
            "the loader was ended by SIGSEGV before its verdict",
        ),
        ("import os; os._exit(0)", "release", "the loader ended with status 0 before its verdict"),
        ("raise SystemExit('enough')", "release", "spacy.load fails: SystemExit: enough"),
        ("raise KeyboardInterrupt", "release", "spacy.load fails: KeyboardInterrupt"),
        (
            "import os\nfor fd in range(3, 9):\n  try: os.write(fd, b'{}\\n')\n  except OSError: pass",
            "release",
            "not a verdict",
        ),
    ],
)
def test_release_that_misbehaves_is_rejected(
    code: str, fault: str, reason: str, tmp_path: Path, knows_misbehaviour: str
) -> None:
    path = misbehave(build("own", tmp_path / "release"), code)

    verdict = examine(of(path), python=knows_misbehaviour, memory_bytes=2 << 30)

    assert (verdict.ok, verdict.fault) == (False, fault), verdict
    assert reason in verdict.reason


def test_release_that_copes_with_being_refused(tmp_path: Path, knows_misbehaviour: str) -> None:
    code = """import os, sys, threading
print('{"ok": true}', flush=True)
assert sys.stdin.read() == "" and os.read(0, 10) == b""
with open(os.devnull, "w") as nothing: nothing.write("x")
thread = threading.Thread(target=print)
thread.start()
thread.join()
assert os.system("true") != 0
"""
    path = misbehave(build("own", tmp_path / "release"), code)

    verdict = examine(of(path), python=knows_misbehaviour)

    assert (verdict.ok, verdict.reason) == (True, "")
    assert verdict.warnings == ("it tries to start a process (os.system)",)


def test_spinning_release_is_killed_at_its_time(tmp_path: Path, knows_misbehaviour: str) -> None:
    # In C and without letting go of the interpreter, so that no thread of its own could end it.
    path = misbehave(build("own", tmp_path / "release"), "import re; re.match('(a+)+$', 'a' * 60 + 'b')")
    with LoaderProcess(python=knows_misbehaviour) as spinning:
        assert spinning.ask(of(build("own", tmp_path / "good")), timeout_s=LONG_S).ok

        verdict = spinning.ask(of(path), timeout_s=0.5)

        assert (verdict.ok, verdict.fault) == (False, "limit")
        assert verdict.reason.startswith("no answer within 0.5 s")
        assert not spinning.alive


def test_memory_is_watched_where_the_kernel_does_not(
    tmp_path: Path, fake_python: Callable[[str], str]
) -> None:
    python = fake_python("x = b'x' * (64 << 20); time.sleep(1000)")
    verdict = examine(ANY, python=python, memory_bytes=32 << 20)
    assert (verdict.fault, verdict.reason) == ("limit", "it needs more memory than it may have")


def test_threads_without_number(fake_python: Callable[[str], str]) -> None:
    python = fake_python("""
        import threading
        threading.stack_size(1 << 15)
        while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    """)
    verdict = examine(ANY, python=python)
    assert (verdict.fault, verdict.reason) == ("limit", "it has more than 1000 threads")


@pytest.mark.parametrize(
    ("code", "fault", "reason"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "limit",
            "the loader was ended by SIGKILL before its verdict; perhaps memory ran out",
        ),
        (
            r"sys.stderr.write('one\n\ntwo\x1b[31m\nthree\nfour\n'); sys.exit(7)",
            "release",
            "the loader ended with status 7 before its verdict; it last said: two [31m / three / four",
        ),
        ("print('hello')", "release", "the loader answered with something that is not a verdict"),
        ("print('{}')", "release", "the loader answered with something that is not a verdict"),
        (
            'print(\'{"ok": true, "fault": "", "held_bytes": 1e999}\')',
            "release",
            "the loader answered with something that is not a verdict",
        ),
        ("print('[' * 100000)", "release", "the loader answered with something that is not a verdict"),
        ("os.write(1, b'\\xff\\n')", "release", "the loader answered with something that is not a verdict"),
        (
            "while True: sys.stdout.write('x' * 1_000_000)",
            "release",
            "the loader answered with something that is not a verdict",
        ),
    ],
)
def test_child_that_fails_is_a_verdict(
    code: str, fault: str, reason: str, fake_python: Callable[[str], str]
) -> None:
    verdict = examine(ANY, python=fake_python(code))
    assert (verdict.ok, verdict.fault, verdict.reason) == (False, fault, reason)


@pytest.mark.parametrize("code", ["sys.exit('no luck')", "print('hello')", "print('{}')", "time.sleep(1000)"])
def test_what_never_becomes_a_loader_says_nothing_of_the_release(
    code: str, fake_python: Callable[..., str]
) -> None:
    python = fake_python(code, ready=False)
    verdict = examine(ANY, python=python, timeout_s=0.5)
    assert (verdict.ok, verdict.fault) == (False, "verifier")
    assert verdict.reason.startswith(python)


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(1000)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdin.read()",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "while True: sys.stderr.write('x' * 100_000)",
    ],
)
def test_child_that_hangs_is_killed(code: str, fake_python: Callable[[str], str]) -> None:
    verdict = examine(ANY, python=fake_python(code), timeout_s=0.5)

    assert (verdict.ok, verdict.fault) == (False, "limit")
    assert verdict.reason.startswith("no answer within 0.5 s")
    assert len(verdict.reason) < 20_000


def test_loader_that_ended_says_so(fake_python: Callable[[str], str]) -> None:
    with LoaderProcess(python=fake_python("sys.exit(1)")) as ended:
        assert ended.ask(ANY, timeout_s=LONG_S).reason == "the loader ended with status 1 before its verdict"
        assert not ended.alive
        assert ended.ask(ANY, timeout_s=LONG_S).reason == "the loader has ended"


def test_answer_that_is_no_longer_wanted(fake_python: Callable[[str], str]) -> None:
    looked = threading.Event()

    def abandoned() -> bool:
        looked.set()
        return True

    with LoaderProcess(python=fake_python("time.sleep(1000)")) as hanging:
        with pytest.raises(Abandoned):
            hanging.ask(ANY, timeout_s=LONG_S, abandoned=abandoned)
        assert looked.is_set()
        assert not hanging.alive
        assert not is_running(Path("/proc") / str(hanging._process.pid))


def test_request_larger_than_a_pipe(
    release: Path, loader: LoaderProcess, fake_python: Callable[[str], str]
) -> None:
    large = of(release, labels=("é" * 100,) * 10_000)

    assert "it loads, but labels of 'spancat' are" in loader.ask(large, timeout_s=LONG_S).reason
    never_reads = fake_python("time.sleep(1000)")
    assert examine(large, python=never_reads, timeout_s=0.5).reason == "no answer within 0.5 s"


def test_child_that_closes_its_answers_and_stays(
    fake_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spancat_daemon.verify.child._EXIT_GRACE_S", 0.2)
    python = fake_python("os.close(1); time.sleep(1000)")
    assert examine(ANY, python=python).reason == "the loader closed its answers without giving one"


@pytest.mark.parametrize("leave", ["", "os.setsid(); os.fork() and os._exit(0)"])
def test_processes_go_too(leave: str, tmp_path: Path, fake_python: Callable[[str], str]) -> None:
    # They hold the pipes open, don't mind SIGHUP, and the second is in a session of its own and an orphan.
    python = fake_python(f"""
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            {leave}
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            os.rename({str(tmp_path / "pid")!r}, {str(tmp_path / "started")!r})
            time.sleep(1000)
        while not os.path.exists({str(tmp_path / "started")!r}): time.sleep(0.01)
        print("{{}}", flush=True)
        time.sleep(1000)
    """)

    examine(ANY, python=python)

    process = Path("/proc") / (tmp_path / "started").read_text()
    deadline = time.monotonic() + LONG_S
    while is_running(process):  # it was killed, and may take a moment to be gone
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process: Path) -> bool:
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_interpreter_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError) as error:
        LoaderProcess(python="/nowhere/python")
    verdict = cannot_run("/nowhere/python", error.value, 0.0)
    assert (verdict.fault, verdict.reason) == (
        "verifier",
        "can't run /nowhere/python: No such file or directory",
    )


def test_interpreter_without_spacy(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.symlink_to(Path(sys.executable).resolve())
    (tmp_path / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")

    verdict = examine(ANY, python=str(python))

    assert verdict.fault == "verifier"
    assert f"{python} can't import spaCy: ModuleNotFoundError" in verdict.reason


def test_memory_too_small_for_spacy_itself(release: Path) -> None:
    verdict = examine(of(release), memory_bytes=100 << 20)
    assert (verdict.ok, verdict.fault) == (False, "verifier")
    assert verdict.reason


def test_child_leaves_when_its_requests_end(release: Path) -> None:
    with LoaderProcess() as idle:
        assert idle.ask(of(release), timeout_s=LONG_S).ok
        assert idle._process.stdin is not None
        idle._process.stdin.close()
        assert idle._process.wait(LONG_S) == 0


def test_busy_child_dies_with_its_parent(tmp_path: Path, knows_misbehaviour: str) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    # Opened for reading, which it may; then it never comes back to Python.
    code = f"import re; open({str(started)!r}).read(); re.match('(a+)+$', 'a' * 60 + 'b')"
    path = misbehave(build("own", tmp_path / "release"), code)
    script = (
        "import sys; from pathlib import Path; from spancat_daemon.verify.child import LoaderProcess;"
        "from tests.integration.verify.test_child import of;"
        "loader = LoaderProcess(python=sys.argv[2]); print(loader._process.pid, flush=True);"
        "loader.ask(of(Path(sys.argv[1])), timeout_s=1000)"
    )
    command = [sys.executable, "-c", script, str(path), knows_misbehaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as parent:
        try:
            assert parent.stdout is not None
            child = os.pidfd_open(int(parent.stdout.readline()))
            started.write_bytes(b"")
        finally:
            parent.kill()
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(child, selectors.EVENT_READ)
            assert selector.select(LONG_S)
    finally:
        os.close(child)


def test_secrets_of_the_environment_stay_here(
    fake_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")

    verdict = examine(ANY, python=fake_python("sys.exit(' '.join(sorted(os.environ)))"))

    assert "SECRET_TOKEN" not in verdict.reason
    assert "PATH" in verdict.reason


def test_nothing_is_left_open(fake_python: Callable[[str], str]) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # pathlib's own iteration opens one more

    python = fake_python("sys.exit(3)")
    before = descriptors()
    for _ in range(3):
        examine(ANY, python=python)
        with pytest.raises(FileNotFoundError):
            examine(ANY, python="/nowhere/python")
    assert descriptors() == before
