"""``contents = "standalone"`` on real pipelines: one component, which is all that is needed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon.verify.verdict import Grafting
from tests.integration.contents.publishing import Loaders, scene
from tests.judgement import sound
from tests.misbehaving import interpreter, misbehave
from tests.pipelines import VARIANTS, build, predictions, texts, train_more
from tests.service import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMPONENT = {"two": "second", "renamed": "products"}
# What else runs in the others is left out before this begins, see test_reduced_releases.py.
ABLE = [variant for variant in VARIANTS if variant not in {"finder", "not_first", "two_upstreams"}]
NEEDS_NOTHING = {"own"}

# Where nothing of this project is to be found.
_ELSEWHERE = """
import hashlib, json, sys
sys.modules["spancat_daemon"] = None
import spacy
found = []
for path in sys.argv[2:]:
    nlp = spacy.load(path)
    (name,) = nlp.component_names
    pipe = nlp.get_pipe(name)
    docs = list(nlp.pipe(json.loads(sys.argv[1])))
    groups = [doc.spans.get(pipe.key, []) for doc in docs]
    found.append({
        "model": hashlib.sha256(pipe.model.to_bytes()).hexdigest(),
        "predictions": [
            [[span.start, span.end, span.label_, float(score)]
             for span, score in zip(group, group.attrs["scores"].ravel() if group else [])]
            for group in groups
        ],
    })
print(json.dumps(found))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return build("default", tmp_path / "runs/model-best")


def contents_of(path: Path) -> dict[str, bytes]:
    names = (file for file in path.rglob("*") if file.is_file() and file.name != "release.json")
    return {str(file.relative_to(path)): file.read_bytes() for file in names}


def test_every_variant_predicts_the_same_where_nothing_else_is(tmp_path: Path, loaders: Loaders) -> None:
    releases = {}
    for variant in ABLE:
        folder = tmp_path / variant
        source = build(variant, folder / "runs/model-best")
        component = COMPONENT.get(variant, "spancat")
        loaders.asked.clear()
        with scene(folder, loaders, contents="standalone", component=component) as held:
            release = held.publish()
            assert not held.left
        assert [type(asked) for asked in loaders.asked] == [Grafting] * (variant not in NEEDS_NOTHING), (
            variant
        )
        manifest = release.manifest
        assert (manifest.contents, manifest.pipeline) == ("standalone", (component,))
        assert (manifest.derived_from is None) == (variant in NEEDS_NOTHING)
        assert manifest.metrics[f"spans_{manifest.spans_key}_f"] > 0.5
        meta = json.loads((release.path / "meta.json").read_text())
        assert set(meta["performance"]) == set(manifest.metrics)
        assert not any(name.startswith("tok2vec") for name in manifest.metrics)
        assert (release.path / "model.bin").samefile(release.path / component / "model")
        assert not (release.path / "tok2vec").exists()
        releases[variant] = (source, release)

    done = subprocess.run(
        [sys.executable, "-I", "-c", _ELSEWHERE, json.dumps(texts())]
        + [str(release.path) for _, release in releases.values()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    for (variant, (source, release)), found in zip(releases.items(), json.loads(done.stdout), strict=True):
        assert found["model"] == release.manifest.model_sha256, variant
        expected = predictions(source, texts(), spans_key=release.manifest.spans_key)
        assert sum(map(len, expected)) > 10, "nothing is predicted, so nothing is compared"
        exact = [[(start, end, label) for start, end, label, _ in spans] for spans in expected]
        assert [[tuple(span[:3]) for span in spans] for spans in found["predictions"]] == exact, variant
        for spans, others in zip(expected, found["predictions"], strict=True):
            assert [span[3] for span in spans] == pytest.approx([span[3] for span in others], rel=0, abs=1e-6)


def test_same_checkpoint_is_the_same_release_and_is_not_derived_again(
    tmp_path: Path, checkpoint: Path, loaders: Loaders
) -> None:
    loaders.asked.clear()
    with scene(tmp_path, loaders, contents="standalone") as held:
        first = held.publish()
        again = held.publish(force=True)
        assert (again.manifest.content_sha256, again.manifest.changed) == (
            first.manifest.content_sha256,
            False,
        )
        for path in first.manifest.files:
            assert (again.path / path).stat().st_ino == (first.path / path).stat().st_ino, path
        assert held.look().status == "unchanged"
    assert len(loaders.asked) == 2

    os.utime(checkpoint / "vocab/lookups.bin")  # so that its files must be looked into
    with scene(tmp_path, loaders, contents="standalone") as held:  # and nothing is remembered
        assert held.look().status == "unchanged"
        assert held.live.id == again.id
        assert not held.left
    assert len(loaders.asked) == 2

    other = build("default", tmp_path / "other/runs/model-best")
    with scene(other.parent.parent, loaders, contents="standalone") as held:
        assert contents_of(held.publish().path) == contents_of(first.path)


def test_what_a_training_leaves_as_it_was_is_linked(
    tmp_path: Path, checkpoint: Path, loaders: Loaders
) -> None:
    with scene(tmp_path, loaders, contents="standalone") as held:
        first = held.publish()
        train_more(checkpoint, checkpoint)
        second = held.publish()
        assert second.manifest.derived_from != first.manifest.derived_from
        assert second.manifest.model_sha256 != first.manifest.model_sha256
        kept = {p for p in first.manifest.files if (first.path / p).samefile(second.path / p)}
        assert {"tokenizer", "vocab/strings.json", "vocab/lookups.bin", "spancat/cfg", "config.cfg"} <= kept
        written = next(f["bytes_written"] for e, f in held.log.events if e == "release.overwrite")
        assert written == sum(
            digest.bytes
            for path, digest in second.manifest.files.items()
            if path not in kept and path != "model.bin"
        )
    sound(tmp_path / "models/products")


def test_upstream_trained_further_under_a_frozen_component_is_another_release(
    tmp_path: Path, loaders: Loaders
) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    with scene(tmp_path, loaders, contents="standalone") as held:
        first = held.publish()
        before = (checkpoint / "spancat/model").read_bytes()
        nlp = spacy.load(checkpoint)
        upstream: Any = nlp.get_pipe("tok2vec")
        embedding = next(node for node in upstream.model.walk() if node.name == "hashembed")
        embedding.set_param("E", embedding.get_param("E") * 1.5)
        nlp.to_disk(checkpoint)
        assert (checkpoint / "spancat/model").read_bytes() == before
        assert held.publish().manifest.model_sha256 != first.manifest.model_sha256
        assert predictions(held.live.path, texts()) == predictions(checkpoint, texts())


def test_to_and_from_other_contents(tmp_path: Path, checkpoint: Path, loaders: Loaders) -> None:
    found = []
    for contents in ("component", "standalone", "component", "pipeline", "standalone"):
        with scene(tmp_path, loaders, contents=contents) as held:
            found.append(held.publish().manifest)
    assert [manifest.contents for manifest in found] == [
        "component",
        "standalone",
        "component",
        "pipeline",
        "standalone",
    ]
    assert found[1].derived_from == found[0].content_sha256 == found[2].content_sha256
    assert found[4].content_sha256 == found[1].content_sha256
    assert checkpoint.is_dir()


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("finder", "it needs 'tok2vec', 'span_finder', and can have a copy of one of them only")],
)
def test_what_can_not_stand_alone(variant: str, reason: str, tmp_path: Path, loaders: Loaders) -> None:
    build(variant, tmp_path / "runs/model-best")
    loaders.asked.clear()
    with scene(tmp_path, loaders, contents="standalone") as held:
        result = held.look()
        assert result.status == "rejected"
        assert f"'spancat' can't be made standalone: {reason}; set contents = " in result.reason
        assert not held.left
    assert not loaders.asked


