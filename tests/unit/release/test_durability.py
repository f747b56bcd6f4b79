from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.release import durability
from spancat_daemon.release.durability import DURABLE, rename_exchange, rename_noreplace
from tests.unit.release.staging_scene import no_descriptors_lost

if TYPE_CHECKING:
    from pathlib import Path


def test_exchange_swaps_a_link_with_a_directory(tmp_path: Path) -> None:
    link, directory = tmp_path / "current", tmp_path / "release"
    directory.mkdir()
    (directory / "file").touch()
    link.symlink_to("elsewhere")
    rename_exchange(link, directory)
    assert (link / "file").is_file()
    assert not link.is_symlink()
    assert directory.readlink().name == "elsewhere"


def test_exchange_needs_both(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(FileNotFoundError) as caught:
        rename_exchange(tmp_path / "a", tmp_path / "b")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "a").exists()


def test_noreplace_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        rename_noreplace(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").rmdir()
    rename_noreplace(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a"
    assert not (tmp_path / "a").exists()


def test_names_of_any_bytes(tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"\xff\xfe")
    (tmp_path / "a").touch()
    rename_noreplace(tmp_path / "a", strange)
    assert strange.exists()


def test_a_c_library_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability, "_renameat2", None)
    with pytest.raises(OSError, match="renameat2") as caught:
        rename_exchange(tmp_path / "a", tmp_path / "b")
    assert caught.value.errno == errno.ENOSYS


def test_syncs_report_what_the_system_says(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # pipes can't be synced
    try:
        for sync in (DURABLE.sync_file, DURABLE.sync_data, DURABLE.sync_directory):
            with pytest.raises(OSError, match="Invalid argument"):
                sync(writing)
        DURABLE.start_writeback(writing)  # promises nothing, so it fails at nothing
    finally:
        os.close(reading)
        os.close(writing)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        DURABLE.sync_directory_at(tmp_path / "file")


def test_syncs_files_and_directories(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"x")
        DURABLE.start_writeback(file.fileno())
        DURABLE.sync_data(file.fileno())
        DURABLE.sync_file(file.fileno())
    with no_descriptors_lost():
        DURABLE.sync_directory_at(tmp_path)
