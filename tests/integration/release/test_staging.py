"""Staging of really trained pipelines, on file systems that are really full, or really clone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import spacy

from spancat_daemon.checkpoint.contents import plan
from spancat_daemon.checkpoint.settle import Settled, examine, file_clock_ns
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Rejected
from spancat_daemon.release.staging import Lacking, Staged, stage
from tests.pipelines import build, model_bytes, predictions, texts
from tests.unit.release.staging_scene import Scene, contents_of, no_descriptors_lost, sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spancat_daemon.release.folder import Release

MiB = 1 << 20


@dataclass
class Deployed:
    """A checkpoint of a real pipeline and the releases that are made of it."""

    scene: Scene

    def stage(self, previous: Release | None = None) -> Staged:
        with Source.open(self.scene.checkpoint) as source:
            settled = self._settled(source)
            return stage(
                plan(settled, contents="pipeline"),
                source,
                settled.tree,
                staging_path=self.scene.staging,
                previous=previous,
                min_free_bytes=0,
            )

    def publish(self, previous: Release | None = None) -> Release:
        return self.scene.publish(self.stage(previous))

    def save(self, variant: str, generation: int) -> None:
        shutil.rmtree(self.scene.checkpoint)
        build(variant, self.scene.checkpoint, generation=generation)

    def _settled(self, source: Source) -> Settled:
        deadline = time.monotonic() + 120
        while True:
            found = examine(source, writer="spacy", settle_s=0, now_ns=file_clock_ns)
            if isinstance(found, Settled):
                return found
            assert found.kind == "busy", found
            assert time.monotonic() < deadline, found


@pytest.fixture
def deployed(tmp_path: Path) -> Deployed:
    return Deployed(Scene.make(tmp_path, {}))


@pytest.mark.parametrize("variant", ["default", "vectors", "own", "singlelabel"])
def test_a_release_loads_and_predicts_as_the_checkpoint(deployed: Deployed, variant: str) -> None:
    deployed.save(variant, 0)
    release = deployed.publish()
    assert predictions(release.path, texts()) == predictions(deployed.scene.checkpoint, texts())
    component = release.manifest.component
    assert (release.path / "model.bin").read_bytes() == model_bytes(release.path, component)
    assert tuple(spacy.load(release.path).get_pipe(component).labels) == release.manifest.labels  # type: ignore[attr-defined]


def test_the_next_generation_costs_what_changed(deployed: Deployed) -> None:
    deployed.save("vectors", 0)
    first = deployed.publish()
    deployed.save("vectors", 1)
    staged = deployed.stage(first)
    assert set(staged.linked) >= {"vocab/vectors", "vocab/strings.json", "tokenizer", "config.cfg"}
    assert "spancat/model" not in staged.linked
    assert staged.bytes_written == sum(
        digest.bytes
        for path, digest in staged.files.items()
        if path not in staged.linked and path != "model.bin"
    )
    second = deployed.scene.publish(staged)
    assert predictions(second.path, texts()) == predictions(deployed.scene.checkpoint, texts())
    assert predictions(first.path, texts()) != predictions(second.path, texts())


def test_the_same_again_costs_nothing(deployed: Deployed) -> None:
    deployed.save("default", 0)
    first = deployed.publish()
    deployed.save("default", 0)
    staged = deployed.stage(first)
    assert staged.bytes_written == 0
    assert staged.content_sha256 == first.manifest.content_sha256


def test_half_a_model_is_refused(deployed: Deployed) -> None:
    deployed.save("default", 0)
    model = deployed.scene.checkpoint / "spancat" / "model"
    times = model.stat()
    os.truncate(model, times.st_size // 2)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))  # the order of times shows nothing
    with pytest.raises(Rejected, match=r"spancat/model: is cut off"):
        deployed.stage()
    assert deployed.scene.left() == []


@contextmanager
def mounted(kind: str, where: Path, *options: str, device: str = "none") -> Iterator[Path]:
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", kind, *options, device, str(where)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"{kind} can't be mounted: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
class TestFileSystems:
    @pytest.mark.parametrize("size", [300_000, 5 * MiB, 40 * MiB])
    @pytest.mark.parametrize("filler", ["before", "meanwhile"])
    def test_a_full_one(self, tmp_path: Path, size: int, filler: str) -> None:
        data = os.urandom(size)
        scene = Scene.make(tmp_path, {"spancat/model": data})
        with mounted("tmpfs", tmp_path / "small", "-o", f"size={size + 2 * MiB}") as small:
            scene.staging = small / "staging"
            scene.staging.mkdir()
            room = 2 * MiB + size // 2

            def fill() -> bool:
                """Someone else takes the space once it was found to suffice, and half of it is used."""
                if (small / "staging").stat().st_nlink > 2 and not (small / "filler").exists():
                    (small / "filler").write_bytes(bytes(room))
                return False

            expected: type[Exception] = OSError
            when: Callable[[], bool] = fill
            if filler == "before":
                (small / "filler").write_bytes(bytes(room))
                expected, when = Lacking, bool
            with no_descriptors_lost(), pytest.raises(expected) as caught:
                scene.stage(abandoned=when)
            if isinstance(caught.value, OSError):
                assert caught.value.errno == errno.ENOSPC
                assert caught.value.filename.endswith("spancat/model")
            assert scene.left() == []
            (small / "filler").unlink()
            assert scene.stage().model_sha256 == sha256(data)

    @pytest.mark.parametrize("kind", ["xfs", "btrfs"])
    def test_one_that_clones(self, tmp_path: Path, kind: str) -> None:
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"mkfs.{kind} is not installed")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(400 * MiB)
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True)
        with mounted(kind, tmp_path / "clones", "-o", "loop", device=str(image)) as where:
            data = os.urandom(50 * MiB)
            scene = Scene.make(where / "scene", {"spancat/model": data, "small": b"x"})
            os.sync()
            before = os.statvfs(where)
            staged = scene.stage()
            os.sync()
            after = os.statvfs(where)
            assert contents_of(staged.path) == {"spancat/model": data, "small": b"x", "model.bin": data}
            assert staged.model_sha256 == sha256(data)
            assert (before.f_bfree - after.f_bfree) * before.f_frsize < 10 * MiB
