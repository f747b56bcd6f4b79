"""A match of a glob before, and after, there is something of it to release."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.daemon.holdings import Holdings
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.deploying.prospect import Prospect
from spancat_daemon.deploying.whereabouts import Elsewhere
from spancat_daemon.release.folder import FolderBusy
from spancat_daemon.verify.warm import WarmLoaders
from tests.pipelines import build
from tests.service import configure, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.daemon.holdings import Held
    from spancat_daemon.deploying.deployment import Result
    from spancat_daemon.deploying.snapshot import Trigger
    from spancat_daemon.observe.logs import Logger


class Log:
    def __init__(self) -> None:
        self.told: list[str] = []

    def bind(self, **_fields: Any) -> Self:
        return self

    def info(self, event: str, **_fields: Any) -> None:
        self.told.append(event)

    warning = error = exception = info


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def holdings(tmp_path: Path, log: Log) -> Iterator[Holdings]:
    with WarmLoaders(at_most=1) as loaders:
        made = Holdings(
            log=cast("Logger", log),
            has_logged=lambda _rule, _sha256: False,
            loaders=loaders,
            wake=lambda: None,
            state_dir=tmp_path / "var",
            control=tmp_path / "control.sock",
        )
        yield made
        for held in made.all():
            held.close()


def _prospect(folder: Path, holdings: Holdings, *, writer: str = "spacy", hold: bool = True) -> Prospect:
    config = configure(folder, source="runs/*/model-best", deploy="models/{1}", writer=writer)
    holdings.follow(targets(load(config)), min_free_bytes=0, hold=hold)
    (held,) = holdings.all()
    assert isinstance(held, Prospect)
    return held


def _begun(folder: Path) -> Path:
    """A checkpoint of which the trainer has written no more than the beginning."""
    whole = build("default", folder / "whole")
    checkpoint = folder / "runs/a/model-best"
    checkpoint.mkdir(parents=True)
    shutil.copy2(whole / "meta.json", checkpoint)
    return checkpoint


def _looked(held: Held, trigger: Trigger) -> Result:
    """What comes of a checkpoint that nobody writes any more, once the clock of its files has moved on."""
    results: list[Result] = []

    def settled() -> bool:
        results.append(held.snapshot(trigger))
        return results[-1].kind != "busy"

    until(settled)
    return results[-1]


@pytest.mark.parametrize("writer", ["spacy", "any"])
def test_nothing_is_made_before_there_is_something_to_release(
    tmp_path: Path, holdings: Holdings, writer: str
) -> None:
    checkpoint = _begun(tmp_path)
    prospect = _prospect(tmp_path, holdings, writer=writer)
    found = prospect.snapshot("startup")
    assert (found.status, found.kind, found.release) == ("unsettled", "incomplete", None)
    assert found.reason
    assert found.tree is not None
    assert [file.path for file in found.tree.files] == ["meta.json"]
    shutil.rmtree(checkpoint)
    assert prospect.snapshot("change").status == "vanished"
    assert prospect.live_id() is None
    assert holdings.opened() == []
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "var").exists()


def test_a_whole_checkpoint_is_released_and_the_folder_held_from_then_on(
    tmp_path: Path, holdings: Holdings, log: Log
) -> None:
    checkpoint = _begun(tmp_path)
    prospect = _prospect(tmp_path, holdings)
    assert prospect.snapshot("startup").status == "unsettled"
    shutil.copytree(tmp_path / "whole", checkpoint, dirs_exist_ok=True)
    published = _looked(prospect, "change")
    assert (published.status, published.reason) == ("published", "")
    assert log.told == ["checkpoint.changed", "snapshot.started", "release.published"]
    assert prospect.live_id() == published.release
    assert holdings.opened() == [prospect.opened]
    with pytest.raises(FolderBusy), _another(tmp_path, log):
        pass
    assert prospect.snapshot("change").status == "unchanged"


def test_a_folder_that_is_there_is_looked_after_whatever_the_checkpoint_is_like(
    tmp_path: Path, holdings: Holdings, log: Log
) -> None:
    checkpoint = _begun(tmp_path)
    shutil.copytree(tmp_path / "whole", checkpoint, dirs_exist_ok=True)
    with _another(tmp_path, log) as other:
        live = _looked(other, "manual").release
        assert live is not None
        left = other.folder.staging_path / "left-by-a-crash"
        left.mkdir()
    (checkpoint / "config.cfg").unlink()
    prospect = _prospect(tmp_path, holdings)
    assert prospect.snapshot("startup").status == "unsettled"
    assert not left.exists()
    assert prospect.live_id() == live
    with pytest.raises(FolderBusy), _another(tmp_path, log):
        pass


def test_a_folder_that_is_on_another_disk_as_far_as_is_remembered_is_not_made_anew(
    tmp_path: Path, holdings: Holdings
) -> None:
    checkpoint = _begun(tmp_path)
    shutil.copytree(tmp_path / "whole", checkpoint, dirs_exist_ok=True)
    prospect = _prospect(tmp_path, holdings)
    assert _looked(prospect, "startup").status == "published"
    prospect.close()
    holdings.follow([], min_free_bytes=0, hold=False)
    (remembered,) = (tmp_path / "var/folders").iterdir()
    text = (
        remembered.read_text().replace('"inside":"', '"inside":"/elsewhere').replace('"boot":"', '"boot":"x')
    )
    remembered.write_text(text)
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(Elsewhere):
        _prospect(tmp_path, holdings)
    again = _prospect(tmp_path, holdings, hold=False)
    refused = again.snapshot("startup")
    assert refused.status == "failed"
    assert "another disk" in refused.reason
    assert not (tmp_path / "models").exists()


def test_one_that_is_given_up_makes_nothing_any_more(tmp_path: Path, holdings: Holdings) -> None:
    checkpoint = _begun(tmp_path)
    shutil.copytree(tmp_path / "whole", checkpoint, dirs_exist_ok=True)
    prospect = _prospect(tmp_path, holdings)
    prospect.abandon()
    assert prospect.snapshot("change").status == "abandoned"
    assert prospect.open().snapshot("change").status == "abandoned"
    assert prospect.comes_to_rest(0.0)


def _another(folder: Path, log: Log) -> Deployment:
    """What another process would have of the same folder."""
    (target,) = (
        targets(load(folder / "daemon.toml")) if (folder / "daemon.toml").exists() else _targets(folder)
    )
    return Deployment(
        target, min_free_bytes=0, log=cast("Logger", log), loaders=WarmLoaders(at_most=1), holder="another"
    )


def _targets(folder: Path) -> Any:
    return targets(load(configure(folder, source="runs/*/model-best", deploy="models/{1}")))
