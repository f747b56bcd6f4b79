"""The files that a daemon.toml names."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from spacy import blank
from spacy.tokens import DocBin

from spancat_daemon.config import references
from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load, load_located
from spancat_daemon.config.problems import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

RULE = '[[watch]]\nname = "products"\nsource = "runs/best"\ndeploy = "models"\n'
PROBE = '{"text": "I use Foo", "spans": [[6, 9, "PRODUCT"]]}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a good one of each kind of file."""
    (tmp_path / "probes.jsonl").write_text(PROBE)
    DocBin(docs=[blank("en")("I use Foo")]).to_disk(tmp_path / "gold.spacy")
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "python").symlink_to(sys.executable)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "daemon.toml"
    path.write_text(RULE + text)
    return path


def problems(path: Path) -> list[str]:
    """Each as ``file:line:column: message``; without references there must be none."""
    load(path, {})
    with pytest.raises(ConfigurationError) as caught:
        load(path, {}, references=True)
    return [f"{p.file}:{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


GOOD = """\
[watch.verify]
python = "./python"
probes = "probes.jsonl"
gold = "gold.spacy"
[[watch.after]]
webhook = { url = "http://x/", secret_file = "secret" }
"""


def test_files_that_are_what_they_are_said_to_be(folder: Path) -> None:
    configuration = load(write(folder, GOOD), {}, references=True)
    assert configuration.watch[0].verify.python == folder / "python"
    DocBin().to_disk(folder / "gold.spacy")  # no documents, but a DocBin
    load(write(folder, GOOD.replace("./python", "env")), {}, references=True)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("python", "./none", "6:10: verify.python: {}/none can't be run: No such file or directory"),
        ("python", "./secret", "6:10: verify.python: {}/secret can't be run: it is not an executable file"),
        ("python", "/", "6:10: verify.python: / can't be run: it is not an executable file"),
        ("python", "python-of-nobody", "6:10: verify.python: there is no 'python-of-nobody' on $PATH"),
        ("probes", "none", "7:10: verify.probes: {}/none can't be read: No such file or directory"),
        ("probes", ".", "7:10: verify.probes: {} is a folder"),
        ("probes", "pipe", "7:10: verify.probes: {}/pipe is not a regular file"),
        ("gold", "none", "8:8: verify.gold: {}/none can't be read: No such file or directory"),
        ("gold", "pipe", "8:8: verify.gold: {}/pipe is not a regular file"),
        ("gold", "empty", "8:8: verify.gold: {}/empty is not a .spacy file of documents; DocBin.to_disk"),
        ("gold", "probes.jsonl", "8:8: verify.gold: {}/probes.jsonl is not a .spacy file of documents"),
        ("secret_file", "none", "10:46: after.webhook.secret_file: {}/none can't be read: No such file"),
        ("secret_file", "empty", "10:46: after.webhook.secret_file: {}/empty is empty"),
        ("secret_file", "large", "10:46: after.webhook.secret_file: {}/large is longer than a secret can be"),
    ],
)
def test_a_file_that_is_not_is_told_at_its_key(folder: Path, key: str, value: str, expected: str) -> None:
    (folder / "empty").touch()
    (folder / "large").write_text("x" * 5000)
    os.mkfifo(folder / "pipe")
    before, _, after = GOOD.partition(f'{key} = "')
    rest = after[after.index('"') + 1 :]
    (problem,) = problems(write(folder, f'{before}{key} = "{value}"{rest}'))
    assert problem.startswith(f"{folder}/daemon.toml:{expected.format(folder)}")


def test_an_interpreter_that_only_makes_what_is_released(folder: Path) -> None:
    text = 'verify = { level = "structure", python = "./none" }\n'
    load(write(folder, text), {}, references=True)
    (problem,) = problems(write(folder, 'contents = "standalone"\n' + text))
    assert "verify.python: " in problem


def test_what_is_wrong_in_a_probes_file_has_its_place_there(folder: Path) -> None:
    probes = folder / "probes.jsonl"
    probes.write_text(PROBE + "{\n" + PROBE.replace("9", "900"))
    path = write(folder, GOOD.replace("gold.spacy", "none"))
    first, second, third = problems(path)
    assert first.startswith(f"{path}:8:8: verify.gold: ")
    assert second.startswith(f"{probes}:2:")
    assert third.startswith(f"{probes}:3:")
    with pytest.raises(ConfigurationError) as caught:
        load(path, {}, references=True)
    assert '\n    {"text": "I use Foo", "spans": [[6, 900, "PRODUCT"]]}\n' in str(caught.value)


def test_a_probes_file_without_probes(folder: Path) -> None:
    (folder / "probes.jsonl").write_text("\n")
    assert problems(write(folder, GOOD)) == [f"{folder}/probes.jsonl:1:1: holds no probes"]


def test_a_file_of_another_kind_does_not_flood(folder: Path) -> None:
    (folder / "probes.jsonl").write_text("nonsense\n" * 1000)
    found = problems(write(folder, GOOD))
    assert len(found) == references.MOST_SHOWN + 1
    assert found[0].endswith(f"7:10: verify.probes: {folder}/probes.jsonl has more problems than these 20")


def test_what_is_not_used_is_not_looked_at(folder: Path) -> None:
    load(write(folder, "[watch.verify]\nlevel = 'structure'\npython = './none'\n"), {}, references=True)


def test_files_of_matches_are_looked_at_when_they_match(folder: Path) -> None:
    rule = RULE.replace("runs/best", "runs/*").replace("models", "models/{1}")
    path = folder / "daemon.toml"
    path.write_text(rule + '[watch.verify]\nprobes = "{1}.jsonl"\ngold = "none"\n')
    (problem,) = problems(path)
    assert "verify.gold" in problem
    for name in ("probes", "other"):
        (folder / "runs" / name).mkdir(parents=True)
    located = load_located(path, {})
    found = {
        target.rule: references.problems_of_match(located, 0, target.watch)
        for target in targets(located.configuration)
    }
    assert found["products/probes"] == []
    (missing,) = found["products/other"]
    assert (missing.line, missing.column) == (6, 10)
    assert f"{folder}/other.jsonl can't be read" in missing.message


def test_it_needs_no_heavy_library(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from spancat_daemon.config.load import load\n"
        f"load(Path({str(write(folder, GOOD))!r}), {{}}, references=True)\n"
        "heavy = {'apscheduler', 'spacy', 'srsly', 'numpy', 'structlog', 'rich', 'httpx'}\n"
        "print(*heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
