"""One release, whole, held for as long as it is used; else one clear error."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import spacy

import spancat_daemon
from spancat_daemon import HotModel, live, load, releases, to_bytes
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release import lease, survey
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.serving import listing
from spancat_daemon.verify.digests import digests
from tests.integration.serving.conftest import Model, answer
from tests.integration.serving.forking import Child
from tests.integration.serving.publishing import Publisher, overwrite, spoil
from tests.integration.serving.watching import Told
from tests.pipelines import texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon import Release

ROOT = Path(__file__).parents[3]
Models = tuple[Model, Model]


def answers(nlp: Any) -> list[Any]:
    return [answer(nlp(text)) for text in texts()]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def lies_whole(folder: Path, release_id: str) -> bool:
    """Whether a release is on the disk, with every byte of it."""
    found = [release for release in releases(folder) if release.id == release_id]
    return bool(found) and not digests(found[0].path, found[0].manifest)


def test_the_live_release_or_another(publisher: Publisher, models: Models) -> None:
    first, second = (publisher.publish(model.path) for model in models)
    assert answers(load(publisher.path)) == models[1].answers
    for name in (first.id, first.id[:12], "1", "@1", first):
        assert answers(load(publisher.path, release=name)) == models[0].answers, name
    assert load(publisher.path, release=1).path == publisher.path / "releases" / first.id
    assert [(release.id, release.live) for release in releases(publisher.path)] == [
        (second.id, True),
        (first.id, False),
    ]
    found = live(publisher.path)
    assert found is not None
    assert (found.id, found.manifest.spans_key) == (second.id, "xx")


def test_a_swap_in_the_midst_of_a_load(
    publisher: Publisher, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After config.cfg was read, and before all else: what is read then must be of the same release."""
    publisher.publish(models[0].path)
    build_from_config = spacy.util.load_model_from_config
    removed: list[str] = []

    def swap_first(*args: Any, **kwargs: Any) -> Any:
        publisher.publish(models[1].path)
        publisher.publish_fake()
        removed.extend(publisher.prune())
        return build_from_config(*args, **kwargs)

    monkeypatch.setattr(spacy.util, "load_model_from_config", swap_first)
    nlp = load(publisher.path)
    monkeypatch.undo()
    assert answers(nlp) == models[0].answers
    assert removed == []
    assert live(publisher.path) != releases(publisher.path)[-1]


def test_it_holds_through_prunes_while_it_lives(publisher: Publisher, models: Models) -> None:
    held = publisher.publish(models[0].path)
    nlp = load(publisher.path)
    removed = []
    for _ in range(20):
        publisher.publish_fake()
        removed += publisher.prune()
    assert len(removed) == 18
    assert lies_whole(publisher.path, held.id)
    component = nlp.get_pipe("spancat")
    del nlp
    gc.collect()
    assert publisher.prune() == [held.id]
    assert not lies_whole(publisher.path, held.id)
    assert component is not None  # a part of it holds nothing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_holds_until_its_process_ends(linking: Publisher, models: Models, number: signal.Signals) -> None:
    held = linking.publish(models[0].path)

    def work(tell: Callable[[Any], None]) -> Any:
        nlp = load(linking.path)
        tell(len(nlp.pipe_names))
        return nlp

    with Child(work) as child:
        assert child.told() == 2
        for _ in range(3):
            linking.publish_fake()
            linking.prune()
        assert lies_whole(linking.path, held.id)
        child.end(number)
    assert linking.prune() == [held.id]


def test_a_child_holds_what_its_parent_lets_go(linking: Publisher, models: Models) -> None:
    held = linking.publish(models[0].path)
    loaded = [load(linking.path)]

    def work(tell: Callable[[Any], None]) -> Any:
        tell("there")
        return loaded

    with Child(work) as child:
        assert child.told() == "there"
        loaded.clear()
        gc.collect()
        assert lease.is_leased(linking.path / "releases" / held.id)
    assert not lease.is_leased(linking.path / "releases" / held.id)


