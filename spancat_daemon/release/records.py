"""What a line of ``history.jsonl`` says, and what all of them together say about a deployment folder.

A line is one JSON object with sorted keys and without spaces, and its own digest as the last key::

    {"kind":"commit","prev":"<sha256 of the line before>",…,"seq":42,"time":"…","sha256":"<own>"}

The formula: ``sha256`` is SHA-256 over the 64 hexadecimal digits of ``prev`` followed by the bytes of the
line without ``,"sha256":"…"``. The first line's ``prev`` is 64 zeros. With standard tools, for line N::

    line=$(sed -n Np history.jsonl); body=$(printf %s "$line" | sed 's/,"sha256":"[0-9a-f]*"}$/}/')
    prev=$(printf %s "$line" | grep -o '"prev":"[0-9a-f]*"' | head -n 1 | cut -d '"' -f 4)
    printf %s%s "$prev" "$body" | sha256sum      # is the line's sha256; prev is that of line N-1
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from spancat_daemon import frugal_json
from spancat_daemon.release.manifest import parse_release_id, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GENESIS: Final = "0" * 64
OUTCOMES: Final = frozenset({"commit", "abort", "recovered"})
KINDS: Final = OUTCOMES | {"intent", "concluded", "pruned", "pinned", "unpinned"}

_OWN_KEYS: Final = frozenset({"seq", "prev", "time", "kind", "sha256"})
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}')
_SEAL_LENGTH: Final = len(',"sha256":"') + 64 + len('"}')
_SHA256 = re.compile(r"[0-9a-f]{64}")

Break = Literal["torn", "malformed", "hash", "chain", "gap", "intent", "outcome"]


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the history.

    Attributes:
        seq: its number, from 1, without gaps.
        prev: `sha256` of the record before it.
        time: when it was written, RFC 3339 in UTC with microseconds; clocks jump, `seq` is the order.
        kind: ``intent``, ``commit``, ``abort``, ``recovered``, ``concluded``, ``pruned``, ``pinned`` or
            ``unpinned``.
        data: everything else the line says.
        sha256: digest over `prev` and the line.
    """

    seq: int
    prev: str
    time: str
    kind: str
    data: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A break in the history.

    Attributes:
        line: its number in the file, from 1.
        kind: ``torn``: an unfinished last line, as a crash leaves it; ``malformed``: not a record; ``hash``:
            the line was changed; ``chain``: it doesn't belong to the line before it; ``gap``: records are
            missing or out of order; ``intent``: an intent without outcome that is not at the end;
            ``outcome``: an outcome without its intent.
        detail: one sentence for people.
    """

    line: int
    kind: Break
    detail: str


class Malformed(ValueError):  # noqa: N818  # a verdict on a line
    """A line that is not a record.

    Attributes:
        json: whether it is JSON at all; the last line of a file that isn't was torn by a crash.
    """

    def __init__(self, detail: str, *, json: bool) -> None:
        super().__init__(detail)
        self.json = json


def encode(*, seq: int, prev: str, time: str, kind: str, data: Mapping[str, Any]) -> bytes:
    """Return the line, with its line end.

    Raises:
        ValueError: an unknown kind, or `data` uses a key that every record has.
        TypeError: `data` holds what is no JSON value at all; see `plain` for those that are nearly one.
    """
    if kind not in KINDS:
        raise ValueError(f"the history knows no {kind!r}")
    if clash := _OWN_KEYS & data.keys():
        raise ValueError(f"a record's data can't have keys of its own: {', '.join(sorted(clash))}")
    own = {"seq": seq, "prev": prev, "time": time, "kind": kind}
    body = orjson.dumps({**plain(data), **own}, option=orjson.OPT_SORT_KEYS)
    return body[:-1] + b',"sha256":"' + _digest(prev, body).encode() + b'"}\n'


def decode(line: bytes) -> Record:
    """Read a line, with or without its line end; its digest is not checked, see `intact`.

    Raises:
        Malformed: it is not a record.
    """
    try:
        document = frugal_json.loads(line)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"is not JSON ({error})", json=False) from None
    except ValueError as error:
        raise Malformed(f"holds {error}", json=True) from None
    if not isinstance(document, dict) or _SEAL.fullmatch(line.rstrip(b"\n")[-_SEAL_LENGTH:]) is None:
        raise Malformed("is not an object that ends with its sha256", json=True)
    seq, prev, time, kind = (document.pop(key, None) for key in ("seq", "prev", "time", "kind"))
    sha256 = document.pop("sha256")
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1:
        raise Malformed("has no sequence number", json=True)
    if not isinstance(prev, str) or _SHA256.fullmatch(prev) is None:
        raise Malformed("has no digest of the line before it", json=True)
    if not isinstance(time, str) or not isinstance(kind, str) or kind not in KINDS:
        raise Malformed("has no time, or no kind that this version knows", json=True)
    if not _names_releases(kind, document):
        raise Malformed(f"does not name its releases as a record of kind {kind} does", json=True)
    return Record(seq=seq, prev=prev, time=time, kind=kind, data=document, sha256=sha256)


def _names_releases(kind: str, data: Mapping[str, Any]) -> bool:
    """Whether its own digest, which anybody can make, is of something that can be worked with."""
    release, adopted = data.get("release"), data.get("adopted", [])
    named = isinstance(release, str) or (release is None and kind not in {"intent", "commit", "abort"})
    return named and isinstance(adopted, list) and all(isinstance(name, str) for name in adopted)


def intact(line: bytes, record: Record) -> bool:
    """Whether the line's digest is right for its bytes and its own `prev`."""
    return _digest(record.prev, line.rstrip(b"\n")[:-_SEAL_LENGTH] + b"}") == record.sha256


