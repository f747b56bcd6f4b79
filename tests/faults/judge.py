"""The model of what is allowed: old or new, whole, in the history exactly once.

Reads a deployment folder without any of the project's code, so that it can't share an error with it, and with
nothing but the standard library, so that processes which are killed by the thousand can hold it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

Line = dict[str, Any]
Generation = dict[str, str]
"""SHA-256 of each file of a checkpoint at one moment, by path: see `generation`."""

STATE = ".spancat-daemon"
_ID = re.compile(r"([0-9]{6,})-[0-9]{8}T[0-9]{6}Z-([0-9a-f]{8})")
_OWN_DIGEST = re.compile(rb',"sha256":"[0-9a-f]{64}"}$')
_OUTCOMES = {"commit", "abort", "recovered"}
_EMPTY_AT_REST = ("staging", "trash", "incoming")


def sha256(path: Path) -> str:
    """As sha256sum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def generation(checkpoint: Path) -> Generation:
    """What a trainer has written, for `judge`; nobody may be writing it."""
    return {path: sha256(checkpoint / path) for path in _files(checkpoint)}


def history(deploy: Path) -> list[Line]:
    """The whole lines of a folder's history; none if it has none."""
    try:
        text = (deploy / STATE / "history.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def commits(deploy: Path) -> list[Line]:
    """The records that made something live, in their order."""
    return [line for line in history(deploy) if line["kind"] in {"commit", "recovered"}]


def live(deploy: Path) -> Line | None:
    """The manifest of what ``current`` leads to, whole or not; None if it leads nowhere."""
    try:
        manifest: Line = json.loads((deploy / "current" / "release.json").read_bytes())
    except FileNotFoundError:
        return None
    return manifest


def judge(
    deploy: Path,
    generations: Collection[Mapping[str, str]] | None = None,
    *,
    recovered: bool = True,
    log: Iterable[Mapping[str, Any]] | None = None,
    also: Collection[str] = (),
) -> list[str]:
    """Return everything about a deployment folder that is not allowed, each a sentence; empty: all is well.

    At any moment, also right after a crash: once something went live ``current`` leads to a whole release,
    every release and rejected snapshot is whole, and the history is a chain but for an unfinished last line.
    Once recovered besides: each swap is in the history exactly once, with the one before it; what it says is
    live is live, what it says is there is there under its name; no number was given twice; nothing is left
    over.

    Args:
        deploy: the folder; nobody is changing it.
        generations: what was ever whole in the checkpoint that the releases come from, of which each of them
            is one; only for ``contents = "pipeline"``.
        recovered: whether it was recovered since the last crash.
        log: all events that were ever logged: it tells of each commit exactly once.
        also: what else may lie in the folder itself.
    """
    found: list[str] = []
    lines = list(_chain(deploy, found, recovered=recovered))
    current = deploy / "current"
    now = _manifest(current, found) if os.path.lexists(current) else None
    if now is None and any(line["kind"] == "commit" for line in lines):
        found.append("current leads nowhere, though something was live before")
    looked_at = [current] if current.is_dir() and not current.is_symlink() else []
    looked_at += [path for path in _releases(deploy) if not path.is_symlink()]
    looked_at += [path for path in _entries(deploy / STATE / "rejected") if path.is_dir()]
    known = {tuple(sorted(files.items())) for files in generations} if generations is not None else None
    for path in looked_at:
        where = path.relative_to(deploy)
        found += [f"{where}: {fault}" for fault in whole(path)]
        if known is not None and tuple(sorted(_content(path).items())) not in known:
            found.append(f"{where}: its bytes are no generation that the checkpoint ever had")
    if recovered:
        found += _agrees(lines, now, deploy) + _left_over(deploy, also)
    if log is not None:
        told = [event["history_sha256"] for event in log if _tells_a_swap(event)]
        made = [line["sha256"] for line in lines if line["kind"] == "commit"]
        if told != made:
            found.append(f"the log tells of {len(told)} commits, the history has {len(made)}, or others")
    return found


def whole(release: Path) -> list[str]:
    """What is wrong with a release: it has exactly the files of its manifest, read-only, and its name."""
    found: list[str] = []
    manifest = _manifest(release, found)
    if manifest is None:
        return found
    files: dict[str, Line] = manifest["files"]
    present = set(_files(release))
    promised = {*files, "release.json"}
    found += [f"{path} is missing" for path in sorted(promised - present)]
    found += [f"{path} is in no manifest" for path in sorted(present - promised)]
    for path in sorted(promised & present):
        found += [f"{path} {fault}" for fault in _faults(release / path, files.get(path))]
    if files["model.bin"]["sha256"] != manifest["model_sha256"]:
        found.append("model.bin is another model than the manifest says")
    listing = "".join(f"{files[path]['sha256']}  {path}\n" for path in sorted(files))
    if "\\" not in listing and hashlib.sha256(listing.encode()).hexdigest() != manifest["content_sha256"]:
        found.append("its content_sha256 is not that of its files")
    named = _ID.fullmatch(manifest["id"])
    if named is None or (int(named[1]), named[2]) != (manifest["sequence"], manifest["content_sha256"][:8]):
        found.append(f"its id {manifest['id']} does not go with its number and content")
    return found


def _faults(path: Path, promised: Line | None) -> list[str]:
    """What is wrong with a file of a release, of which the manifest may promise something."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return ["is no file"]
    found = ["can be written to"] if status.st_mode & 0o222 else []
    if promised is None:
        return found
    if status.st_size != promised["bytes"]:
        return [*found, f"has {status.st_size} bytes instead of {promised['bytes']}"]
    return found if sha256(path) == promised["sha256"] else [*found, "is not what the manifest says"]


def _chain(deploy: Path, found: list[str], *, recovered: bool) -> Iterator[Line]:
    """The records in their order, as far as they hang together."""
    path = deploy / STATE / "history.jsonl"
    text = path.read_bytes() if path.exists() else b""
    previous = "0" * 64
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            if recovered:
                found.append(f"history: line {number} is unfinished")
            return
        try:
            record: Line = json.loads(line)
        except ValueError:
            found.append(f"history: line {number} is no JSON")
            return
        # Its own text, as JSON writes a number in several ways
        digest = hashlib.sha256(record["prev"].encode() + _OWN_DIGEST.sub(b"}", line.rstrip())).hexdigest()
        if (record["seq"], record["prev"], record["sha256"]) != (number, previous, digest):
            found.append(f"history: the chain breaks at line {number}")
            return
        previous = digest
        yield record


class _Account:
    """What the history says of a folder, record by record, and what is not allowed in that."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.live: str | None = None
        self.there: set[str] = set()
        self.intent: Line | None = None
        self._highest = 0

    def take(self, line: Line) -> None:
        kind = line["kind"]
        where = f"history: record {line['seq']} ({kind})"
        self._check_order(line, where)
        if kind == "intent":
            self._number(line, where)
            self.intent = line
        elif kind in _OUTCOMES:
            self.intent = None
        if kind in {"commit", "recovered"}:
            self._make_live(line, where)
        elif kind == "pruned":
            self.there.discard(line["release"])

    def _check_order(self, line: Line, where: str) -> None:
        kind, intent = line["kind"], self.intent
        if intent is not None and kind not in _OUTCOMES:
            self.found.append(f"{where} comes before the outcome of record {intent['seq']}")
        if kind in {"commit", "abort"} and (intent is None or intent["release"] != line["release"]):
            self.found.append(f"{where} has no intent before it")

    def _number(self, line: Line, where: str) -> None:
        number = _number(line["release"])
        if line["release"] not in self.there and number <= self._highest:
            self.found.append(f"{where} gives {line['release']} a number that was given before")
        self._highest = max(self._highest, number)

    def _make_live(self, line: Line, where: str) -> None:
        # Each swap reads what it replaces from the disk: one record missing, or one too many, shows here.
        if line["previous_release"] != self.live:
            self.found.append(f"{where} replaced {line['previous_release']}, but {self.live} was live")
        self.live = line["release"]
        adopted = line.get("adopted", [])
        self.there |= {name for name in (self.live, *adopted) if name is not None}
        self._highest = max([self._highest, *map(_number, adopted)])


def _agrees(lines: Iterable[Line], now: Line | None, deploy: Path) -> list[str]:
    """Hold the history of a folder at rest against what is there."""
    account = _Account()
    for line in lines:
        account.take(line)
    found = account.found
    if account.intent is not None:
        found.append(f"history: record {account.intent['seq']} (intent) has no outcome")
    live_id = now["id"] if now else None
    if account.live != live_id:
        found.append(f"{live_id} is live, the history says {account.live}")
    present = set()
    for path in _releases(deploy):
        if path.is_symlink():
            found.append(f"releases/{path.name} is a link")
            continue
        present.add(path.name)
        if (manifest := _manifest(path, [])) is not None and manifest["id"] != path.name:
            found.append(f"releases/{path.name} holds {manifest['id']}")
    if live_id is not None and not (deploy / "current").is_symlink():
        if live_id in present:
            found.append(f"{live_id} is there twice")
        present.add(live_id)
    found += [f"{name} is there, and the history says otherwise" for name in sorted(present - account.there)]
    found += [f"{name} is gone, and the history says otherwise" for name in sorted(account.there - present)]
    return found


def _left_over(deploy: Path, also: Collection[str]) -> list[str]:
    allowed = {"current", "releases", STATE, *also}
    left = [path for path in _entries(deploy) if path.name not in allowed]
    for name in _EMPTY_AT_REST:
        left += _entries(deploy / STATE / name)
    left += [
        path
        for path in _entries(deploy / STATE / "rejected")
        if _ID.fullmatch(path.name.removesuffix(".gone")) is None
    ]
    return [f"{path.relative_to(deploy)} is left over" for path in left]


def _tells_a_swap(event: Mapping[str, Any]) -> bool:
    return event.get("event") in {"release.published", "release.overwrite"}


def _releases(deploy: Path) -> Iterator[Path]:
    for path in _entries(deploy / "releases"):
        if _ID.fullmatch(path.name):
            yield path


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _files(top: Path) -> Iterator[str]:
    for folder, directories, names in os.walk(top):
        for name in names + [name for name in directories if Path(folder, name).is_symlink()]:
            yield str(Path(folder, name).relative_to(top))


def _content(release: Path) -> dict[str, str]:
    """Digests of the bytes of a release that come from its checkpoint."""
    files = {path: sha256(release / path) for path in _files(release) if (release / path).is_file()}
    return {path: digest for path, digest in files.items() if path not in {"release.json", "model.bin"}}


def _manifest(release: Path, found: list[str]) -> Line | None:
    try:
        manifest: Line = json.loads((release / "release.json").read_bytes())
    except (OSError, ValueError) as error:
        found.append(f"{release.name}: its manifest can't be read: {error}")
        return None
    return manifest


def _number(release: str | None) -> int:
    match = _ID.fullmatch(release or "")
    return int(match[1]) if match else 0
