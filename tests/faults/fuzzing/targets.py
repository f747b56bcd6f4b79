"""Everything that reads bytes which others wrote, each as a function that may fail as documented only.

A target takes any bytes. What it lets out, but for the errors that the code it calls documents, is a defect;
so is an answer to hostile bytes that is not one line of printable text.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from spancat_daemon.checkpoint import contents, settle, spool, tree, wholeness
from spancat_daemon.checkpoint.msgpack_proof import ModelProof, MsgpackProof
from spancat_daemon.config import load
from spancat_daemon.daemon.control import ControlServer
from spancat_daemon.daemon.holdings import Holdings
from spancat_daemon.daemon.requests import Requests
from spancat_daemon.errors import Moved, Rejected, SpancatDaemonError, UsageError
from spancat_daemon.observe.logs import get_logger
from spancat_daemon.release import lock, manifest
from spancat_daemon.release.folder import DeploymentFolder
from spancat_daemon.release.history import History, HistoryBroken
from spancat_daemon.triggers.signal import SIGNAL_NAME, Signals
from spancat_daemon.verify.child import LoaderProcess
from spancat_daemon.verify.probes import BadProbes, read_probes
from spancat_daemon.verify.verdict import Examination, Grafting, Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.checkpoint.wholeness import Proof

CORPUS: Final = Path(__file__).parent / "corpus"
"""A folder for each target: bytes of real files, and every input that ever found a defect."""

_CHUNK_BYTES: Final = 37  # so that whatever can be cut is cut somewhere
_AGAIN_S: Final = 5.0


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        run: takes any bytes; raises what is a defect.
        most_bytes: longer inputs find nothing more.
        words: what a fuzzer should know of the format.
    """

    run: Callable[[bytes], None]
    most_bytes: int = 4096
    words: tuple[bytes, ...] = ()


def _plain(error: SpancatDaemonError) -> None:
    """An error's text must be fit for a terminal, and short."""
    for text in (error.reason, error.hint):
        assert len(text) < 5_000, f"{len(text)} characters of a reason"
        assert "\x1b" not in text, repr(text)


@cache
def room() -> Path:
    """A folder in memory for what targets read; gone with the process."""
    memory = Path("/dev/shm")  # noqa: S108  # a fresh folder in it
    made = tempfile.TemporaryDirectory(prefix="fuzzing-", dir=memory if memory.is_dir() else None)
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []  # what lasts as long as the process


def _file(name: str, data: bytes) -> Path:
    path = room() / name
    path.write_bytes(data)
    return path


def configuration(data: bytes) -> None:
    """daemon.toml."""
    try:
        load.parse(data.decode("utf-8", "replace"), Path("/srv/daemon.toml"), {"HOME": "/root"})
    except UsageError as error:
        assert "Traceback" not in str(error)  # noqa: PT017  # of a fuzzer, not of pytest


def release_json(data: bytes) -> None:
    """The manifest of a release: what can be read can be written, and is the same."""
    try:
        read = manifest.parse(data, where="release.json")
    except manifest.BadManifest as error:
        _plain(error)
        return
    assert not any(path.startswith("/") or ".." in path.split("/") for path in read.files)
    assert manifest.parse(manifest.dump(read), where="").content_sha256 == read.content_sha256


def history(data: bytes) -> None:
    """history.jsonl: read as it is, audited, opened for writing and written to."""
    path = _file("history.jsonl", data)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    reading = History.reading(path)
    reading.verify()
    reading.at(datetime(2027, 1, 1, tzinfo=UTC))
    try:
        with History.open(path, clock=lambda: datetime.now(UTC)) as writing:
            if writing.pending_intent() is None:
                writing.append("pinned", {"release": "000001-20261122T113045Z-3f2a9c1b"})
    except HistoryBroken as error:
        _plain(error)
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors, "a descriptor is left open"
        return
    assert not History.reading(path).verify()


def _proof(make: Callable[[], Proof]) -> Callable[[bytes], None]:
    def feed(data: bytes, size: int) -> str | None:
        proof = make()
        try:
            for start in range(0, len(data), size):
                proof.feed(data[start : start + size])
            proof.finish()
        except Rejected as error:
            _plain(error)
            return error.reason
        return None

    def run(data: bytes) -> None:
        in_one, in_many = feed(data, len(data) or 1), feed(data, _CHUNK_BYTES)
        assert (in_one is None) == (in_many is None), (in_one, in_many)

    return run


