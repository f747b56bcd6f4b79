"""The child's script must run where nothing of this project is, on Pythons older than ours."""

from __future__ import annotations

import ast
import gc
import sys
import warnings
from typing import NoReturn

import pytest

from spancat_daemon.verify import loader
from spancat_daemon.verify.child import LOADER

ALLOWED = {"spacy", "thinc", "numpy"}


@pytest.mark.parametrize("version", [(3, 8), (3, 9), (3, 10)])
def test_syntax_is_that_of_old_pythons(version: tuple[int, int]) -> None:
    ast.parse(LOADER.read_text(encoding="utf-8"), feature_version=version)


def test_imports_are_the_standard_librarys_and_spacys() -> None:
    tree = ast.parse(LOADER.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    top = {name.split(".")[0] for name in imported}

    assert top - ALLOWED <= sys.stdlib_module_names
    assert "spacy" in top


class Broken:
    """A spaCy that does what the real one does to damaged bytes, and more."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def load(self, path: str) -> NoReturn:
        gc.disable()
        for _ in range(2):
            warnings.warn(f"[W095]\n{path}", stacklevel=1)
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Unpack failed:\nincomplete"), "spacy.load fails: ValueError: Unpack failed: incomplete"),
        (SystemExit(3), "spacy.load fails: SystemExit: 3"),
        (RecursionError("deep"), "spacy.load fails: RecursionError: deep"),
        (MemoryError(), "loading needs more memory than it may have"),
    ],
)
def test_failing_load_leaves_the_loader_as_it_was(error: BaseException, reason: str) -> None:
    answer = loader.answer_to('{"path": "/a"}', Broken(error), {"spacy": "3.8"}, "")

    assert (answer["ok"], answer["reason"]) == (False, reason)
    assert answer["warnings"] == ["[W095] /a"]
    assert answer["spacy"] == "3.8"
    assert gc.isenabled()


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "{}"])
def test_line_that_is_no_request_is_answered(line: str) -> None:
    answer = loader.answer_to(line, Broken(ValueError()), {}, "")

    assert not answer["ok"]
    assert answer["reason"]
    assert set(answer) == set(loader.verdict())
