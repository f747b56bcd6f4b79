"""`logs` as a process: its output, its ends, and following a log that is written and rotated."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.cli.logs import show_logs
from spancat_daemon.config.model import LogSettings
from spancat_daemon.errors import SpancatDaemonError, UsageError
from spancat_daemon.observe import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 120


class FakeConfiguration:
    """The two attributes of the configuration that are looked at."""

    def __init__(self, file: Path | None) -> None:
        self.path = Path("/etc/daemon.toml")
        self.log = LogSettings.model_construct(file=file)


def show(file: Path | None, **options: Any) -> None:
    defaults: dict[str, Any] = {"follow": False, "rules": (), "events": (), "as_json": False, "lines": 50}
    show_logs(FakeConfiguration(file), **{**defaults, **options})  # type: ignore[arg-type]  # all that it needs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.log"
    with (tmp_path / "null").open("w") as nowhere:
        output = logs.configure(LogSettings.model_construct(file=path, format="json"), stream=nowhere)
        say = logs.get_logger()
        say.info("daemon.ready")
        say.info("release.overwrite", rule="products", release="000002-20261122T113045Z-3f2a9c1b", bytes=5)
        say.info("release.published", rule="products/run-1", release="000001-20261122T113045Z-3f2a9c1b")
        say.warning("snapshot.rejected", rule="products-old", reason="\x1b[2Jno span categorizer\nat all")
        output.close()
    with path.open("ab") as raw:
        raw.write(b"Traceback \x1b[31m(most\n[1, 2]\n\xff\xfe\n")
    return path


def events(text: str) -> list[str]:
    return [line.split()[3] for line in text.splitlines()]


def test_one_readable_line_for_each_event(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(log)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 3)[-1] for line in lines[:4]] == [
        "daemon.ready",
        "release.overwrite products 000002 5 B",
        "release.published products/run-1 000001",
        "snapshot.rejected products-old — \\x1b[2Jno span categorizer\\nat all",
    ]
    assert lines[4:] == [
        "not an event: Traceback \\x1b[31m(most",
        "not an event: [1, 2]",
        "not an event: \\xff\\xfe",
    ]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"rules": ["products"]}, ["release.overwrite", "release.published"]),
        ({"rules": ["products/run-1"]}, ["release.published"]),
        ({"rules": ["products/run-1", "products-old"]}, ["release.published", "snapshot.rejected"]),
        ({"events": ["release.overwrite"]}, ["release.overwrite"]),
        ({"events": ["release.*"], "lines": 1}, ["release.published"]),
        ({"rules": ["products"], "lines": None}, ["release.overwrite", "release.published"]),
        ({"rules": ["products"], "lines": 0}, []),
        ({"rules": ["nobody"]}, []),
    ],
)
def test_selection(
    log: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], shown: list[str]
) -> None:
    show(log, **options)
    assert events(capsys.readouterr().out) == shown


def test_json_is_json_and_harmless(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(log, as_json=True, lines=None)
    out = capsys.readouterr().out
    assert [json.loads(line)["event"] for line in out.splitlines()][-4:] == [
        "snapshot.rejected",
        *["log.malformed"] * 3,
    ]
    assert "\x1b" not in out


def test_without_a_log_file_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"journalctl -u spancat-daemon -o cat \| spancat-daemon logs"):
        show(None)
    with pytest.raises(UsageError, match="the log file is not there"):
        show(tmp_path / "missing")
    with pytest.raises(SpancatDaemonError, match="can't be read"):
        show(tmp_path)


@contextmanager
def command(
    *arguments: str, stdout: int = subprocess.PIPE, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    script = textwrap.dedent(
        """
        import json, sys
        from tests.integration.observe.test_logs_command import show
        from pathlib import Path
        options = json.loads(sys.argv[1])
        file = options.pop("file")
        show(Path(file) if file else None, **options)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=stdout,
        stdin=stdin,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_lines(descriptor: int, count: int) -> list[str]:
    data = b""
    deadline = time.monotonic() + DEADLINE_S
    while data.count(b"\n") < count:
        ready, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"only {data!r} came"
        data += os.read(descriptor, 65536)
    return data.decode().splitlines()


def options(file: Path | None, **more: Any) -> str:
    return json.dumps({"file": str(file) if file else None, **more})


def test_following_through_a_rotation_until_ctrl_c(log: Path) -> None:
    with command(options(log, follow=True, lines=1, events=["daemon.*"])) as process:
        assert process.stdout is not None
        assert events(read_lines(process.stdout.fileno(), 1)[0]) == ["daemon.ready"]
        with Path(os.devnull).open("w") as nowhere:
            output = logs.configure(LogSettings.model_construct(file=log, format="json"), stream=nowhere)
            say = logs.get_logger()
            say.info("daemon.one")
            assert events(read_lines(process.stdout.fileno(), 1)[0]) == ["daemon.one"]
            log.rename(log.with_name("daemon.log.1"))
            say.info("daemon.two")
            output.reopen()
            say.info("daemon.three")
            output.close()
        assert [events(line)[0] for line in read_lines(process.stdout.fileno(), 2)] == [
            "daemon.two",
            "daemon.three",
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("follow", [True, False])
def test_a_reader_that_goes_away_ends_it_quietly(log: Path, follow: bool) -> None:
    with log.open("a") as more:
        more.writelines(f'{{"event":"x","number":{number},"pad":"{"y" * 500}"}}\n' for number in range(2000))
    reader, writer = os.pipe()
    with command(options(log, follow=follow, lines=None), stdout=writer) as process:
        os.close(writer)
        read_lines(reader, 1)
        os.close(reader)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_quiet_follower_ends_when_its_reader_does(log: Path) -> None:
    reader, writer = os.pipe()
    with command(options(log, follow=True, lines=1), stdout=writer) as process:
        os.close(writer)
        read_lines(reader, 1)
        os.close(reader)  # nothing is logged any more
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("source", ["-", None])
def test_the_journal_can_be_piped_in(log: Path, source: str | None) -> None:
    reader, writer = os.pipe()
    with command(options(None, source=source, lines=2, rules=["products"]), stdin=reader) as process:
        os.close(reader)
        journal = log.read_bytes().replace(b'{"timestamp', b'<6>{"timestamp', 2)
        os.write(writer, journal)
        os.close(writer)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (events(out.decode()), err) == (["release.overwrite", "release.published"], b"")


def on_terminal(log: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with command(options(log), stdout=theirs) as process:
        os.close(theirs)
        lines = read_lines(ours, 7)
        assert process.wait(DEADLINE_S) == 0
    os.close(ours)
    return "\n".join(lines)


def test_colour_on_a_terminal_unless_it_is_not_wanted(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = on_terminal(log, {}, monkeypatch)
    assert "\x1b[32m•\x1b[0m" in coloured
    assert "\x1b[2J" not in coloured
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(log, plain, monkeypatch)


def test_an_output_that_knows_no_umlauts(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with command(options(log)) as process:
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (len(out.splitlines()), err) == (7, b"")