def audit(lines: Iterable[bytes]) -> Iterator[Finding]:
    """Report every break, each one once: after it the check goes on from what the line itself says.

    Args:
        lines: with their line ends.
    """
    standing: Standing | None = Standing()
    expected = 0
    for number, line in enumerate(lines, 1):
        expected += 1
        if not line.endswith(b"\n"):
            yield Finding(number, "torn", "is unfinished, as a crash leaves it; the next start removes it")
            return
        try:
            record = decode(line)
        except Malformed as error:
            yield Finding(number, "malformed", str(error))
            standing = None
            continue
        if not intact(line, record):
            yield Finding(number, "hash", f"record {record.seq} was changed: its sha256 doesn't match it")
        if record.seq != expected:
            yield Finding(number, "gap", f"is record {record.seq}, record {expected} should stand here")
        elif standing is not None and record.prev != standing.sha256:
            yield Finding(number, "chain", f"record {record.seq} doesn't follow on the record before it")
        if standing is None or record.seq != expected:  # what was pending before the break is unknown
            standing = Standing()
        elif fault := standing.objection(record.kind, record.data):
            yield Finding(number, fault[0], fault[1])
        standing.apply(record)
        expected = record.seq


def fold(records: Iterable[Record]) -> Standing:
    """Return what the records together say."""
    standing = Standing()
    for record in records:
        standing.apply(record)
    return standing


@dataclass(slots=True)
class Standing:
    """What a history says about its folder after its last record.

    Attributes:
        seq: of the last record, 0 if there is none.
        sha256: of the last record.
        pending: the intent without an outcome, if the last swap was not concluded.
        live: id of the release that was made live last.
        committed: `seq` of the last commit.
        unconcluded: the last commit, if something was to follow it (who is told, whether all is well) and
            it was not recorded that it did.
        doubtful: ids of the releases that were on probation and never seen to do well.
        order: ids of the releases that were live, as one would go back through them: a rollback takes those
            it leaves out, so that the next one goes further back and not forth again.
        released: ids of the releases that were published and not pruned.
        barred: contents that a rollback, a change by hand, or something saved by hand, left; they become live
            again by an explicit command only.
        highest: the highest sequence number of a release it names.
    """

    seq: int = 0
    sha256: str = GENESIS
    pending: Record | None = None
    live: str | None = None
    committed: int = 0
    unconcluded: Record | None = None
    doubtful: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    released: set[str] = field(default_factory=set)
    barred: set[str] = field(default_factory=set)
    highest: int = 0

    def objection(self, kind: str, data: Mapping[str, Any]) -> tuple[Break, str] | None:
        """Say why such a record can't come next, or ``None`` if it can.

        An intent must be concluded before anything else is recorded, and only an intent can be concluded.
        """
        if self.pending is not None and kind not in OUTCOMES:
            return "intent", f"the intent of record {self.pending.seq} has no outcome"
        if kind in {"commit", "abort"}:
            if self.pending is None:
                return "outcome", f"a record of kind {kind} without an intent before it"
            if data.get("release") != self.pending.data.get("release"):
                return "outcome", f"names another release than the intent of record {self.pending.seq}"
        return None

    def apply(self, record: Record) -> None:
        """Take one more record into account."""
        data = record.data
        release = data.get("release")
        self.seq, self.sha256 = record.seq, record.sha256
        if isinstance(release, str):
            self.highest = max(self.highest, parse_release_id(release) or 0)
        if record.kind == "intent":
            self.pending = record
        elif record.kind in OUTCOMES:
            self.pending = None
        if record.kind == "commit":
            self._committed(record)
            self._made_live(release, data, back=data.get("trigger") == "rollback")
        elif record.kind == "concluded":
            self._concluded(data)
        elif record.kind == "recovered":
            if release != self.live:  # else nothing else went live
                self.unconcluded = None
            adopted = data.get("adopted", ())
            self.released.update(adopted)
            self.highest = max(self.highest, *(parse_release_id(name) or 0 for name in adopted), 0)
            self._made_live(release, data, back=True)
        elif record.kind == "pruned" and isinstance(release, str):
            self.released.discard(release)
            self.doubtful.discard(release)
            if release in self.order:
                self.order.remove(release)

    def _committed(self, record: Record) -> None:
        self.committed = record.seq
        cut_short = self.unconcluded
        if cut_short is not None and cut_short.data.get("probation"):
            self.doubtful.add(cut_short.data["release"])
        self.doubtful.discard(record.data["release"])
        self.unconcluded = record if record.data.get("follow_up") else None

    def _concluded(self, data: Mapping[str, Any]) -> None:
        if self.unconcluded is not None and data.get("of") == self.unconcluded.seq:
            if data.get("unwell"):
                self.doubtful.add(self.unconcluded.data["release"])
            self.unconcluded = None

    def _made_live(self, release: str | None, data: Mapping[str, Any], *, back: bool) -> None:
        self.live = release
        if release is None:
            return
        if release in self.order:
            place = self.order.index(release)
            del self.order[place : None if back else place + 1]
        self.order.append(release)
        self.released.add(release)
        left, content = data.get("previous_content_sha256"), data.get("content_sha256")
        if (back or data.get("saved")) and isinstance(left, str):
            self.barred.add(left)
        if isinstance(content, str):
            self.barred.discard(content)


def _digest(prev: str, body: bytes) -> str:
    return hashlib.sha256(prev.encode() + body).hexdigest()