@cache
def _checkpoint() -> Path:
    folder = room() / "checkpoint"
    for path in sorted((CORPUS / "checkpoint").rglob("*")):
        if path.is_file():
            to = folder / path.relative_to(CORPUS / "checkpoint")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    return folder


def _in_checkpoint(name: str) -> Callable[[bytes], None]:
    """One of its files is the bytes; then all of it is examined, planned and proven, as for a release."""

    def run(data: bytes) -> None:
        (_checkpoint() / name).write_bytes(data)
        with contextlib.suppress(Rejected, Moved), tree.Source.open(_checkpoint()) as source:
            try:
                _examine(source)
            except Rejected as error:
                _plain(error)

    return run


def _examine(source: tree.Source) -> None:
    seen = source.scan()
    found = settle.examine(
        source, writer="any", settle_s=0, now_ns=settle.file_clock_ns, previous=seen, unchanged_s=_AGAIN_S
    )
    if isinstance(found, settle.Unsettled):
        return
    for file in seen.files:
        assert not file.path.startswith(("/", "..")), file
        proof = found.proofs[file.path]()
        proof.feed(source.read_small(file))
        with contextlib.suppress(Rejected):
            proof.finish()
    for kind in ("pipeline", "component", "standalone"):
        with contextlib.suppress(Rejected):
            planned = contents.plan(found, contents=kind)
            assert all(".." not in one.path.split("/") and one.path[0] != "/" for one in planned.files)
            manifest.plain(planned.metrics)


def entry(data: bytes) -> None:
    """What a spool says of an entry."""
    folder = room() / "entry"
    folder.mkdir(exist_ok=True)
    for name in ("config.cfg", "meta.json"):
        (folder / name).write_bytes(b"{}")
    (folder / spool.ENTRY_NAME).write_bytes(data)
    with tree.Source.open(folder) as source:
        scan = source.scan()
        try:
            told = spool.read_entry(source, scan)
            spool.missing(told, scan)
            spool.check_promises(told, source, scan)
        except Rejected as error:
            _plain(error)


def signal(data: bytes) -> None:
    """What a trainer says beside its checkpoints."""
    complaints: list[str] = []
    signals = Signals(lambda _key, _path, reason: complaints.append(reason))
    path = room() / SIGNAL_NAME
    path.unlink(missing_ok=True)
    signals.attend({"rule": room() / "model-best"})
    path.write_bytes(data)
    assert not (signals.given("rule") and complaints)


def probes(data: bytes) -> None:
    """Texts with the spans that they must give."""
    try:
        assert read_probes(_file("probes.jsonl", data))
    except BadProbes as error:
        _plain(error)


def holder(data: bytes) -> None:
    """Who holds a folder, by their own word."""
    path = _file("lock", data)
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            with lock.hold(room(), path, "fuzzing", since="", control=None):
                raise AssertionError("was held twice")
        except lock.HeldElsewhere as error:
            assert str(error).isprintable(), error  # noqa: PT017  # of a fuzzer, not of pytest


def pins(data: bytes) -> None:
    """Names in the folder of pins, and the number of what was announced, whatever they are."""
    folder = DeploymentFolder(room() / "deploy")
    folder.pins_path.mkdir(parents=True, exist_ok=True)
    name = data.replace(b"\0", b"").replace(b"/", b"")[:255] or b"x"
    path = os.path.join(os.fsencode(folder.pins_path), name)  # noqa: PTH118  # bytes
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        folder.pins()
        os.unlink(path)  # noqa: PTH108  # bytes
    folder.announced_path.write_bytes(data)
    folder.announced()


@cache
def _socket() -> Path:
    place = room() / "control"
    place.mkdir()
    text = '[daemon]\nstate_dir="state"\n[[watch]]\nname="products"\nsource="best"\ndeploy="deployed"\n'
    read = load.parse(text, place / "daemon.toml", {})

    def refuse(*_: object, **__: object) -> NoReturn:
        raise SpancatDaemonError("nothing is made here")

    log = get_logger()
    service: Any = SimpleNamespace(
        configuration=read,
        started_at=datetime.now(UTC),
        dispatcher=SimpleNamespace(flag=refuse, mended=lambda _rule: None, status=refuse),
        schedule=SimpleNamespace(next_run=lambda _rule: None),
        stale=lambda: "",
        dropped_log_lines=lambda: 0,
        reload=dict,
        holdings=Holdings(
            log=log,
            has_logged=lambda _seq, _sha256: False,
            loaders=SimpleNamespace(),  # type: ignore[arg-type]  # nothing is loaded
            wake=lambda: None,
            state_dir=place / "state",
            control=place / "control.sock",
        ),
    )
    server = ControlServer(place / "control.sock", Requests(service).answer, request_timeout_s=5)
    server.start()
    _kept.append(server)
    return server.path