def test_a_failed_read_leaves_the_collector_on_and_nothing_held(linking: Publisher, models: Models) -> None:
    release = linking.publish(models[0].path)
    model = release.path / "spancat/model"
    overwrite(model, model.read_bytes()[:-1000])
    descriptors = open_descriptors()
    with pytest.raises(ValueError, match="incomplete input"):
        spacy.load(release.path)
    assert not gc.isenabled(), "spaCy sees to it by itself now"
    gc.enable()
    with pytest.raises(SpancatDaemonError, match=r"is damaged: model\.bin: has .* bytes, the manifest says"):
        load(linking.path)
    assert gc.isenabled()
    assert not lease.is_leased(release.path)
    assert open_descriptors() == descriptors


def test_a_flipped_bit_is_found_on_request(linking: Publisher, models: Models) -> None:
    release = linking.publish(models[0].path)
    load(linking.path, verify=True)
    spoil(release.path / "tok2vec/model", at=-200)
    load(linking.path)  # spaCy itself can't know
    with pytest.raises(SpancatDaemonError, match=r"is damaged: tok2vec/model: its SHA-256 is .*rollback"):
        load(linking.path, verify=True)


def test_what_it_is_given_is_no_folder_with_a_release(
    linking: Publisher, models: Models, tmp_path: Path
) -> None:
    def refused(path: Path, **options: Any) -> str:
        with pytest.raises(SpancatDaemonError) as caught:
            load(path, **options)
        return str(caught.value).replace(str(tmp_path), "…")

    assert refused(tmp_path / "typo").startswith("…/typo: there is no such folder")
    assert refused(linking.path).startswith("…/models: there is no release yet; ")
    assert live(linking.path) is None
    assert refused(models[0].path).partition(": ")[2].startswith("is a pipeline of spaCy, not")
    release = linking.publish(models[0].path)
    assert refused(linking.path / "current").endswith("is a release, not a deployment folder; give …/models")
    assert refused(release.path).endswith("is a release, not a deployment folder; give …/models")
    assert "there is no release '7'" in refused(linking.path, release="7")
    assert refused(release.path / "config.cfg").startswith("…/models/releases/")
    (linking.path / "current").unlink()
    (linking.path / "current").symlink_to("releases/000009-20261122T113045Z-3f2a9c1b")
    assert refused(linking.path).startswith("…/models/current: does not lead to a release; ")
    with pytest.raises(SpancatDaemonError, match="does not lead to a release"):
        live(linking.path)
    with pytest.raises(SpancatDaemonError, match="there is no such folder"):
        releases(tmp_path / "typo")


