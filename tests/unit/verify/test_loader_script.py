"""What runs in the loader must run where nothing of this project is, on Pythons older than ours."""

from __future__ import annotations

import ast
import gc
import json
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

import pytest
import spacy

from spancat_daemon.verify.child import INSIDE
from spancat_daemon.verify.inside import answers
from spancat_daemon.verify.inside.compatibility import is_for_a_newer, is_within, wanted_range
from spancat_daemon.verify.inside.loading import Unfit, Unusable
from spancat_daemon.verify.inside.memory import Memory

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED = {"spacy", "thinc", "numpy", "packaging"}  # the last is spaCy's own
FILES = sorted(INSIDE.glob("*.py"))
FORBIDDEN = "; nothing that is loaded may write files, start processes or use the network"
REQUEST = json.dumps({"subject": {"path": "/a", "component": "spancat", "model_sha256": ""}})


@pytest.mark.parametrize("version", [(3, 8), (3, 9), (3, 10)])
def test_syntax_is_that_of_old_pythons(version: tuple[int, int]) -> None:
    for file in FILES:
        ast.parse(file.read_text(encoding="utf-8"), filename=file.name, feature_version=version)


def test_imports_are_the_standard_librarys_and_spacys() -> None:
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, file
                found |= {node.module.partition(".")[0]} if node.module and not node.level else set()

    assert found - ALLOWED <= sys.stdlib_module_names
    assert "spacy" in found


@pytest.mark.parametrize("file", ["__init__", "__main__", "confinement", "memory", "words"])
def test_nothing_but_the_standard_library_comes_before_the_limits(file: str) -> None:
    for node in ast.parse((INSIDE / f"{file}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names


@pytest.fixture
def examiner(monkeypatch: pytest.MonkeyPatch) -> answers.Examiner:
    # Neither can be taken back, and this process is not the loader's.
    monkeypatch.setattr(answers, "note_attempts", lambda _: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    return answers.Examiner(["memory"], Memory())


class Broken:
    """A spaCy that does what the real one does to damaged bytes, and more."""

    about = spacy.about

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def load(self, path: str) -> NoReturn:
        gc.disable()
        for _ in range(2):
            warnings.warn(f"[W095]\n{path}", stacklevel=1)
        raise self.error


def _deep() -> Exception:
    error = ValueError("registered function")
    error.__cause__ = PermissionError(1, "Operation not permitted")
    error.__context__ = error
    return error


@pytest.mark.parametrize(
    ("error", "fault", "reason"),
    [
        (
            ValueError("Unpack failed:\nincomplete"),
            "release",
            "spacy.load fails: ValueError: Unpack failed: incomplete",
        ),
        (SystemExit(3), "release", "spacy.load fails: SystemExit: 3"),
        (KeyboardInterrupt(), "release", "spacy.load fails: KeyboardInterrupt"),
        (RecursionError("deep"), "release", "spacy.load fails: RecursionError: deep"),
        (Unfit("it loads, but"), "release", "it loads, but"),
        (Unusable("no gold"), "verifier", "no gold"),
        (MemoryError(), "limit", "spacy.load fails: it needs more memory than it may have"),
        (
            _deep(),
            "limit",
            "spacy.load fails: PermissionError: [Errno 1] Operation not permitted" + FORBIDDEN,
        ),
    ],
)
def test_failing_load_leaves_the_loader_as_it_was(
    error: BaseException,
    fault: str,
    reason: str,
    examiner: answers.Examiner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "spacy", Broken(error))

    answer = examiner.answer_to(REQUEST)

    assert (answer["ok"], answer["fault"], answer["reason"]) == (False, fault, reason)
    assert answer["warnings"] == ["[W095] /a"]
    assert answer["confined"] == ["memory"]
    assert gc.isenabled()


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "null", "{}", '{"subject": {}}', '{"subject": 3}', "[" * 99999]
)
def test_line_that_is_no_request_is_answered(line: str, examiner: answers.Examiner) -> None:
    answer = examiner.answer_to(line)

    assert (answer["ok"], answer["fault"]) == (False, "verifier")
    assert answer["reason"].startswith("this is not a request: ")
    assert set(answer) == set(examiner.answer_to(REQUEST))


def test_peak_is_that_of_one_examination(examiner: answers.Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    used = [64 << 20, 1]

    class Hungry(Broken):
        def load(self, path: str) -> NoReturn:
            bytearray(b"x") * used.pop(0)
            super().load(path)

    monkeypatch.setattr(answers, "spacy", Hungry(ValueError()))
    first, second = (examiner.answer_to(REQUEST) for _ in range(2))
    assert first["peak_rss_bytes"] - first["held_bytes"] > 48 << 20
    assert second["peak_rss_bytes"] - second["held_bytes"] < 16 << 20


@pytest.mark.parametrize(
    ("version", "wanted", "newer", "within"),
    [
        ("3.8.18", ">=3.8.18,<3.9.0", False, True),
        ("3.8.7", ">=3.8.18,<3.9.0", False, False),  # spaCy promises that patches go together
        ("3.2.2", ">=3.8.18,<3.9.0", True, False),
        ("3.8.18", ">=3.2.2,<3.3.0", False, False),
        ("3.8.18", ">=4.0.0.dev1,<4.1.0", True, False),
        ("3.8.18", "==3.9.*", True, False),
        ("3.8.18", "~=3.8", False, True),
        ("3.8.18", "3.9.0", True, False),
        ("3.8.18", "<3.9", False, True),
        ("3.8.18", "", False, True),
        ("3.8.18", "newest", False, True),
        ("unknown", ">=9.0", False, True),
    ],
)
def test_versions(version: str, wanted: str, newer: bool, within: bool) -> None:
    assert (is_for_a_newer(version, wanted), is_within(version, wanted)) == (newer, within)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"spacy_version": 3}', '{"a": "b"}', "[" * 99999])
def test_meta_that_names_no_range(text: str, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(text)
    assert wanted_range(str(tmp_path)) == ""
    assert wanted_range(str(tmp_path / "none")) == ""
