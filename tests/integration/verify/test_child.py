"""Loading releases in a child: real ones with real spaCy, and children that misbehave in every way."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import spacy
import thinc

from spancat_daemon.verify.child import LoaderProcess, LoadVerdict, load_release
from tests.pipelines import VARIANTS, build

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = ("ORG", "PLACE", "GÜTER")


def model_sha256(release: Path, component: str = "spancat") -> str:
    return hashlib.sha256((release / component / "model").read_bytes()).hexdigest()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build("default", tmp_path / "release")


@pytest.fixture
def fake_python(tmp_path: Path) -> Callable[[str], str]:
    """An interpreter that, whatever it is asked to run, runs the given code instead."""

    def make(code: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport os, sys, signal, time\n{textwrap.dedent(code)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_loads(variant: str, tmp_path: Path) -> None:
    component = "products" if variant == "renamed" else "spancat"
    path = build(variant, tmp_path / "release")

    verdict = load_release(
        path, component, model_sha256(path, component), LABELS, "xx" if variant == "custom_key" else "sc"
    )

    assert (verdict.ok, verdict.reason, verdict.warnings) == (True, "", ())
    assert verdict.labels == LABELS
    assert verdict.model_sha256 == model_sha256(path, component)


def test_verdict_names_what_loaded_it(release: Path) -> None:
    verdict = load_release(release, "spancat", model_sha256(release))

    assert verdict.ok
    assert (verdict.spacy, verdict.thinc) == (spacy.about.__version__, thinc.__version__)
    assert verdict.python == ".".join(map(str, sys.version_info[:3]))
    assert verdict.verifier["spacy"] == verdict.spacy
    assert verdict.spans_key == "sc"
    assert verdict.threshold == pytest.approx(0.3)
    assert 10 << 20 < verdict.peak_rss_bytes < 1 << 30
    assert 0 < verdict.load_s < verdict.total_s


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "spancat/model").write_bytes(b"\x80"), "spacy.load fails: "),
        (lambda path: (path / "config.cfg").unlink(), "spacy.load fails: OSError: [E053]"),
        (lambda path: (path / "tok2vec/model").unlink(), "spacy.load fails: FileNotFoundError"),
    ],
)
def test_damaged_release(damage: Callable[[Path], object], reason: str, release: Path) -> None:
    expected = model_sha256(release)
    damage(release)

    verdict = load_release(release, "spancat", expected)

    assert not verdict.ok
    assert verdict.reason.startswith(reason)
    assert "\n" not in verdict.reason


def test_what_loads_but_is_not_what_the_manifest_says(release: Path) -> None:
    digest = model_sha256(release)

    def reason(component: str = "spancat", sha256: str = digest, **more: object) -> str:
        verdict = load_release(release, component, sha256, **more)  # type: ignore[arg-type]  # wrong on purpose
        assert not verdict.ok
        return verdict.reason

    assert "is then not the one in model.bin" in reason(sha256="0" * 64)
    assert "has no component 'ner', only: tok2vec, spancat" in reason(component="ner")
    assert "labels of 'spancat' are" in reason(labels=LABELS[::-1])
    assert "spans_key of 'spancat' are 'sc', not 'xx'" in reason(spans_key="xx")


def test_relative_path_through_a_link(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path)
    assert load_release(Path("current"), "spancat", model_sha256(release)).ok


def test_warm_loader_answers_again_and_again_also_after_failures(release: Path, tmp_path: Path) -> None:
    digest = model_sha256(release)
    good = {"path": str(release), "component": "spancat", "model_sha256": digest}
    broken = build("own", tmp_path / "broken")
    (broken / "spancat/model").write_bytes((broken / "spancat/model").read_bytes()[:-1])

    with LoaderProcess() as loader:
        verdicts = [
            loader.ask(request, timeout_s=60) for request in (good, good | {"path": str(broken)}, {}, good)
        ]

        assert [verdict.ok for verdict in verdicts] == [True, False, False, True]
        assert loader.alive
        assert "KeyError" in verdicts[2].reason


def test_printing_code_does_not_get_between_the_answers(
    release: Path, tmp_path: Path, fake_python: Callable[[str], str]
) -> None:
    # A spacy of its own, which prints wherever it can and reads what isn't its own.
    (tmp_path / "site/spacy").mkdir(parents=True)
    (tmp_path / "site/spacy/__init__.py").write_text(
        textwrap.dedent("""
        import os, sys, subprocess
        print('{"ok": true}', flush=True)
        os.write(1, b'{"ok": true}\\n')
        subprocess.run(["echo", '{"ok": true}'])
        assert sys.stdin.read() == "" and os.read(0, 10) == b""
        raise ImportError("no luck")
        """)
    )
    python = fake_python(f"""
        code = open(sys.argv[-1]).read()
        sys.path.insert(0, {str(tmp_path / "site")!r})
        sys.argv = sys.argv[-1:]
        exec(compile(code, "loader.py", "exec"), {{"__name__": "__main__"}})
    """)

    verdict = load_release(release, "spancat", "0" * 64, python=python, timeout_s=30)

    assert not verdict.ok
    assert "can't import spaCy: ImportError: no luck" in verdict.reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the loader was ended by SIGSEGV before its verdict"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "the loader was ended by SIGKILL before its verdict, perhaps for lack of memory",
        ),
        (
            r"sys.stderr.write('one\n\ntwo\x1b[31m\nthree\nfour\n'); sys.exit(7)",
            "the loader ended with status 7 before its verdict; it last said: two [31m / three / four",
        ),
        ("sys.exit(0)", "the loader ended with status 0 before its verdict"),
        ("print('hello')", "the loader answered with something that is not a verdict"),
        ("print('{}')", "the loader answered with something that is not a verdict"),
        ("print('[' * 100000)", "the loader answered with something that is not a verdict"),
        ("os.write(1, b'\\xff\\n')", "the loader answered with something that is not a verdict"),
    ],
)
def test_child_that_fails_is_a_verdict(
    code: str, reason: str, release: Path, fake_python: Callable[[str], str]
) -> None:
    verdict = load_release(release, "spancat", "0" * 64, python=fake_python(code), timeout_s=30)
    assert (verdict.ok, verdict.reason) == (False, reason)


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(1000)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdin.read()",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "while True: sys.stderr.write('x' * 100_000)",
    ],
)
def test_child_that_hangs_is_killed(code: str, release: Path, fake_python: Callable[[str], str]) -> None:
    verdict = load_release(release, "spancat", "0" * 64, python=fake_python(code), timeout_s=0.5)

    assert not verdict.ok
    assert verdict.reason.startswith("did not load within 0.5 s")
    assert len(verdict.reason) < 20_000


def test_loader_that_ended_says_so(release: Path, fake_python: Callable[[str], str]) -> None:
    with LoaderProcess(python=fake_python("sys.exit(1)")) as loader:
        request = {"path": str(release), "component": "spancat", "model_sha256": "0" * 64}
        assert loader.ask(request, timeout_s=30).reason == "the loader ended with status 1 before its verdict"
        assert not loader.alive
        assert loader.ask(request, timeout_s=30).reason == "the loader has ended"


def test_request_larger_than_a_pipe_to_a_child_that_never_reads(
    release: Path, fake_python: Callable[[str], str]
) -> None:
    python = fake_python("time.sleep(1000)")
    labels = ["x" * 100] * 10_000

    verdict = load_release(release, "spancat", "0" * 64, labels, python=python, timeout_s=0.5)

    assert verdict.reason == "did not load within 0.5 s"


def test_request_larger_than_a_pipe_arrives_whole(release: Path) -> None:
    labels = ["é" * 100] * 10_000
    verdict = load_release(release, "spancat", model_sha256(release), labels)
    assert "it loads, but labels of 'spancat' are" in verdict.reason


def test_flood_instead_of_an_answer_is_cut_off(release: Path, fake_python: Callable[[str], str]) -> None:
    python = fake_python("while True: sys.stdout.write('x' * 1_000_000)")

    verdict = load_release(release, "spancat", "0" * 64, python=python, timeout_s=60)

    assert verdict.reason == "the loader answered with something that is not a verdict"


def test_child_that_closes_its_answers_and_stays(
    release: Path, fake_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spancat_daemon.verify.child._EXIT_GRACE_S", 0.2)
    python = fake_python("os.close(1); time.sleep(1000)")

    verdict = load_release(release, "spancat", "0" * 64, python=python, timeout_s=60)

    assert verdict.reason == "the loader closed its answers without giving one"


def test_grandchildren_go_too(release: Path, tmp_path: Path, fake_python: Callable[[str], str]) -> None:
    # They hold the pipes open and don't mind SIGHUP: only the group's SIGKILL ends them.
    python = fake_python(f"""
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            os.rename({str(tmp_path / "pid")!r}, {str(tmp_path / "grandchild")!r})
            time.sleep(1000)
        while not os.path.exists({str(tmp_path / "grandchild")!r}): time.sleep(0.01)
        print("{{}}", flush=True)
        time.sleep(1000)
    """)

    load_release(release, "spancat", "0" * 64, python=python, timeout_s=30)

    process = Path("/proc") / (tmp_path / "grandchild").read_text()
    deadline = time.monotonic() + 10
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process)


def is_running(process: Path) -> bool:
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_interpreter_that_is_not_there(release: Path) -> None:
    verdict = load_release(release, "spancat", "0" * 64, python="/nowhere/python")
    assert verdict.reason == "can't run /nowhere/python: No such file or directory"


def test_interpreter_without_spacy(release: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.symlink_to(Path(sys.executable).resolve())
    (tmp_path / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")

    verdict = load_release(release, "spancat", "0" * 64, python=str(python))

    assert f"{python} can't import spaCy: ModuleNotFoundError" in verdict.reason


def test_memory_limit_holds(release: Path) -> None:
    verdict = load_release(release, "spancat", model_sha256(release), memory_bytes=150 << 20)

    assert not verdict.ok
    assert verdict.reason


def test_child_leaves_when_its_parent_does(release: Path) -> None:
    loader = LoaderProcess()
    try:
        process = Path("/proc") / str(loader._process.pid)
        request = {"path": str(release), "component": "spancat", "model_sha256": model_sha256(release)}
        assert loader.ask(request, timeout_s=60).ok
        assert loader._process.stdin is not None
        loader._process.stdin.close()  # what the kernel does to it when the parent dies
        deadline = time.monotonic() + 10
        while is_running(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(process)
    finally:
        loader.close()


def test_secrets_of_the_environment_stay_here(
    release: Path, fake_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    python = fake_python("sys.exit(' '.join(sorted(os.environ)))")

    verdict = load_release(release, "spancat", "0" * 64, python=python)

    assert "SECRET_TOKEN" not in verdict.reason
    assert "PATH" in verdict.reason


def test_nothing_is_left_open(release: Path, fake_python: Callable[[str], str]) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # pathlib's own iteration opens one more

    python = fake_python("sys.exit(3)")
    before = descriptors()
    for _ in range(3):
        load_release(release, "spancat", "0" * 64, python=python)
        load_release(release, "spancat", "0" * 64, python="/nowhere/python")
    assert descriptors() == before


def test_several_at_once(release: Path, tmp_path: Path) -> None:
    other = build("default", tmp_path / "other", generation=1)
    verdicts: dict[Path, LoadVerdict] = {}

    def load(path: Path) -> None:
        verdicts[path] = load_release(path, "spancat", model_sha256(path), LABELS)

    threads = [threading.Thread(target=load, args=(path,)) for path in (release, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [verdict.ok for verdict in verdicts.values()] == [True, True]
    assert verdicts[release].model_sha256 != verdicts[other].model_sha256
