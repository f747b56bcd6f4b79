from __future__ import annotations

import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
import structlog

from spancat_daemon.config.model import LogSettings
from spancat_daemon.errors import UsageError
from spancat_daemon.observe import logs
from spancat_daemon.observe.outputs import FileOutput, StreamOutput

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def logging_to(stream: TextIO, **settings: Any) -> Iterator[logs.LogOutput]:
    output = logs.configure(LogSettings.model_construct(**{"format": "json", **settings}), stream=stream)
    try:
        yield output
    finally:
        output.close()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        try:
            yield reader, stream
        finally:
            os.close(reader)


def read_available(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    data = b""
    try:
        while chunk := os.read(descriptor, 1 << 20):
            data += chunk
    except BlockingIOError:
        pass
    return data.decode()


def test_first_fields_come_first_and_the_time_is_utc_with_microseconds() -> None:
    stream = StringIO()
    with logging_to(stream):
        logs.get_logger(release="x").warning("watch.lost", path=Path("/x"), rule="products")
    assert stream.getvalue().count("\n") == 1
    event = json.loads(stream.getvalue())
    assert list(event) == ["timestamp", "level", "event", "rule", "release", "path"]
    assert {**event, "timestamp": ""} == {
        "timestamp": "",
        "level": "warning",
        "event": "watch.lost",
        "rule": "products",
        "release": "x",
        "path": "/x",
    }
    moment = datetime.strptime(event["timestamp"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert len(event["timestamp"]) == len("2026-11-22T11:30:45.123456Z")
    assert event["timestamp"].endswith("Z")


def test_a_level_changed_at_reload_holds_for_loggers_that_are_cached() -> None:
    log = logs.get_logger()
    bound = log.bind(rule="r")
    first, second, third = StringIO(), StringIO(), StringIO()
    with logging_to(first, level="info"):
        log.debug("hidden")
        bound.info("shown")
    with logging_to(second, level="debug"):
        log.debug("shown")
        bound.debug("shown too")
    with logging_to(third, level="error"):
        bound.warning("hidden")
        log.error("shown")
    assert [event["event"] for event in events(first.getvalue())] == ["shown"]
    assert [event["event"] for event in events(second.getvalue())] == ["shown", "shown too"]
    assert [event["event"] for event in events(third.getvalue())] == ["shown"]


def test_before_configure_and_after_close_nothing_is_said_and_nothing_raises(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.get_logger().error("nobody hears")
    with logging_to(sys.stdout):
        logs.get_logger().info("heard")
    logs.get_logger().error("nobody hears")
    assert [event["event"] for event in events(capfd.readouterr().out)] == ["heard"]


def test_fields_bound_to_a_thread() -> None:
    stream = StringIO()
    with logging_to(stream), logs.bound(rule="products"):
        logs.get_logger().info("inside")
        other = threading.Thread(target=logs.get_logger().info, args=("other thread",))
        other.start()
        other.join()
    assert [event.get("rule") for event in events(stream.getvalue())] == ["products", None]


def test_exceptions_however_given() -> None:
    stream = StringIO()
    log = logs.get_logger()
    with logging_to(stream):
        try:
            raise OSError(28, "No space left on device")  # noqa: TRY301
        except OSError as error:
            log.exception("one")
            log.error("two", exc_info=True)  # noqa: G201  # the way of the standard library
            log.error("three", exc_info=error)  # noqa: TRY400  # the way of structlog
            log.error("four", error=error)  # noqa: TRY400  # a mere field
        log.error("five", exc_info=True)  # noqa: LOG014  # a mistake that must not hurt
    logged = events(stream.getvalue())
    assert [event["level"] for event in logged] == ["error"] * 5
    for event in logged[:3]:
        assert event["exception"]["type"] == "OSError"
        assert "exc_info" not in event
    assert logged[3]["error"]["message"] == "[Errno 28] No space left on device"
    assert "exception" not in logged[4]


def test_libraries_and_warnings_come_out_in_the_same_form_once() -> None:
    root = logging.getLogger()
    handlers_before = list(root.handlers)
    stream = StringIO()
    with logging_to(StringIO()), logging_to(stream):
        logging.getLogger("apscheduler.scheduler").warning("Run time of job %s was missed", "x")
        wrong = logging.LogRecord(
            "watchdog.observers", logging.ERROR, __file__, 1, "wrong %d", ("format",), None
        )
        logs._HANDLER.handle(wrong)  # pytest's own handler would raise
        logging.getLogger("watchdog.observers.inotify_buffer").debug("each event")
        try:
            raise ValueError("x")  # noqa: TRY301
        except ValueError:
            logging.getLogger("apscheduler.executors").exception("Job raised")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)
            logging.captureWarnings(capture=True)
            warnings.warn("careful", stacklevel=1)
            logging.captureWarnings(capture=False)
    logged = events(stream.getvalue())
    assert [(event["level"], event["logger"]) for event in logged] == [
        ("warning", "apscheduler.scheduler"),
        ("error", "watchdog.observers"),
        ("error", "apscheduler.executors"),
        ("warning", "py.warnings"),
    ]
    assert logged[0]["event"] == "Run time of job x was missed"
    assert logged[2]["exception"]["type"] == "ValueError"
    assert "careful" in logged[3]["event"]
    assert root.handlers == handlers_before


def test_console_on_a_terminal_json_elsewhere() -> None:
    terminal, other_end = os.openpty()
    with os.fdopen(other_end, "w") as stream, logging_to(stream, format="auto"):
        logs.get_logger().info("daemon.ready", note="\x1b[2Jcaf\udce9")
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "daemon.ready" in shown
    assert "\\x1b[2Jcaf\\xe9" in shown
    assert not shown.startswith("{")
    with pipe() as (reader, no_terminal), logging_to(no_terminal, format="auto"):
        logs.get_logger().info("daemon.ready")
        assert events(read_available(reader))[0]["event"] == "daemon.ready"


@pytest.mark.parametrize("kind", ["json", "console"])
def test_priorities_only_for_the_journal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, daemon = socket.socketpair()
    status = os.fstat(daemon.fileno())
    with journal, os.fdopen(daemon.detach(), "w") as stream:
        for variable, prefixes in (
            (f"{status.st_dev}:{status.st_ino}", ["<7>", "<6>", "<4>", "<3>", "<2>"]),
            (f"{status.st_dev}:{status.st_ino + 1}", [""] * 5),
        ):
            monkeypatch.setenv("JOURNAL_STREAM", variable)
            with logging_to(stream, format=kind, level="debug"):
                log = logs.get_logger()
                for say in (log.debug, log.info, log.warning, log.error, log.critical):
                    say("x")
            lines = journal.recv(65536).decode().splitlines()
            start = "{" if kind == "json" else "20"
            assert [line.partition(start)[0] for line in lines] == prefixes


def test_the_file_is_private_appended_to_and_json_whatever_the_stream_is(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "daemon.log"
    old = os.umask(0o022)
    try:
        for number in range(2):
            with logging_to(StringIO(), format="console", file=path):
                logs.get_logger().info("x", number=number)
    finally:
        os.umask(old)
    assert [event["number"] for event in events(path.read_text())] == [0, 1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_reopen_after_a_rotation_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            logs.get_logger().info("x", number=number)
            number += 1

    with logging_to(StringIO(), file=path) as output:
        writer = threading.Thread(target=write)
        writer.start()
        rotated = []
        for number in range(20):
            while not path.exists() or path.stat().st_size < 1000:
                time.sleep(0.001)
            rotated.append(path.rename(tmp_path / f"daemon.log.{number}"))
            output.reopen()
        stop.set()
        writer.join()
    logged = [event["number"] for each in [*rotated, path] for event in events(each.read_text())]
    assert logged == list(range(len(logged)))


def test_a_reopen_that_fails_is_said_and_the_old_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with logging_to(StringIO(), file=path) as output:
        path.rename(tmp_path / "old")
        path.mkdir()
        output.reopen()
        logs.get_logger().info("goes on")
    assert [event["event"] for event in events((tmp_path / "old").read_text())] == [
        "log.reopen_failed",
        "goes on",
    ]


@pytest.mark.parametrize("kind", ["directory", "fifo", "below a file"])
def test_a_log_file_that_can_not_be_is_refused_and_the_log_before_goes_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "daemon.log"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("")
        path /= "below"
    stream = StringIO()
    with logging_to(stream):
        with pytest.raises(UsageError, match="log file"):
            logs.configure(LogSettings.model_construct(file=path, level="error"), stream=StringIO())
        logs.get_logger().info("goes on")
    assert [event["event"] for event in events(stream.getvalue())] == ["goes on"]


def test_a_full_disk_is_swallowed_counted_and_told() -> None:
    """/dev/full answers each write with ENOSPC."""
    stream = StringIO()
    with logging_to(stream) as output:
        healthy = output._stream_lines.output
        full = os.open("/dev/full", os.O_WRONLY)
        output._stream_lines.output = StreamOutput(full)
        for _ in range(3):
            logs.get_logger().info("lost")
        assert output.dropped == 3
        output._stream_lines.output.close()
        os.close(full)
        output._stream_lines.output = healthy
        logs.get_logger().info("through")
        assert output.dropped == 0
    told, through = events(stream.getvalue())
    assert told["event"] == "log.dropped"
    assert (told["level"], told["dropped"], told["output"]) == ("warning", 3, "stream")
    assert told["reason"] == "No space left on device"
    assert through["event"] == "through"


def test_half_a_line_is_ended_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "daemon.log"
    path.write_bytes(b'{"event":"torn by a cra')
    real_write = os.write
    full = threading.Event()

    def write(descriptor: int, data: bytes) -> int:
        if not full.is_set():
            return real_write(descriptor, data)
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", write)
    with logging_to(StringIO(), file=path):
        logs.get_logger().info("first")
        full.set()
        logs.get_logger().info("half of it")
        full.clear()
        logs.get_logger().info("last")
    lines = path.read_text().splitlines()
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line)["event"])
        except json.JSONDecodeError:
            parsed.append("torn")
    assert parsed == ["torn", "first", "torn", "log.dropped", "last"]


def test_a_closed_pipe_does_not_reach_the_caller() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, logging_to(stream) as output:
        os.close(reader)
        logs.get_logger().info("nobody reads")
        assert output.dropped == 1


@pytest.mark.parametrize("way", ["own description", "shared description", "socket"])
def test_a_reader_that_stops_does_not_stop_the_caller(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "socket":
        near, far = socket.socketpair()
        reader, writer = near.detach(), far.detach()
    else:
        reader, writer = os.pipe()
    if way == "shared description":
        real_open = os.open

        def refuse(path: Any, *arguments: Any, **more: Any) -> int:
            if str(path).startswith("/proc/self/fd"):
                raise PermissionError(13, "not yours")
            return real_open(path, *arguments, **more)

        monkeypatch.setattr(os, "open", refuse)
    flags = os.get_blocking(writer)
    done = threading.Event()
    with os.fdopen(writer, "w") as stream, logging_to(stream) as output:
        assert os.get_blocking(writer) is flags, "others print to the same description"

        def log_much() -> None:
            for number in range(300):
                logs.get_logger().info("x", number=number, text="y" * 10_000)
            done.set()

        writing = threading.Thread(target=log_much, daemon=True)
        writing.start()
        assert done.wait(60), "the log stopped its caller"
        dropped = output.dropped
        assert 0 < dropped < 300
        first = read_available(reader)
        logs.get_logger().info("after")
        rest = read_available(reader)
    whole, torn = [], 0
    for line in (first + rest).splitlines():
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            torn += 1
    assert torn <= 1
    assert [event["number"] for event in whole[:-2]] == list(range(300 - dropped))
    assert whole[-2]["event"] == "log.dropped"
    assert whole[-2]["dropped"] == dropped
    assert whole[-1]["event"] == "after"
    os.close(reader)


def test_a_shell_that_appends_is_not_overwritten(tmp_path: Path) -> None:
    """Of a regular file the stream's own offset is kept: opening it anew would begin at its start."""
    path = tmp_path / "out"
    with path.open("w") as stream:
        print("printed before", file=stream)
        with logging_to(stream):
            logs.get_logger().info("logged")
        print("printed after", file=stream)
    assert [line[:9] for line in path.read_text().splitlines()] == ["printed b", '{"timesta', "printed a"]


def test_a_signal_handler_that_logs_while_its_thread_does(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    heard = []

    def handle(_number: int, _frame: Any) -> None:
        heard.append(1)
        logs.get_logger().info("from the handler")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with logging_to(StringIO(), file=path):
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0011)
            while len(heard) < 100:
                logs.get_logger().info("from the thread")
            signal.setitimer(signal.ITIMER_REAL, 0)
            logs.get_logger().info("end")
    finally:
        signal.signal(signal.SIGALRM, before)
    logged = events(path.read_text())
    assert sum(event["event"] == "from the handler" for event in logged) == len(heard)
    assert "log.dropped" not in {event["event"] for event in logged}


def test_a_signal_in_the_middle_of_a_line_does_not_tear_it() -> None:
    stream = StringIO()

    class Interrupted:
        """An output within whose write a signal handler logs."""

        interrupted = False

        def write(self, line: bytes) -> None:
            half = len(line) // 2
            stream.write(line[:half].decode())
            if not self.interrupted:
                self.interrupted = True
                logs.get_logger().info("from the handler")
            stream.write(line[half:].decode())

        def close(self) -> None:
            pass

    with logging_to(StringIO()) as output:
        output._stream_lines.output = Interrupted()
        logs.get_logger().info("from the thread")
    assert [event["event"] for event in events(stream.getvalue())] == ["from the thread", "from the handler"]


def test_has_history_finds_what_was_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with logging_to(StringIO(), file=path) as output:
        log = logs.get_logger()
        log.info("release.overwrite", rule="products", history_sha256="aa" * 32)
        log.info("other", rule="products", note=f'"history_sha256":"{"bb" * 32}"')
        assert output.has_history("products", "aa" * 32)
        assert not output.has_history("other", "aa" * 32)
        assert not output.has_history("products", "bb" * 32)
        with path.open("ab") as raw:
            raw.write(b'{"rule":"products","history_sha256":"' + b"cc" * 32)
        assert not output.has_history("products", "cc" * 32), "a torn line does not count"
        path.rename(tmp_path / "daemon.log.1")
        output.reopen()
        assert output.has_history("products", "aa" * 32), "rotated away a moment ago"
    with logging_to(StringIO()) as output:
        assert not output.has_history("products", "aa" * 32)


def test_has_history_looks_at_the_end_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    filler = b'{"event":"x","note":"' + b"y" * 1000 + b'"}\n'
    path.write_bytes(
        b'{"rule":"r","history_sha256":"old"}\n' + filler * 8000 + b'{"rule":"r","history_sha256":"new"}\n'
    )
    with logging_to(StringIO(), file=path) as output:
        assert output.has_history("r", "new")
        assert not output.has_history("r", "old")


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with pipe() as (reader, stream):
        got: list[str] = []
        collector = threading.Thread(target=lambda: got.append(drain(reader)))
        with logging_to(stream, file=path):
            collector.start()
            threads = [
                threading.Thread(
                    target=lambda n=n: [
                        logs.get_logger().info("x", thread=n, i=i, t="z" * 5000) for i in range(50)
                    ]
                )
                for n in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        stream.close()
        collector.join()
    for text in (path.read_text(), got[0]):
        logged = events(text)
        assert len(logged) == 400
        for number in range(8):
            assert [event["i"] for event in logged if event["thread"] == number] == list(range(50))


def drain(reader: int) -> str:
    data = b""
    while chunk := os.read(reader, 1 << 16):
        data += chunk
    return data.decode()


def test_capture_logs_of_structlog_still_works() -> None:
    log = logs.get_logger()
    with structlog.testing.capture_logs() as captured:
        log.info("x", a=1)
    assert captured == [{"event": "x", "a": 1, "log_level": "info"}]


def test_the_descriptors_are_not_inherited(tmp_path: Path) -> None:
    def inherited() -> str:
        script = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        command = [sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=True, close_fds=False).stdout

    with pipe() as (_, stream):
        before = inherited()
        with logging_to(stream, file=tmp_path / "daemon.log"):
            assert inherited() == before


def test_importing_the_log_brings_no_heavy_library() -> None:
    script = textwrap.dedent(
        """
        import sys
        import spancat_daemon.observe.logs, spancat_daemon.daemon.control, spancat_daemon.observe.systemd
        heavy = ("spacy", "numpy", "pydantic", "http.server", "srsly")
        print([name for name in heavy if name in sys.modules])
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_output_opens_no_fifo_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="not a regular file"):
        FileOutput(tmp_path / "fifo")
