"""Keeps and forgets rejected snapshots, and is killed before each of its system calls.

Run as ``python -m tests.unit.release.dying_keeper FOLDER`` from the project's root: it forks, which only a
small process without threads may do.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spancat_daemon.release.manifest import parse_release_id
from spancat_daemon.release.rejects import forget, keep, rejected
from spancat_daemon.release.survey import names_in
from tests.integration.release.fakes import judge, whole
from tests.integration.release.publisher import dies, do, start
from tests.unit.release.staging_scene import MODEL, Scene, manifest_of

if TYPE_CHECKING:
    from spancat_daemon.release.folder import DeploymentFolder

ACTIONS = ("keep", "keep the same", "keep none", "forget")


class Keeper:
    """A deployment folder with one release, and three rejected snapshots of contents a, b and c."""

    def __init__(self, root: Path) -> None:
        self.path = root / "models"
        self.checkpoint = root / "model-last"
        folder, history, _ = start(self.path)
        do(folder, history, "publish", "symlink")
        history.close()
        self.ids = [self.reject(content, last=3) for content in (b"a", b"b", b"c")]

    def reject(self, content: bytes, *, last: int) -> str:
        folder, history, _ = start(self.path)
        scene = Scene(self.checkpoint, folder.staging_path, folder.releases_path)
        for path, data in {MODEL: content, "vocab/strings.json": b"[]"}.items():
            scene.write(path, data)
        staged = scene.stage(previous=folder.live())
        manifest = manifest_of(staged, folder.next_sequence(history=history))
        history.close()
        keep(folder, staged, manifest, last=last)
        return manifest.id

    def act(self, action: str) -> None:
        if action == "forget":
            forget(start(self.path)[0], self.ids[2])
        else:
            content = b"b" if action == "keep the same" else b"d"
            self.reject(content, last={"keep": 2, "keep none": 0}.get(action, 3))


def check(keeper: Keeper, action: str, *, done: bool) -> None:
    """What must be so at any moment, and what when it is done."""
    folder, history, _ = start(keeper.path)
    judge(folder)
    a, b, c = keeper.ids
    there = {release.id for release in rejected(folder)}
    new = there - {a, b, c}
    assert there == set(_whole(folder)), "something lies there that is not whole"
    assert folder.next_sequence(history=history) > (parse_release_id(max(keeper.ids)) or 0)
    history.close()
    if action == "keep":
        assert len(new) == 1 or not (done or new)
        assert there >= {c}
        assert new or {a, b} <= there, "older ones go only for a newer one"
        assert not done or there == {c} | new
    elif action == "keep the same":
        assert there >= {a, c}
        assert len(there & {b} | new) in ({1} if done else {1, 2})
        assert bool(new) or not done
    elif action == "keep none":
        assert not new
        assert not (done and there)
    else:
        assert there - {c} == {a, b}
        assert not (done and c in there)


def _whole(folder: DeploymentFolder) -> list[str]:
    found = []
    for name in names_in(folder.rejected_path):
        if (folder.rejected_path / name).is_dir():
            fd = os.open(folder.rejected_path / name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found.append(whole(fd).id)
            finally:
                os.close(fd)
    return found


def every_point(root: Path, action: str) -> int:
    for point in range(1, 1000):
        keeper = Keeper(root / str(point))
        folder, _, _ = start(keeper.path)
        died = dies(lambda keeper=keeper: keeper.act(action), point)  # type: ignore[misc]
        _whole(folder)  # without any recovery
        check(keeper, action, done=not died)
        if not died:
            return point - 1
        keeper.act(action)
        check(keeper, action, done=True)
    raise AssertionError("it never ends")


if __name__ == "__main__":
    for number, name in enumerate(ACTIONS):
        points = every_point(Path(sys.argv[1]) / str(number), name)
        sys.stdout.write(json.dumps({"action": name, "points": points}) + "\n")