def test_two_upstreams_of_one_listener(tmp_path: Path, loaders: Loaders) -> None:
    # What it hears is the later one, whatever name it listens to.
    nlp = spacy.load(build("default", tmp_path / "first"))
    nlp.add_pipe("tok2vec", name="late", source=spacy.load(tmp_path / "first"), after="tok2vec")
    (tmp_path / "runs").mkdir()
    nlp.to_disk(tmp_path / "runs/model-best")
    with scene(tmp_path, loaders, contents="standalone") as held:
        assert "it needs 'tok2vec', 'late', and can have a copy of one" in held.look().reason


def test_upstream_that_does_not_run(tmp_path: Path, loaders: Loaders) -> None:
    nlp = spacy.load(build("default", tmp_path / "first"))
    nlp.disable_pipe("tok2vec")
    (tmp_path / "runs").mkdir()
    nlp.to_disk(tmp_path / "runs/model-best")
    with scene(tmp_path, loaders, contents="standalone") as held:
        assert "could not be made standalone: it loads, but 'spancat' listens to" in held.look().reason
        assert not held.left


# -- loaders that fail ---------------------------------------------------------------------------------------

_ANSWER = """
import hashlib, json
sys.stdin.readline()
model = {model}
size = {size}
answer = dict(ok=True, reason="", fault="", held_bytes=1, labels=["ORG", "PLACE", "GÜTER"], spans_key="sc",
    threshold=0.3, model_sha256={sha256}, warnings=[], confined=[], probed=None, evaluated=None,
    live_evaluated=None, timed=None, live_reason="", load_s=0, peak_rss_bytes=0, frame_bytes=size)
sys.stdout.buffer.write(json.dumps(answer).encode() + b"\\n" + model)
sys.stdout.flush()
"""
_RIGHT = "hashlib.sha256(model).hexdigest()"


def answer(model: str, *, size: str = "len(model)", sha256: str = _RIGHT) -> str:
    return _ANSWER.format(model=model, size=size, sha256=sha256)


