"""What is saved on its way into the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from spancat_daemon.errors import UsageError, Vanished
from spancat_daemon.release import incoming


class TestIncoming:
    @pytest.mark.parametrize("name", ["", ".", "..", "../staging", "1-0123456789abcdef/", "one"])
    def test_takes_no_other_names(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="is no name of something saved"):
            incoming.take(tmp_path, name)

    @pytest.mark.parametrize("kind", ["link", "file"])
    def test_takes_directories_of_its_own_alone(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "1-0123456789abcdef"
        path.symlink_to("/") if kind == "link" else path.touch()
        with pytest.raises(UsageError, match="is no directory of its own"):
            incoming.take(tmp_path, path.name)
        assert incoming.sweep(tmp_path) == [path.name]
        assert Path("/usr").exists()

    def test_is_swept_when_nobody_holds_it(self, tmp_path: Path) -> None:
        first = incoming.make(tmp_path)
        second = incoming.take(tmp_path, first.name)
        first.release()
        assert incoming.sweep(tmp_path) == []
        second.release()
        assert incoming.sweep(tmp_path) == [second.name]
        with pytest.raises(Vanished):
            incoming.take(tmp_path, first.name)
