"""``contents = "component"`` on real pipelines: what it leaves out must not be missed."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import spacy
from spacy.util import load_config

from spancat_daemon.checkpoint.contents import Plan, plan
from spancat_daemon.checkpoint.settle import Settled, examine
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Rejected
from tests.pipelines import VARIANTS, build, model_bytes, predictions, texts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Which pipes stay; the component is the last one.
KEPT = {
    "default": ("tok2vec", "spancat"),
    "star": ("tok2vec", "spancat"),
    "own": ("spancat",),
    "not_first": ("tok2vec", "spancat"),
    "two": ("tok2vec", "spancat"),
    "two_upstreams": ("tok2vec", "spancat"),
    "singlelabel": ("tok2vec", "spancat"),
    "custom_key": ("tok2vec", "spancat"),
    "renamed": ("encoder", "products"),
    "vectors": ("tok2vec", "spancat"),
    "bias": ("tok2vec", "spancat"),
    "hash_embed": ("tok2vec", "spancat"),
    "finder": ("tok2vec", "span_finder", "spancat"),
}


@contextmanager
def settled(path: Path) -> Iterator[Settled]:
    with Source.open(path) as source:
        # A clock a minute ahead: no file is too young to be believed.
        found = examine(source, writer="spacy", settle_s=0, now_ns=lambda: time.time_ns() + 60 * 10**9)
        assert isinstance(found, Settled), found
        yield found


def reduce(checkpoint: Path, folder: Path, component: str) -> Plan:
    """Make the plan and carry it out, as staging does."""
    with settled(checkpoint) as found:
        planned = plan(found, contents="component", component=component)
    for file in planned.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.data is not None:
            assert file.source is None
            target.write_bytes(file.data)
        else:
            assert file.source is not None
            assert file.proof is not None
            proof = file.proof()
            data = (checkpoint / file.source.path).read_bytes()
            proof.feed(data)
            proof.finish()
            target.write_bytes(data)
    return planned


def loading_warnings(path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spacy.load(path)
    return [str(warning.message) for warning in caught]


def test_every_variant_is_tried() -> None:
    assert set(KEPT) == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_predicts_exactly_what_the_whole_pipeline_does(variant: str, tmp_path: Path) -> None:
    checkpoint = build(variant, tmp_path / "model-best")
    *_, component = KEPT[variant]

    planned = reduce(checkpoint, tmp_path / "reduced", component)

    assert planned.pipeline == KEPT[variant]
    expected = predictions(checkpoint, texts(), spans_key=planned.spans_key)
    assert sum(map(len, expected)) > 10, "nothing is predicted, so nothing is compared"
    assert predictions(tmp_path / "reduced", texts(), spans_key=planned.spans_key) == expected
    assert loading_warnings(tmp_path / "reduced") == loading_warnings(checkpoint)


@pytest.mark.parametrize("variant", VARIANTS)
def test_plan_says_what_loads(variant: str, tmp_path: Path) -> None:
    checkpoint = build(variant, tmp_path / "model-best")
    *_, component = KEPT[variant]

    planned = reduce(checkpoint, tmp_path / "reduced", component)

    nlp = spacy.load(tmp_path / "reduced")
    pipe = nlp.get_pipe(component)
    assert tuple(nlp.component_names) == planned.pipeline
    assert planned.component == component
    assert planned.factory == nlp.get_pipe_meta(component).factory
    assert planned.labels == pipe.labels  # type: ignore[attr-defined]  # spaCy types pipes as callables
    assert planned.spans_key == pipe.key  # type: ignore[attr-defined]
    assert planned.lang == nlp.lang
    assert (checkpoint / planned.model_file).read_bytes() == model_bytes(tmp_path / "reduced", component)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stays_of_the_configuration_stays_as_it_was(variant: str, tmp_path: Path) -> None:
    checkpoint = build(variant, tmp_path / "model-best")
    *_, component = KEPT[variant]

    reduce(checkpoint, tmp_path / "reduced", component)

    before = load_config(checkpoint / "config.cfg", interpolate=False)
    after = load_config(tmp_path / "reduced" / "config.cfg", interpolate=False)
    assert tuple(after["components"]) == tuple(name for name in before["components"] if name in KEPT[variant])
    for name in KEPT[variant]:
        assert after["components"][name] == before["components"][name]
    for section in ("paths", "system", "corpora"):
        assert after.get(section) == before.get(section)
    assert after["nlp"] | {"pipeline": []} == before["nlp"] | {"pipeline": []}
    meta = spacy.load(tmp_path / "reduced").meta
    assert set(meta["labels"]) == set(KEPT[variant])
    assert f"spans_{spacy.load(checkpoint).get_pipe(component).key}_f" in meta["performance"]  # type: ignore[attr-defined]
    for name in set(before["components"]) - set(KEPT[variant]):
        assert f"{name}_loss" not in meta["performance"]


@pytest.mark.parametrize("component", ["spancat", "second"])
def test_either_of_two_span_categorizers(component: str, tmp_path: Path) -> None:
    checkpoint = build("two", tmp_path / "model-best")

    planned = reduce(checkpoint, tmp_path / "reduced", component)

    assert planned.pipeline == ("tok2vec", component)
    key = planned.spans_key
    expected = predictions(checkpoint, texts(), spans_key=key)
    assert predictions(tmp_path / "reduced", texts(), spans_key=key) == expected
    assert set(planned.metrics) >= {f"spans_{key}_f", f"{component}_loss"}
    other = {"spancat": "second", "second": "sc"}[component]
    assert not any(other in name.split("_") for name in planned.metrics)


def test_same_checkpoint_gives_same_bytes(tmp_path: Path) -> None:
    first, second = (build("not_first", tmp_path / name / "model-best") for name in "ab")
    reduce(first, tmp_path / "1", "auto")
    reduce(second, tmp_path / "2", "auto")

    contents = [
        {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "1", tmp_path / "2")
    ]
    assert contents[0] == contents[1]


def test_retrained_reduced_pipeline_can_be_saved_and_reduced_again(tmp_path: Path) -> None:
    checkpoint = build("not_first", tmp_path / "model-best")
    reduce(checkpoint, tmp_path / "once", "auto")
    spacy.load(tmp_path / "once").to_disk(tmp_path / "saved")

    planned = reduce(tmp_path / "saved", tmp_path / "twice", "auto")

    assert planned.pipeline == ("tok2vec", "spancat")
    assert predictions(tmp_path / "twice", texts()) == predictions(checkpoint, texts())


def test_upstream_that_another_one_overwrites_is_kept_with_it(tmp_path: Path) -> None:
    # At prediction a listener reads doc.tensor, which is the last tok2vec's, whatever its upstream is named.
    nlp = spacy.load(build("default", tmp_path / "first"))
    other = spacy.load(build("default", tmp_path / "other", generation=1))
    nlp.add_pipe("tok2vec", name="late", source=other, after="tok2vec")
    nlp.to_disk(tmp_path / "model-best")
    expected = predictions(tmp_path / "model-best", texts())
    assert expected != predictions(tmp_path / "first", texts())

    planned = reduce(tmp_path / "model-best", tmp_path / "reduced", "auto")

    assert planned.pipeline == ("tok2vec", "late", "spancat")
    assert predictions(tmp_path / "reduced", texts()) == expected


def test_disabled_pipes_stay_disabled_or_go(tmp_path: Path) -> None:
    nlp = spacy.load(build("not_first", tmp_path / "first"))
    nlp.add_pipe("merge_entities", before="tok2vec")  # changes tokens, but doesn't run
    nlp.disable_pipe("merge_entities")
    nlp.disable_pipe("tok2vec")
    nlp.to_disk(tmp_path / "model-best")

    planned = reduce(tmp_path / "model-best", tmp_path / "reduced", "auto")

    assert planned.pipeline == ("tok2vec", "spancat")
    assert spacy.load(tmp_path / "reduced").disabled == ["tok2vec"]
    expected = predictions(tmp_path / "model-best", texts())
    assert predictions(tmp_path / "reduced", texts()) == expected


@pytest.mark.parametrize("norm", [True, False])
def test_attribute_ruler_is_missed_only_if_it_sets_norm(norm: bool, tmp_path: Path) -> None:
    nlp = spacy.load(build("own", tmp_path / "first"))
    ruler = nlp.add_pipe("attribute_ruler", first=True)
    ruler.add(  # type: ignore[attr-defined]  # spaCy types pipes as callables
        patterns=[[{"ORTH": "Berlin"}]], attrs={"NORM": "doors"} if norm else {"POS": "PROPN"}
    )
    nlp.to_disk(tmp_path / "model-best")
    expected = predictions(tmp_path / "model-best", texts())

    if norm:
        assert expected != predictions(tmp_path / "first", texts()), "so it must not be left out"
        with pytest.raises(Rejected, match="attribute_ruler/patterns: may set NORM"):
            reduce(tmp_path / "model-best", tmp_path / "reduced", "auto")
    else:
        reduce(tmp_path / "model-best", tmp_path / "reduced", "auto")
        assert predictions(tmp_path / "reduced", texts()) == expected


def test_planning_never_imports_spacy(tmp_path: Path) -> None:
    build("not_first", tmp_path / "model-best")
    script = f"""
import sys, time
from pathlib import Path
from spancat_daemon.checkpoint import contents, settle, tree
import spancat_daemon.verify.child, spancat_daemon.verify.digests
source = tree.Source.open(Path({str(tmp_path / "model-best")!r}))
found = settle.examine(source, writer="spacy", settle_s=0, now_ns=lambda: time.time_ns() + 60 * 10**9)
assert contents.plan(found, contents="component").pipeline == ("tok2vec", "spancat")
print(sorted({{"spacy", "thinc", "srsly", "confection", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