@pytest.fixture
def fake_python(tmp_path: Path) -> Callable[[str], str]:
    """An interpreter that says it is ready, and then runs the given code."""

    def make(code: str) -> str:
        path = tmp_path / "python"
        ready = "print('{\"ready\": true}', flush=True)"
        path.write_text(f"#!{sys.executable}\nimport os, sys, signal\n{ready}\n{textwrap.dedent(code)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def verified_by(python: str, **more: Any) -> str:
    keys = {"level": "structure", "python": python, **more}
    return "verify = { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) + " }"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("sys.stdin.readline(); os._exit(3)", "ended with status 3"),
        ("sys.stdin.readline(); print('soon', flush=True)", "not a verdict"),
        ("signal.pause()", "no answer within 2 s"),
        (answer("b'x' * 100", size="None"), "not a verdict"),
        (answer("b'x' * 100", size="0"), "not a verdict"),
        (answer("b'x' * 100", size="1 << 62"), "not a verdict"),
        (answer("b'x' * 100", size="'100'"), "not a verdict"),
        (answer("b'x' * 100", size="200") + "signal.pause()", "no answer within 2 s"),
        (answer("b'x' * 100", size="200"), "ended with status 0"),
        (answer("b'x' * 100", sha256="'0' * 64"), "not a verdict"),
        (
            answer("b'x' * 100"),
            "what was made of it goes on after the end",
        ),  # whole, by its digest, and no model
    ],
)
def test_loader_that_fails_leaves_nothing(
    code: str, reason: str, tmp_path: Path, checkpoint: Path, fake_python: Callable[[str], str]
) -> None:
    assert checkpoint.is_dir()
    with Loaders() as loaders:
        with scene(tmp_path, loaders) as held:
            before = held.publish()
        terms = verified_by(fake_python(code), timeout="2s")
        with scene(tmp_path, loaders, contents="standalone", level=None, more=terms) as held:
            result = held.look()
            assert (result.status, result.release) == ("rejected", before.id)
            assert reason in result.reason
            assert held.rejections == [fields for fields in held.rejections if reason in fields]
            assert len(held.rejections) == 1
            assert held.live.id == before.id
            assert not held.left
            asked = len(loaders.asked)
            assert held.look().status == "rejected"
            assert len(loaders.asked) == asked, "the same is asked twice"
    sound(tmp_path / "models/products")


def test_interpreter_that_is_not_there_says_nothing_of_the_checkpoint(
    tmp_path: Path, checkpoint: Path, fake_python: Callable[[str], str]
) -> None:
    python = fake_python("sys.exit(1)")
    with (
        Loaders() as loaders,
        scene(tmp_path, loaders, contents="standalone", level=None, more=verified_by(python)) as held,
    ):
        (tmp_path / "python").unlink()
        result = held.look()
        assert (result.status, result.release) == ("failed", None)
        assert "can't be verified: can't run" in result.reason
        assert not held.left
    assert checkpoint.is_dir()


def test_others_are_let_in_meanwhile_and_it_can_be_given_up(
    tmp_path: Path, checkpoint: Path, fake_python: Callable[[str], str]
) -> None:
    python = fake_python("signal.pause()")
    with (
        Loaders() as loaders,
        scene(tmp_path, loaders, contents="standalone", level=None, more=verified_by(python)) as held,
    ):
        results = []
        looking = threading.Thread(target=lambda: results.append(held.look()))
        looking.start()
        until(lambda: held.deployment.verifying, what="the folder is not left to others")
        held.deployment.recover()  # must leave what is being derived alone
        assert len(held.left) == 1
        held.deployment.abandon()
        looking.join(120)
        assert [result.status for result in results] == ["abandoned"]
        assert not held.left
    assert checkpoint.is_dir()


@pytest.fixture(scope="module")
def knows_misbehaviour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Loaders]]:
    with Loaders() as loaders:
        yield interpreter(tmp_path_factory.mktemp("interpreter")), loaders


_WRONG = """
from spacy.language import Language
def wrong(self, upstream, name, paths, right=Language.replace_listeners):
    right(self, upstream, name, paths)
    node = next(node for node in self.get_pipe(name).model.walk() if node.name == "hashembed")
    node.set_param("E", node.get_param("E") * {factor})
Language.replace_listeners = wrong
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (_WRONG.format(factor="-1"), "its scores would be others than the pipeline's"),
        ("x = bytearray(3 << 30)", "it needs more memory than it may have"),
    ],
)
def test_checkpoint_that_misbehaves(
    code: str, reason: str, tmp_path: Path, knows_misbehaviour: tuple[str, Loaders]
) -> None:
    python, loaders = knows_misbehaviour
    misbehave(build("default", tmp_path / "runs/model-best"), code)
    terms = verified_by(python, memory="2GiB")
    with scene(
        tmp_path, loaders, contents="standalone", writer="any", settle="1ms", level=None, more=terms
    ) as held:
        result = held.look()
        while result.status == "unsettled":
            result = held.look()
        assert result.status == "rejected", result
        assert reason in result.reason
        assert not held.left
        assert held.deployment.live_id() is None