def test_the_first_release_comes_while_it_is_looked_for(
    linking: Publisher, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = survey.live_of

    def published_then(folder: Path) -> Any:
        found = look(folder)
        if found is None:
            linking.publish(models[0].path)
        return found

    monkeypatch.setattr(listing, "live_of", published_then)
    assert live(linking.path) is None
    found = live(linking.path)
    assert found is not None
    assert found.sequence == 1


def test_a_release_that_moves_between_being_found_and_held(
    publisher: Publisher, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (publisher.publish(model.path) for model in models)
    find, swaps = DeploymentFolder.find, iter([first, second, first])

    def found_then(folder: DeploymentFolder, name: str) -> Release:
        found = find(folder, name)
        if (other := next(swaps, None)) is not None:
            publisher.go_to(other)  # as "exchange" it lies elsewhere then
        return found

    monkeypatch.setattr(DeploymentFolder, "find", found_then)
    assert answers(load(publisher.path, release=first.id)) == models[0].answers
    assert answers(load(publisher.path, release=second.id)) == models[1].answers


def test_a_release_that_is_pruned_between_being_found_and_held(
    publisher: Publisher, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publisher.publish(models[0].path)
    publisher.publish_fake()
    publisher.publish_fake()
    find = DeploymentFolder.find

    def found_then(folder: DeploymentFolder, name: str) -> Release:
        found = find(folder, name)
        assert publisher.prune() == [first.id]
        return found

    monkeypatch.setattr(DeploymentFolder, "find", found_then)
    with pytest.raises(SpancatDaemonError, match=f"there is no release '{first.id}'; the newest are"):
        load(publisher.path, release=first.id)


def test_a_process_that_keeps_readers_out_is_said(
    linking: Publisher, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is stopped in the midst of pruning; what hangs for ever tells nobody why."""
    release = linking.publish(models[0].path)
    descriptors = open_descriptors()
    with (release.path / "release.json").open() as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)
        with monkeypatch.context() as patched:
            patched.setattr(lease, "_TURNS", 2)
            said = r"can't be read: a process has an exclusive lock on release\.json"
            with pytest.raises(SpancatDaemonError, match=said):
                load(linking.path)
        threading.Timer(0.05, fcntl.flock, (manifest, fcntl.LOCK_UN)).start()
        assert load(linking.path).path == release.path
    gc.collect()
    assert open_descriptors() == descriptors


def test_a_damaged_manifest(publisher: Publisher, models: Models) -> None:
    release = publisher.publish(models[0].path)
    overwrite(release.path / "release.json", b"{")
    with pytest.raises(SpancatDaemonError, match=r"release\.json: is not JSON.*rollback"):
        load(publisher.path)
    assert not lease.is_leased(publisher.path / "current")


def test_what_does_not_fit(linking: Publisher, models: Models, tmp_path: Path) -> None:
    linking.publish(models[0].path, labels=("GÜTER",))
    with pytest.raises(SpancatDaemonError, match=r"labels of 'spancat' are .*its manifest says"):
        load(linking.path)
    linking.publish(models[0].path)
    with pytest.raises(SpancatDaemonError, match=r"lacks the component 'spancat' .*; it has tok2vec"):
        load(linking.path, config={"nlp.pipeline": ["tok2vec"]})
    assert load(linking.path, exclude="spancat").pipe_names == ["tok2vec"]
    with pytest.raises(TypeError, match="unexpected keyword"):
        load(linking.path, disabled=["spancat"])
    odd = shutil.copytree(models[0].path, tmp_path / "odd")
    config = (odd / "config.cfg").read_text()
    (odd / "config.cfg").write_text(config.replace("spacy.mean_max_reducer.v1", "acme.reducer.v1"))
    linking.publish(odd)
    with pytest.raises(SpancatDaemonError, match=r"needs code that is not here: .*acme\.reducer\.v1"):
        load(linking.path)
    linking.publish(odd, spacy_version=">=4.0.0,<5.0.0")
    with pytest.raises(SpancatDaemonError, match=r"was made for spaCy >=4\.0\.0,<5\.0\.0, and this is 3\."):
        load(linking.path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_as_another_user(models: Models) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        publisher = Publisher(folder / "models")
        publisher.publish(models[0].path)
        expected = models[0].answers

        def work(tell: Callable[[Any], None]) -> Any:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            nlp = load(publisher.path)
            tell(answers(nlp) == expected)
            told = Told()
            hot = HotModel(publisher.path, **told.callbacks)
            tell(hot.wait().sequence)
            tell([told.swap()[1] is None, told.swap()[1] is None])
            folder_of_root = Path("/root/models")
            try:
                load(folder_of_root)
            except SpancatDaemonError as error:
                tell(str(error))
            return nlp

        with Child(work) as child:
            assert child.told()
            assert child.told() == 1
            publisher.publish(models[1].path)
            assert child.told() == [True, False]
            assert "Permission denied; this user needs to" in child.told()
    finally:
        shutil.rmtree(folder)


def test_the_package_stays_light() -> None:
    script = (
        "import sys, spancat_daemon\n"
        "assert not [m for m in sys.modules if m.startswith('spancat_daemon.')]\n"
        "assert 'HotModel' in dir(spancat_daemon)\n"
        "spancat_daemon.load, spancat_daemon.HotModel, spancat_daemon.live\n"
        "print({m.split('.')[0] for m in sys.modules} & {'spacy', 'thinc', 'numpy', 'pydantic', 'structlog'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = spancat_daemon.lod


def test_what_is_loaded_can_be_taken_out(linking: Publisher, models: Models) -> None:
    release = linking.publish(models[0].path)
    assert to_bytes(load(linking.path)) == (release.path / "model.bin").read_bytes()
