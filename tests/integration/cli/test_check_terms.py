"""`check` on what verification, gates, notifications and health ask for."""

from __future__ import annotations

import json
import sys
import venv
from typing import TYPE_CHECKING, Any

import pytest
import spacy
from spacy.tokens import DocBin

from spancat_daemon.cli.interpreter import ask
from tests import service
from tests.pipelines import _examples, build
from tests.service import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GIB = 1 << 30


def check(
    config: Path, code: int, environ: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """What `check` finds, and of that, as lines, what is not ok and has a place."""
    done = run("check", "--json", config=config, environ=environ)
    assert done.returncode == code, done.stderr + done.stdout
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found, [
        f"{one['level']} {one['about']} {one['where'].removeprefix(str(config.parent) + '/')} {one['text']}"
        for one in found
        if one["where"]
    ]


def configure(folder: Path, **values: Any) -> Path:
    """A daemon.toml that says nothing of levels by itself."""
    return service.configure(folder, level=None, **values)


def place(config: Path, text: str, *, quoted: bool = False) -> str:
    """``daemon.toml:line:column`` of a text, or of a quoted one that begins with it."""
    for number, line in enumerate(config.read_text().splitlines(), start=1):
        for wanted in (f'"{text}', f"'{text}") if quoted else (text,):
            if wanted in line:
                return f"daemon.toml:{number}:{line.index(wanted) + 1}"
    raise AssertionError(text)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter of its own, with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def test_interpreters_that_can_not_verify(bare_python: Path, tmp_path: Path) -> None:
    good = ask(sys.executable, memory_bytes=4 * GIB, timeout_s=120)
    assert (good.problem, good.python) == ("", ".".join(map(str, sys.version_info[:3])))
    assert good.spacy.startswith("3.")

    def problem(python: Path | str, *, memory: int = GIB, timeout: float = 60) -> str:
        return ask(str(python), memory_bytes=memory, timeout_s=timeout).problem

    without = problem(bare_python)
    assert without == "can't import spaCy: ModuleNotFoundError: No module named 'spacy'"
    assert "can't import spaCy" in problem(sys.executable, memory=GIB // 8)
    packages = next(bare_python.parents[1].glob("lib/python*/site-packages"))
    (packages / "spacy.py").write_text("__version__ = '3.1.4'")
    try:
        assert problem(bare_python) == "has spaCy 3.1.4; verification needs 3.2.2 or later"
    finally:
        (packages / "spacy.py").unlink()
    said = json.dumps({"python": "3.7.9", "spacy": "3.2.2"})
    old = f"echo 'spancat-daemon-check:{said}'"
    assert problem(script(tmp_path / "old", old)) == "is Python 3.7.9; verification needs 3.8 or later"
    assert problem("echo").startswith("is not a Python that can be used: ")
    assert problem(script(tmp_path / "broken", "echo oh no >&2")) == "is not a Python that can be used: oh no"
    assert problem(script(tmp_path / "yes", "exec yes")) == "is not a Python that can be used: y"
    assert problem(script(tmp_path / "hangs", "sleep 1000"), timeout=0.2) == "does not answer within 0.2 s"
    assert problem(tmp_path / "none") == "can't be run: No such file or directory"


def test_an_interpreter_without_spacy_has_its_place(bare_python: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, more=f'[watch.verify]\npython = "{bare_python}"')
    (tmp_path / "runs").mkdir()
    found, (told,) = check(config, 4)
    assert told.startswith(
        f"error products {place(config, str(bare_python), quoted=True)} {bare_python} can't import spaCy"
    )
    (hint,) = [one["hint"] for one in found if one["where"]]
    assert f"{bare_python} -m pip install spacy" in hint
    config = configure(tmp_path, more=f'[watch.verify]\npython = "{sys.executable}"')
    found, told_now = check(config, 0)
    assert told_now == []
    assert any(f"{sys.executable} is Python 3" in one["text"] for one in found)
    config = configure(tmp_path, more='[watch.verify]\nlevel = "structure"')
    assert not any("spaCy" in one["text"] for one in check(config, 0)[0])


PROBES = """\
{"text": "Globex is in Paris", "spans": [[0, 6, "ORG"]]}
{"text": "Globex is in Paris", "spans": [[13, 18, "PLAC"]]}
{"text": "Globex is in Paris", "absent": [[0, 6, "PRODUCT"]]}
"""
LABELS = """\
[watch.verify]
probes = "probes.jsonl"
[watch.gate]
per_label_minimum = { PLAEC = 0.5, ORG = 0.1, PLACE = 0.1 }
"""


def test_labels_that_there_are_not_have_their_place(tmp_path: Path) -> None:
    (tmp_path / "probes.jsonl").write_text(PROBES)
    (tmp_path / "runs").mkdir()
    config = configure(tmp_path, more=LABELS)
    # nothing is there yet that could have labels
    assert not any("label of the model" in one["text"] for one in check(config, 0)[0])

    checkpoint = build("default", tmp_path / "runs" / "model-best")
    found, told = check(config, 4)
    there_are = "is not a label of the model (ORG, PLACE, GÜTER)"
    assert told == [
        f"error products probes.jsonl:2:1 'PLAC' {there_are}; did you mean 'PLACE'?",
        f"error products probes.jsonl:3:1 'PRODUCT' {there_are}",
        f"error products {place(config, 'PLAEC')} 'PLAEC' {there_are}; did you mean 'PLACE'?",
    ]
    done = run("check", config=config)
    assert f"{tmp_path}/probes.jsonl:2:1: 'PLAC' is not" in done.stdout

    # a label that only the live release has is known too: the next training may have it again
    configure(tmp_path, more='[watch.verify]\nlevel = "structure"')
    assert run("snapshot", "products", config=config).returncode == 0
    for name in ("meta.json", "spancat/cfg"):
        file = checkpoint / name
        file.write_text(file.read_text().replace('"ORG"', '"FIRM"'))
    configure(tmp_path, more=LABELS)
    assert [one.split()[2] for one in check(config, 4)[1]] == [one.split()[2] for one in told]
    (tmp_path / "probes.jsonl").write_text(PROBES.replace("PLAC", "PLACE").replace("PRODUCT", "FIRM"))
    configure(tmp_path, more=LABELS.replace("PLAEC", "FIRM"))
    found, told = check(config, 0)
    assert told == []
    assert any("probes.jsonl: 3 probes, all of known labels" in one["text"] for one in found)


def test_probes_of_matches_are_looked_at_one_by_one(tmp_path: Path) -> None:
    for run_name in ("a", "b", "c"):
        build("default", tmp_path / "runs" / run_name / "model-best")
    (tmp_path / "a.jsonl").write_text(PROBES.splitlines()[0])
    (tmp_path / "b.jsonl").write_text("nonsense\n")
    config = configure(
        tmp_path, source="runs/*/model-best", deploy="models/{1}", more='[watch.verify]\nprobes = "{1}.jsonl"'
    )
    _, (broken, missing) = check(config, 4)
    assert broken.startswith("error products/b b.jsonl:1:1 ")
    assert missing.startswith(f"error products/c {place(config, '{1}.jsonl', quoted=True)} verify.probes: ")
    assert missing.endswith("c.jsonl can't be read: No such file or directory")


def test_scores_and_steps_that_meta_json_does_not_have(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs" / "model-best")
    gate = "[watch.gate]\nmetric = 'spans_sk_f'\nminimum = 0.1\nper_label_minimum = 0.1\nmin_step = 400\n"
    config = configure(tmp_path, more=gate)
    metric, step = check(config, 4)[1]
    assert metric.startswith(
        f"warning products {place(config, 'metric')} the checkpoint's meta.json has no score"
    )
    assert metric.endswith("did you mean 'spans_sc_f'?")
    assert step.startswith(
        f"warning products {place(config, 'min_step')} spaCy writes no step into a checkpoint"
    )

    meta = json.loads((checkpoint / "meta.json").read_text())
    del meta["performance"]["spans_sc_per_type"]
    meta["spancat_daemon"] = {"step": 600}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    configure(tmp_path, more=gate.replace("sk", "sc"))
    (labels,) = check(config, 4)[1]
    assert labels.startswith(
        f"warning products {place(config, 'per_label')} the checkpoint's meta.json has no"
    )

    checkpoint.rename(checkpoint.with_name("model-last"))
    last = "[watch.gate]\nmax_drop = 0.1\nmin_step = 1"
    configure(tmp_path, source="runs/model-last", more=last)
    (stale,) = check(config, 4)[1]
    assert stale.startswith(
        f"warning products {place(config, 'max_drop')} max_drop goes by meta.json, and in model-last"
    )
    DocBin().to_disk(tmp_path / "gold.spacy")
    configure(tmp_path, source="runs/model-last", more=f'{last}\n[watch.verify]\ngold = "gold.spacy"')
    assert check(config, 0)[1] == []


def test_gold_documents_are_tried_on_the_live_release(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs" / "model-best")
    assert run("snapshot", "products", config=service.configure(tmp_path)).returncode == 0
    docs = [example.reference for example in _examples(spacy.load(checkpoint))]
    gold = tmp_path / "gold.spacy"
    terms = '[watch.gate]\nmetric = "spans_sk_f"\nminimum = 0.1\n[watch.verify]\ngold = "gold.spacy"'

    DocBin(docs=docs, store_user_data=True).to_disk(gold)
    config = configure(tmp_path, more=terms)
    (metric,) = check(config, 4)[1]
    wrong = place(config, "spans_sk_f", quoted=True)
    assert metric.startswith(f"error products {wrong} there is no score 'spans_sk_f' on the gold documents")
    assert metric.endswith("did you mean 'spans_sc_f'?")

    configure(tmp_path, more=terms.replace("sk", "sc"))
    found, bad = check(config, 0)
    assert not bad
    assert any("6 documents, spans_sc_f of the live release" in one["text"] for one in found)

    for doc in docs:
        doc.spans["other"] = doc.spans.pop("sc")
    DocBin(docs=docs, store_user_data=True).to_disk(gold)
    (key,) = check(config, 4)[1]
    assert key.startswith(f"error products {place(config, 'gold.spacy', quoted=True)}")
    assert "holds no spans under the key 'sc'" in key


FOLLOW = """\
[[watch.after]]
command = ["bin/none"]
[[watch.after]]
systemd = "reload ner-api"
[[watch.after]]
signal = { pidfile = "nowhere/pid" }
[[watch.after]]
webhook = { url = "http://x/hook", secret_file = "secret" }
[watch.health]
command = ["no-such-program"]
"""


def test_what_follows_a_swap_and_can_not_be_had(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "secret").chmod(0o644)
    empty = tmp_path / "empty"
    empty.mkdir()
    config = configure(tmp_path, more=FOLLOW)
    expected = [
        ("error", "bin/none", f"{tmp_path}/bin/none can't be run: No such file or directory"),
        ("warning", "reload", "there is no systemctl on $PATH"),
        ("warning", "nowhere", f"the pidfile's folder {tmp_path}/nowhere is not there"),
        ("warning", "secret", f"everybody can read {tmp_path}/secret"),
        ("error", "no-such", "there is no 'no-such-program' on $PATH"),
    ]
    assert check(config, 4, {"PATH": str(empty)})[1] == [
        f"{level} products {place(config, value, quoted=True)} {text}" for level, value, text in expected
    ]
    script(tmp_path / "bin" / "none", "exit 0")
    script(empty / "no-such-program", "exit 0")
    script(empty / "systemctl", "echo PrivateNetwork=no")
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "secret").chmod(0o640)
    assert check(config, 0, {"PATH": str(empty)})[1] == []


def test_a_unit_without_network_reaches_no_url(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    tools = tmp_path / "bin"
    asked = tmp_path / "asked"
    script(tools / "systemctl", f'echo "$@" >> {asked}; echo PrivateNetwork=yes')
    config = configure(tmp_path, more="[[watch.after]]\nsystemd = 'reload x'")
    check(config, 0, {"PATH": str(tools)})
    assert not asked.exists()
    more = (
        "[[watch.after]]\n[watch.after.webhook]\nurl = 'http://x/'\n[watch.health]\nurl = 'http://127.0.0.1/'"
    )
    configure(tmp_path, more=more)
    assert check(config, 4, {"PATH": str(tools)})[1] == [
        f"warning products {place(config, url, quoted=True)} spancat-daemon.service has no network, "
        "not even to 127.0.0.1"
        for url in ("http://x/", "http://127.0.0.1/")
    ]
    assert asked.read_text() == "show --property=PrivateNetwork spancat-daemon.service\n"


def test_a_broken_probes_file_stops_check_and_not_list(tmp_path: Path) -> None:
    config = configure(tmp_path, more='[watch.verify]\nprobes = "probes.jsonl"')
    (tmp_path / "probes.jsonl").write_text("nonsense\n")
    done = run("check", config=config)
    assert done.returncode == 2
    assert f"{tmp_path}/probes.jsonl:1:1: " in done.stderr
    assert done.stdout == ""
    assert run("list", "products", "--json", config=config).returncode == 0
