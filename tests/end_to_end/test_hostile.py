"""Checkpoints that nobody should deploy: said clearly, the live release untouched, the daemon up."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.judgement import sound
from tests.pipelines import build
from tests.service import Daemon, configure, run

if TYPE_CHECKING:
    from collections.abc import Callable


def link(checkpoint: Path) -> str:
    (checkpoint / "extra").symlink_to("/etc/passwd")
    return "extra"


def link_in_place_of_a_file(checkpoint: Path) -> str:
    secret = checkpoint.parent / "secret"
    secret.write_bytes((checkpoint / "spancat/model").read_bytes())
    (checkpoint / "spancat/model").unlink()
    (checkpoint / "spancat/model").symlink_to(secret)
    return "spancat/model"


def link_in_place_of_a_folder(checkpoint: Path) -> str:
    (checkpoint / "vocab").rename(checkpoint.parent / "elsewhere")
    (checkpoint / "vocab").symlink_to("../elsewhere")
    return "vocab"


def fifo(checkpoint: Path) -> str:
    (checkpoint / "spancat/model").unlink()
    os.mkfifo(checkpoint / "spancat/model")
    return "spancat/model"


def unix_socket(checkpoint: Path) -> str:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(checkpoint / "s"))
    return "s"


def device(checkpoint: Path) -> str:
    if os.geteuid():
        pytest.skip("making a device node needs root")
    os.mknod(checkpoint / "zero", 0o600 | 0o020000, os.makedev(1, 5))
    return "zero"


def deep_tree(checkpoint: Path) -> str:
    (checkpoint / "/".join("d" * 60)).mkdir(parents=True)
    return "d/d/d"


def large_tree(checkpoint: Path) -> str:
    folder = checkpoint / "many"
    folder.mkdir()
    for number in range(10_500):
        (folder / str(number)).touch()
    return "more than 10,000"


def control_characters(checkpoint: Path) -> str:
    (checkpoint / "new\nline\x1b[31m").touch()
    return "line"


def not_utf8(checkpoint: Path) -> str:
    (checkpoint / os.fsdecode(b"\xff\xfe")).touch()
    return "xff"


def sparse_terabytes(checkpoint: Path) -> str:
    with (checkpoint / "huge").open("wb") as huge:
        try:
            huge.truncate(8 << 40)
        except OSError:
            huge.truncate(1 << 43)
    return "free"


def config_is_none(checkpoint: Path) -> str:
    (checkpoint / "config.cfg").write_bytes(b"\x00\x01 this is no configuration")
    return "config.cfg"


def config_is_huge(checkpoint: Path) -> str:
    with (checkpoint / "config.cfg").open("wb") as file:
        file.truncate(1 << 30)
    return "config.cfg"


def meta_is_nested(checkpoint: Path) -> str:
    (checkpoint / "meta.json").write_bytes(b"[" * 1_000_000)
    return "meta.json"


def truncated_model(checkpoint: Path) -> str:
    path = checkpoint / "tok2vec/model"
    path.write_bytes(path.read_bytes()[:-100])
    return "tok2vec/model"


def no_span_categorizer(checkpoint: Path) -> str:
    config = (checkpoint / "config.cfg").read_text()
    (checkpoint / "config.cfg").write_text(config.replace('factory = "spancat"', 'factory = "textcat"'))
    return "span categorizer"


def climbing_pipe_name(checkpoint: Path) -> str:
    config = (checkpoint / "config.cfg").read_text()
    (checkpoint / "config.cfg").write_text(
        config.replace('["tok2vec", "spancat"]', '["../../../../tmp", "spancat"]')
    )
    return "config.cfg"


def labels_disagree(checkpoint: Path) -> str:
    path = checkpoint / "spancat/cfg"
    path.write_text(path.read_text().replace('"PLACE"', '"PLACE","EXTRA"'))
    return "spancat"


WICKED: list[Callable[[Path], str]] = [
    link,
    link_in_place_of_a_file,
    link_in_place_of_a_folder,
    fifo,
    unix_socket,
    device,
    deep_tree,
    large_tree,
    control_characters,
    not_utf8,
    sparse_terabytes,
    config_is_none,
    config_is_huge,
    meta_is_nested,
    truncated_model,
    no_span_categorizer,
    climbing_pipe_name,
    labels_disagree,
]
SPACY_ORDER = ("tokenizer", "meta.json", "config.cfg", "tok2vec", "spancat", "vocab")


def age(checkpoint: Path) -> None:
    """Gives a checkpoint the times of one save, so that only what is wrong with it can be objected to."""
    order = ("strings.json", "vectors", "key2row", "vectors.cfg", "lookups.bin")
    for number, path in enumerate(
        [*SPACY_ORDER[:3], "tok2vec/cfg", "tok2vec/model", "spancat/cfg", "spancat/model"]
        + [f"vocab/{name}" for name in order]
    ):
        if (checkpoint / path).is_file() and not (checkpoint / path).is_symlink():
            os.utime(checkpoint / path, (1_700_000_000 + number, 1_700_000_000 + number))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its first release, to be copied."""
    folder = tmp_path_factory.mktemp("deployed")
    build("default", folder / "runs/model-best")
    first = run("snapshot", "products", config=configure(folder, on_change=False))
    assert first.returncode == 0, first.stderr
    shutil.rmtree(folder / "runs/model-best")
    return folder


