"""The well-known recipe, and everything that goes wrong with it."""

from __future__ import annotations

import gc
import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest
import spacy
import srsly

from spancat_daemon import load, load_bytes, to_bytes
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import lease
from tests.integration.serving.conftest import Model, answer
from tests.pipelines import build, model_bytes, predictions, texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.serving.publishing import Publisher

Models = tuple[Model, Model]


def refused(data: Any, like: Any, **options: Any) -> str:
    with pytest.raises(SpancatDaemonError) as caught:
        load_bytes(data, like, **options)
    assert gc.isenabled()
    return str(caught.value)


def test_bytes_of_a_release_predict_what_it_does(publisher: Publisher, models: Models) -> None:
    release = publisher.publish(models[0].path)
    data = (release.path / "model.bin").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    for given in (data, memoryview(data), release.path / "model.bin", f"{release.path}/model.bin"):
        nlp = load_bytes(given, like=release, sha256=sha256)
        assert [answer(nlp(text)) for text in texts()] == models[0].answers
    publisher.publish(models[1].path)  # as "exchange" moves the release, it is found by its id
    nlp = load_bytes(data, like=release)
    assert [answer(nlp(text)) for text in texts()] == models[0].answers
    assert lease.is_leased(publisher.path / "releases" / release.id)
    assert to_bytes(nlp) == data


@pytest.mark.parametrize("variant", ["not_first", "singlelabel", "renamed", "vectors"])
def test_every_shape_of_pipeline(linking: Publisher, tmp_path: Path, variant: str) -> None:
    checkpoint = build(variant, tmp_path / "checkpoint")
    name = "products" if variant == "renamed" else "spancat"
    release = linking.publish(checkpoint, component=name)
    data = to_bytes(spacy.load(checkpoint))
    assert data == (release.path / "model.bin").read_bytes()
    load_bytes(data, release).to_disk(tmp_path / "saved")
    assert predictions(tmp_path / "saved", texts()) == predictions(checkpoint, texts())


def test_weights_that_were_trained_further(linking: Publisher, tmp_path: Path) -> None:
    release = linking.publish(build("own", tmp_path / "before"))
    after = build("own", tmp_path / "after", generation=1)
    nlp = load_bytes(model_bytes(after, "spancat"), release)
    nlp.to_disk(tmp_path / "saved")
    assert predictions(tmp_path / "saved", texts()) == predictions(after, texts())
    assert predictions(after, texts()) != predictions(release.path, texts())


def _narrow(array: Any) -> Any:
    return array[..., :-1].copy()


def _doubles(array: Any) -> Any:
    return array.astype("float64")


def _no_array(_array: Any) -> Any:
    return "three"


def _diverged(array: Any) -> Any:
    return array * float("nan")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_narrow, r"not of a model built as 'spancat' of .* is: 'W' of its layer .* is float32 of shape \("),
        (_doubles, r"not of a model built as 'spancat' of .* is: 'W' of its layer .* is float64 of shape \("),
        (_no_array, r"not of a model built as 'spancat' of .* is: 'W' of its layer .* is <U5 of shape"),
        (
            _diverged,
            r"can't predict: 'W' of its layer .* has values that are no finite numbers",
        ),
    ],
)
def test_weights_that_thinc_takes_and_no_text_can_be_predicted_with(
    linking: Publisher, models: Models, change: Callable[[Any], Any], reason: str
) -> None:
    release = linking.publish(models[0].path)
    content: Any = srsly.msgpack_loads((release.path / "model.bin").read_bytes())  # type: ignore[attr-defined]
    parameters = next(each for each in content["params"] if each.get("W") is not None)
    parameters["W"] = change(parameters["W"])
    data = srsly.msgpack_dumps(content)  # type: ignore[attr-defined]
    spacy.load(release.path).get_pipe("spancat").model.from_bytes(data)  # type: ignore[attr-defined]
    assert re.search(reason, refused(data, release))
    assert not lease.is_leased(release.path)