def request(data: bytes) -> None:
    """Raw bytes on a real control socket."""
    answer = send(_socket(), data)
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer
    assert not answer.startswith(b"HTTP/1.1 500"), answer


def send(path: Path, data: bytes) -> bytes:
    """The answer of whoever listens to raw bytes, and their end; empty if there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(os.fspath(path))
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 16):
                answer += chunk
    return answer


@cache
def _talker() -> Path:
    script = room() / "python"
    script.write_text(f"#!/bin/sh\nexec cat {room()}/answers\n")
    script.chmod(0o755)
    return script


def answers(data: bytes) -> None:
    """Whatever the loader says: hostile code runs in it."""
    _file("answers", data)
    subject = Subject(path=room(), component="spancat", model_sha256="0" * 64)
    asked: tuple[Examination | Grafting, ...] = (
        Examination(subject=subject),
        Grafting(
            subject=subject,
            upstream="tok2vec",
            listener="model.tok2vec",
            config="",
            texts=(),
            most_bytes=1 << 20,
        ),
    )
    with LoaderProcess(python=str(_talker())) as child:
        verdict = child.ask(asked[len(data) % 2], timeout_s=20)
    json.dumps(manifest.plain(verdict.verifier))
    if not verdict.ok:
        assert verdict.reason.isprintable(), verdict.reason


_CONFIG_WORDS: Final = (
    b"[nlp]", b"[components.", b"[DEFAULT]", b"pipeline = ", b"${", b"}", b"$$", b"factory = ", b'"spancat"',
    b"@architectures", b'"spacy.Tok2VecListener.v1"', b'"spacy.SpanCategorizer.v1"', b"upstream", b"null",
    b"[components.spancat.model]", b'["tok2vec","spancat"]', b'"../x"', b"\\u0000", b"model = ", b"lang = ",
)  # fmt: skip

TARGETS: Final[dict[str, Target]] = {
    "configuration": Target(
        configuration,
        words=(
            b"[[watch]]",
            b"source",
            b"deploy",
            b"name",
            b"schedule",
            b"cron",
            b"every",
            b"${",
            b":-",
            b"[daemon]",
        ),
    ),
    "release_json": Target(
        release_json, words=(b'"files"', b'"sha256"', b'"bytes"', b'"id"', b"null", b"../")
    ),
    "history": Target(
        history, words=(b'"kind"', b'"commit"', b'"intent"', b'"recovered"', b'"prev"', b'"adopted"')
    ),
    "config_cfg": Target(_in_checkpoint("config.cfg"), words=_CONFIG_WORDS),
    "meta_json": Target(
        _in_checkpoint("meta.json"), words=(b'"performance"', b'"labels"', b'"spacy_version"')
    ),
    "component_cfg": Target(
        _in_checkpoint("spancat/cfg"), words=(b'"labels"', b'"threshold"', b'"spans_key"')
    ),
    "msgpack": Target(_proof(MsgpackProof)),
    "model": Target(_proof(lambda: ModelProof(3)), words=(b"\x84\xa5nodes", b"\xa4dims", b"\xa2nO")),
    "npy": Target(
        _proof(wholeness.NpyProof), words=(b"\x93NUMPY", b"'descr'", b"'shape'", b"'fortran_order'")
    ),
    "json": Target(_proof(wholeness.JsonProof)),
    "json_lines": Target(_proof(wholeness.JsonLinesProof)),
    "entry": Target(entry, words=(b'"schema"', b'"files"', b'"step"', b'"config.cfg"', b'"../x"')),
    "signal": Target(signal, words=(b'"schema"', b'"checkpoints"')),
    "probes": Target(probes, words=(b'"text"', b'"spans"', b'"absent"')),
    "holder": Target(holder, words=(b'"pid"', b'"command"', b'"since"', b'"host"', b'"control"')),
    "pins": Target(pins),
    "request": Target(
        request,
        words=(
            b"POST ",
            b"GET ",
            b" HTTP/1.1\r\n",
            b"Content-Length: ",
            b"/v1/save",
            b"/v1/status",
            b'"rule"',
            b'"products"',
            b"\\u0000",
            b"/v1/rollback",
            b"/v1/pin",
            b"Transfer-Encoding: chunked\r\n",
        ),
    ),
    "answers": Target(
        answers, words=(b'"ready":true', b'"ok":true', b'"frame_bytes"', b'"reason"', b'"labels"')
    ),
}
"""All of them, by name."""