@pytest.mark.parametrize("spoil", WICKED, ids=lambda spoil: spoil.__name__)
def test_is_refused_with_its_reason(tmp_path: Path, deployed: Path, spoil: Callable[[Path], str]) -> None:
    subprocess.run(["cp", "-a", f"{deployed}/.", str(tmp_path)], check=True)
    config = tmp_path / "daemon.toml"
    first = sound(tmp_path / "models/products")["id"]
    checkpoint = build("default", tmp_path / "runs/model-best", generation=1)
    named = spoil(checkpoint)
    age(checkpoint)

    refused = run("snapshot", "products", "--force", config=config)

    assert refused.returncode == 1, refused.stderr
    assert named in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sound(tmp_path / "models/products")["id"] == first


def test_the_daemon_goes_on_through_all_of_them(tmp_path: Path) -> None:
    checkpoint = build("default", tmp_path / "runs/model-best")
    with Daemon(configure(tmp_path)) as daemon:
        (first,) = daemon.wait_for("release.published")
        for number, spoil in enumerate(WICKED):
            fresh = build("default", tmp_path / f"next-{number}", generation=number % 3)
            spoil(fresh)
            age(fresh)
            since = len(daemon.events)
            checkpoint.rename(tmp_path / f"old-{number}")
            fresh.rename(checkpoint)
            event, *_ = daemon.wait(
                lambda event: event["event"] in {"snapshot.rejected", "snapshot.failed", "disk.low"},
                since=since,
            )
            assert event["reason"], spoil.__name__
            assert event["path"], spoil.__name__
        assert not [event for event in daemon.events if event["event"] == "release.overwrite"]
        checkpoint.rename(tmp_path / "old")
        build("default", checkpoint, generation=1)
        daemon.wait_for("release.overwrite")
    assert first["release"] != sound(tmp_path / "models/products")["id"]


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("acting as another user needs root")
    checkpoint = build("default", tmp_path / "runs/model-best")
    (checkpoint / "tok2vec/model").chmod(0)
    config = configure(tmp_path)
    (tmp_path / "var").mkdir()
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.owner() == "root" and folder != Path("/tmp"):  # noqa: S108  # its mode is the system's
            folder.chmod(folder.stat().st_mode | 0o755)
    for path in (tmp_path / "var", tmp_path):
        shutil.chown(path, "nobody")
    unprivileged = subprocess.run(
        [
            "setpriv",
            "--reuid=nobody",
            "--clear-groups",
            "--",
            *_program("-c", config, "snapshot", "products"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert unprivileged.returncode == 1, unprivileged.stderr
    assert "tok2vec/model" in unprivileged.stderr
    assert "Permission denied" in unprivileged.stderr


def _program(*arguments: str | Path) -> list[str]:
    from tests.service import command  # noqa: PLC0415

    return command(*arguments)


def test_a_full_disk_pauses_and_publishing_goes_on_when_there_is_room(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        checkpoint = build("default", tmp_path / "runs/model-best")
        ballast = disk / "ballast"
        config = configure(tmp_path, deploy="disk/models")
        config.write_text(config.read_text().replace("1MiB", "0B"))
        assert run("snapshot", "products", config=config).returncode == 0
        live = sound(disk / "models")["id"]
        _fill(ballast)
        with Daemon(config) as daemon:
            checkpoint.rename(tmp_path / "old")
            build("default", checkpoint, generation=1)
            daemon.wait(lambda event: event["event"] in {"snapshot.failed", "disk.low"})
            assert (disk / "models/current").resolve().name == live
            ballast.unlink()
            daemon.wait_for("release.overwrite")
        sound(disk / "models")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _fill(ballast: Path) -> None:
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for piece in (b"\0" * 4096, b"\0"):
            with contextlib.suppress(OSError):
                while os.write(fd, piece):
                    pass
    finally:
        os.close(fd)
