"""A process that reads what is live, without pause, and tells what was not whole.

``python -m tests.faults.soak.reader KIND FOLDER REPORT PACE_S``; KIND is one of `KINDS`. A line of the report
says how many reads there were since the one before; one with ``torn`` is a violation.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ATTEMPTS = 1000
_TEXTS: Final = ("Acme Corp opened an office in Berlin.", "Globex ships windows to Paris.")
_SAY_EVERY_S = 0.5


def read_bytes(folder: Path) -> Iterator[str]:
    """Read as a program that knows nothing but the layout: a shared flock on release.json, then each file."""
    while True:
        yield _read_once(folder / "current")


def _read_once(current: Path) -> str:
    for _ in range(_ATTEMPTS):
        with ExitStack() as opened:
            top = os.open(current, os.O_RDONLY | os.O_DIRECTORY)  # must never fail: something is always live
            opened.callback(os.close, top)
            try:
                manifest_fd = os.open("release.json", os.O_RDONLY, dir_fd=top)
            except FileNotFoundError:  # pruned since it was opened
                continue
            opened.callback(os.close, manifest_fd)
            fcntl.flock(manifest_fd, fcntl.LOCK_SH)
            if not os.path.samestat(current.stat(), os.fstat(top)):
                continue
            manifest = json.loads(_all_of(manifest_fd))
            for path, promised in manifest["files"].items():
                fd = os.open(path, os.O_RDONLY, dir_fd=top)
                opened.callback(os.close, fd)
                if hashlib.sha256(_all_of(fd)).hexdigest() != promised["sha256"]:
                    raise Torn(f"{manifest['id']}/{path} is not what its manifest says")
            return str(manifest["id"])
    raise Torn("could not be held a thousand times over")


def load(folder: Path) -> Iterator[str]:
    """Load it with `spancat_daemon.serving.load`, all bytes checked, and predict."""
    from spancat_daemon import serving  # noqa: PLC0415  # imports spaCy, which not every kind needs

    while True:
        nlp = serving.load(folder, verify=True)
        assert nlp.path is not None
        manifest = json.loads((nlp.path / "release.json").read_bytes()) if nlp.path.exists() else None
        if manifest is not None:
            _check_model(nlp, manifest)
        yield nlp.path.name
        del nlp


def hot(folder: Path) -> Iterator[str]:
    """Serve it with a `HotModel`, a text at a time, and look at each model that comes."""
    from spancat_daemon import serving  # noqa: PLC0415  # as above

    with serving.HotModel(folder, warm_up=_TEXTS[:1], on_error=_fail) as model:
        seen = ""
        while True:
            with model.use() as nlp:
                name = nlp.path.name if nlp.path else ""
                release = model.release
                if name != seen and release is not None and release.id == name:
                    _check_model(nlp, {"model_sha256": release.manifest.model_sha256})
                    seen = name
                for text in _TEXTS:
                    nlp(text)
            yield name


class Torn(Exception):  # noqa: N818  # what it saw
    """What was read is no release."""


def _fail(error: Exception) -> None:
    _failures.append(str(error))


_failures: list[str] = []
KINDS: Final[dict[str, Callable[[Path], Iterator[str]]]] = {"bytes": read_bytes, "load": load, "hot": hot}


def main(kind: str, folder: str, report: str, pace_s: str) -> None:
    path = Path(folder)
    while not (path / "current").exists():
        time.sleep(0.05)
    reads, seen, said = 0, set[str](), time.monotonic()
    releases = KINDS[kind](path)
    while True:
        try:
            seen.add(next(releases))
        except Exception as error:  # noqa: BLE001  # anything at all is a violation
            _say(report, {"torn": f"{type(error).__name__}: {error}", "at": time.time()})
            releases = KINDS[kind](path)
            time.sleep(0.2)
        for failure in _failures:
            _say(report, {"torn": failure, "at": time.time()})
        _failures.clear()
        reads += 1
        if time.monotonic() - said > _SAY_EVERY_S:
            _say(report, {"reads": reads, "releases": sorted(seen)})
            reads, seen, said = 0, set(), time.monotonic()
        time.sleep(float(pace_s))


def _check_model(nlp: Any, manifest: dict[str, Any]) -> None:
    found = hashlib.sha256(nlp.get_pipe("spancat").model.to_bytes()).hexdigest()
    if found != manifest["model_sha256"]:
        raise Torn(f"{nlp.path}: the loaded model is not that of its manifest")


def _all_of(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _say(report: str, line: dict[str, Any]) -> None:
    with Path(report).open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