def test_what_is_no_pipeline_has_no_bytes() -> None:
    nothing: Any = "runs/model-best"
    with pytest.raises(TypeError, match="nlp must be a pipeline of spaCy"):
        to_bytes(nothing)


def test_each_row_of_the_recipe(linking: Publisher, models: Models, tmp_path: Path) -> None:
    release = linking.publish(models[0].path)
    live = load(linking.path)
    data = to_bytes(live)
    tok2vec: Any = live.get_pipe("tok2vec")
    said = refused(tok2vec.model.to_bytes(), release)  # nlp.pipeline[0][1]
    assert f"not of a model built as 'spancat' of {release.id} is: ValueError: Cannot deserialize" in said
    other_sizes = build("default", tmp_path / "wide", width=32)
    assert "Attempt to change dimension" in refused(model_bytes(other_sizes, "spancat"), release)
    said = refused(data[:-1000], release)
    assert (
        f"cut off: they end after {len(data) - 1000:,}, the model of {release.id} has {len(data):,}" in said
    )
    assert "go on after the end of the model" in refused(data + data[:10], release)
    assert "not a msgpack map" in refused(b"\xc1" * 10, release)
    assert "not a msgpack map" in refused(b"\x01", release)
    assert "cut off: they end after 0" in refused(b"", release)
    assert "are a whole pipeline (nlp.to_bytes()), not a model" in refused(live.to_bytes(), release)
    pipe: Any = live.get_pipe("spancat")
    assert "are a component with its settings (pipe.to_bytes())" in refused(pipe.to_bytes(), release)
    assert "are something else, not a model" in refused(b"\x80", release)
    assert "The SHA-256" in refused(data, release, sha256="0" * 64).replace("the SHA-256", "The SHA-256")
    assert "'spancat' is excluded" in refused(data, release, exclude=["spancat"])
    raw = spacy.blank("en")
    raw.add_pipe("tok2vec")
    bare: Any = raw.add_pipe("spancat")
    assert "not of a model built as" in refused(bare.model.to_bytes(), release)  # nor a blank one's
    # All the time, what is in use was left alone
    assert [answer(live(text)) for text in texts()] == models[0].answers


def test_bytes_of_another_release_are_refused(linking: Publisher, tmp_path: Path) -> None:
    """Same structure, other labels: spaCy would load them, and swap classes silently."""
    first = linking.publish(build("own", tmp_path / "first"))
    turned = spacy.load(build("own", tmp_path / "more", generation=1))
    pipe: Any = turned.get_pipe("spancat")
    pipe.cfg["labels"] = pipe.cfg["labels"][::-1]
    turned.to_disk(tmp_path / "turned")
    second = linking.publish(tmp_path / "turned")
    said = refused(to_bytes(turned), first)
    assert f"are the model of {second.id}, not of {first.id}, whose labels are {list(pipe.labels)}" in said
    assert load_bytes(to_bytes(turned), second).get_pipe("spancat").labels == pipe.labels  # type: ignore[attr-defined]


def test_which_component_is_meant(tmp_path: Path) -> None:
    nlp = spacy.load(build("two", tmp_path / "two"))
    with pytest.raises(SpancatDaemonError, match=r"several span categorizers; .* one of: spancat, second"):
        to_bytes(nlp)
    second: Any = nlp.get_pipe("second")
    assert to_bytes(nlp, "second") == second.model.to_bytes()
    with pytest.raises(SpancatDaemonError, match=r"'tok2vec' is no span categorizer of the pipeline"):
        to_bytes(nlp, "tok2vec")
    with pytest.raises(SpancatDaemonError, match=r"has no span categorizer; it has no components"):
        to_bytes(spacy.blank("en"))
    blank = spacy.blank("en")
    blank.add_pipe("spancat")
    with pytest.raises(SpancatDaemonError, match=r"'spancat' was never initialised"):
        to_bytes(blank)
