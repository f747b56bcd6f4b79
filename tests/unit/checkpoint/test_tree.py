"""Whatever lies in a checkpoint's directory is read as it stands, or refused by name; never followed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.checkpoint import tree
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Moved, Rejected, Vanished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOBODY = 65534


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    root = tmp_path / "model-last"
    (root / "vocab").mkdir(parents=True)
    (root / "config.cfg").write_text("[nlp]")
    (root / "vocab/lookups.bin").write_bytes(b"\x80")
    return root


@contextlib.contextmanager
def _unprivileged() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def _rejected(checkpoint: Path) -> Rejected:
    with Source.open(checkpoint) as source, pytest.raises(Rejected) as caught:
        source.scan()
    return caught.value


def test_lists_files_and_directories_sorted_with_their_stamps(checkpoint: Path) -> None:
    (checkpoint / "a").write_bytes(b"123")
    with Source.open(checkpoint) as source:
        found = source.scan()
    assert [file.path for file in found.files] == ["a", "config.cfg", "vocab/lookups.bin"]
    assert found.directories == ("vocab",)
    assert found.total_bytes == 3 + 5 + 1
    status = (checkpoint / "a").stat()
    stamp = found.by_path["a"].stamp
    assert (stamp.device, stamp.inode, stamp.size) == (status.st_dev, status.st_ino, 3)
    assert (stamp.mtime_ns, stamp.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


def test_the_path_itself_may_lead_through_links(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    with Source.open(tmp_path / "link") as source:
        assert len(source.scan().files) == 2


def _symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _link_to_directory(path: Path) -> None:
    path.symlink_to("/etc")


def _socket(path: Path) -> None:
    # A socket's address is shorter than a path can be.
    here = os.getcwd()  # noqa: PTH109  # to return to
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("needs root")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_symlink, "symbolic link"),
        (_link_to_directory, "symbolic link"),
        (os.mkfifo, "FIFO"),
        (_socket, "socket"),
        (_device, "character device"),
    ],
)
@pytest.mark.parametrize("place", ["extra", "vocab/extra"])
def test_refuses_what_is_no_file(
    checkpoint: Path, make: Callable[[Path], None], kind: str, place: str
) -> None:
    make(checkpoint / place)
    error = _rejected(checkpoint)
    assert error.where == f"{checkpoint}/{place}"
    assert kind in error.reason
    assert error.hint


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"line\nbreak", b"escape\x1b[2J", "sep\u2028".encode(), b"\x7f"]
)
def test_refuses_names_that_no_message_or_json_can_hold(checkpoint: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(checkpoint / "vocab") + b"/" + name)).touch()
    error = _rejected(checkpoint)
    assert str(error).isprintable()
    error.where.encode()


@pytest.mark.parametrize("name", ["späns", "日本語", "with space", "a\u00a0b", "🚪", "-rf", ".hidden"])
def test_accepts_unusual_names(checkpoint: Path, name: str) -> None:
    (checkpoint / name).touch()
    with Source.open(checkpoint) as source:
        assert name in source.scan().by_path


def test_refuses_too_many_files(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILES", 20)
    for number in range(16):
        (checkpoint / str(number)).touch()
    with Source.open(checkpoint) as source:
        assert len(source.scan().files) == 18
    (checkpoint / "more").mkdir()
    (checkpoint / "another").mkdir()
    assert "more than 20" in _rejected(checkpoint).reason


def test_refuses_a_deep_tree_and_a_long_path(checkpoint: Path) -> None:
    deep = checkpoint / "/".join("d" * tree.MAX_DEPTH)
    deep.mkdir(parents=True)
    with Source.open(checkpoint) as source:
        assert len(source.scan().directories) == tree.MAX_DEPTH + 1
    (deep / "d").mkdir()
    assert "deeper" in _rejected(checkpoint).reason
    shutil.rmtree(checkpoint / "d")
    (checkpoint / "/".join(["x" * 250] * 4)).mkdir(parents=True)
    (checkpoint / "/".join(["x" * 250] * 4) / ("y" * 30)).touch()
    assert "path" in _rejected(checkpoint).reason


def test_nothing_there_is_vanished_and_a_file_is_refused(checkpoint: Path) -> None:
    with pytest.raises(Vanished):
        Source.open(checkpoint / "none")
    with pytest.raises(Rejected, match="not a directory"):
        Source.open(checkpoint / "config.cfg")
    with pytest.raises(Rejected, match="not a directory"):
        Source.open(checkpoint / "config.cfg/below")


def test_a_removed_directory_is_vanished(checkpoint: Path) -> None:
    with Source.open(checkpoint) as source:
        before = source.scan()
        shutil.rmtree(checkpoint)
        with pytest.raises(Vanished):
            source.scan()
        with pytest.raises(Vanished):
            source.read_small(before.files[0])


def test_what_must_not_be_read_is_named_with_the_reason(checkpoint: Path) -> None:
    secret = checkpoint / "config.cfg"
    with Source.open(checkpoint) as source:
        found = source.scan()
        secret.chmod(0)
        found = source.scan()
        with _unprivileged(), pytest.raises(Rejected) as caught:
            source.read_small(found.by_path["config.cfg"])
        assert caught.value.where == str(secret)
        assert "Permission denied" in caught.value.reason
        (checkpoint / "vocab").chmod(0)
        with _unprivileged(), pytest.raises(Rejected) as caught:
            source.scan()
        assert caught.value.where == f"{checkpoint}/vocab"
        (checkpoint / "vocab").chmod(0o755)
    checkpoint.chmod(0)
    checkpoint.parent.chmod(0o755)
    with _unprivileged(), pytest.raises(Rejected, match="Permission denied"):
        Source.open(checkpoint)
    checkpoint.chmod(0o755)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _replace(path: Path) -> None:
    data = path.read_bytes()
    path.rename(path.with_name("old"))
    path.write_bytes(data)


def _become_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change", [Path.unlink, Path.touch, _grow, _replace, _become_link, _become_fifo, _become_directory]
)
def test_a_file_that_changed_since_is_moved_and_never_read(
    checkpoint: Path, change: Callable[[Path], None]
) -> None:
    path = checkpoint / "vocab/lookups.bin"
    with Source.open(checkpoint) as source:
        found = source.scan()
        source.unchanged(found)
        change(path)
        with pytest.raises(Moved, match="lookups"):
            source.open_file(found.by_path["vocab/lookups.bin"])
        with pytest.raises((Moved, Rejected)):
            source.unchanged(found)


def test_a_directory_that_became_a_link_is_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    with Source.open(checkpoint) as source:
        found = source.scan()
        (checkpoint / "vocab").rename(tmp_path / "elsewhere")
        (checkpoint / "vocab").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Moved):
            source.open_file(found.by_path["vocab/lookups.bin"])


def test_new_files_and_directories_are_changes(checkpoint: Path) -> None:
    with Source.open(checkpoint) as source:
        found = source.scan()
        (checkpoint / "empty").mkdir()
        with pytest.raises(Moved):
            source.unchanged(found)
        (checkpoint / "empty").rmdir()
        source.unchanged(found)
        (checkpoint / "new").touch()
        with pytest.raises(Moved, match="new"):
            source.unchanged(found)


def test_small_files_only(checkpoint: Path) -> None:
    with (checkpoint / "config.cfg").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with Source.open(checkpoint) as source:
        found = source.scan()
        assert found.total_bytes > 1 << 40
        with pytest.raises(Rejected, match="make sense"):
            source.read_small(found.by_path["config.cfg"])


def test_leaves_no_descriptor_open(checkpoint: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    (checkpoint / "vocab/link").symlink_to("x")
    for _ in range(3):
        _rejected(checkpoint)
    (checkpoint / "vocab/link").unlink()
    with Source.open(checkpoint) as source:
        file = source.scan().by_path["vocab/lookups.bin"]
        assert source.read_small(file) == b"\x80"
        (checkpoint / "vocab/lookups.bin").unlink()
        with pytest.raises(Moved):
            source.open_file(file)
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
