"""Folders of others, and on disks that come and go."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon import save
from spancat_daemon.deploying.whereabouts import Elsewhere
from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.release.survey import names_in
from tests.faults.loop_device import Kind, Mounted, lacks
from tests.judgement import sound
from tests.service import Daemon, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spacy.language import Language


@pytest.fixture(
    params=[
        pytest.param(
            "ext4", marks=[pytest.mark.root, pytest.mark.skipif(bool(lacks("ext4")), reason=lacks("ext4"))]
        )
    ]
)
def mounted(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mounted]:
    """Another disk than the one where it is remembered what was saved where."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "fs").mkdir()
    with Mounted(tmp_path / "fs", Kind(request.param)) as mounted:
        yield mounted


def test_a_disk_that_is_not_mounted_is_not_taken_for_a_new_folder(nlp: Language, mounted: Mounted) -> None:
    deploy = mounted.path / "models/products"
    first = save(nlp, deploy, verify="structure")
    mounted.unmount()
    with pytest.raises(Elsewhere, match=r"was on another disk.*mount it again; .* delete /") as caught:
        save(nlp, deploy, verify="structure")
    assert names_in(mounted.path) == []
    mounted.mount()
    second = save(nlp, deploy, verify="structure")
    assert second.sequence == first.sequence + 1
    assert sound(deploy)["id"] == second.id
    shutil.rmtree(deploy)  # on purpose, as anybody may
    assert save(nlp, deploy, verify="structure").sequence == 1
    mounted.unmount()
    with pytest.raises(Elsewhere):
        save(nlp, deploy, verify="structure")
    Path(caught.value.hint.rpartition("delete ")[2]).unlink()
    assert save(nlp, deploy, verify="structure").sequence == 1
    shutil.rmtree(mounted.path / "models")
    mounted.mount()


def test_a_disk_that_was_saved_to_through_a_daemon(nlp: Language, mounted: Mounted, tmp_path: Path) -> None:
    deploy = mounted.path / "products"
    with Daemon(configure(tmp_path, deploy=str(deploy))):
        assert save(nlp, deploy).sequence == 1
    mounted.unmount()
    with pytest.raises(Elsewhere, match="was on another disk"):
        save(nlp, deploy, verify="structure")
    assert names_in(mounted.path) == []


def test_nothing_is_remembered_of_a_folder_on_the_disk_of_the_memory(
    nlp: Language, deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    save(nlp, deploy, verify="structure")
    shutil.rmtree(deploy)
    assert save(nlp, deploy, verify="structure").sequence == 1
    assert not (tmp_path / "state").exists()


@contextmanager
def _as(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_folders_of_others(nlp: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(0o755)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(UsageError, match=r"belongs to nobody.*do this as nobody"):
        save(nlp, theirs)
    assert names_in(theirs) == []
    with _as(65534), pytest.raises(SpancatDaemonError, match=r"Permission denied.*belongs to root"):
        save(nlp, ours)
    with _as(65534):
        assert save(nlp, theirs / "models", verify="structure").sequence == 1
    monkeypatch.setenv("XDG_STATE_HOME", "/root/.local/state")  # as after `runuser` without `--login`
    with _as(65534):
        assert save(nlp, theirs / "models", verify="structure").sequence == 2
