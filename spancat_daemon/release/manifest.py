r"""``release.json``: what a release is, where it came from, and the digest of every file in it.

The digests are those of ``sha256sum``. In a release's directory, with nothing but standard tools:

* every file is what the manifest says (either line)::

    python3 -c 'import json; [print(f["sha256"], p, sep="  ")
      for p, f in json.load(open("release.json"))["files"].items()]' | sha256sum -c
    jq -r '.files | to_entries[] | .value.sha256 + "  " + .key' release.json | sha256sum -c

* the identity of the content, ``content_sha256``, is::

    find . -type f ! -path ./release.json -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeGuard

import orjson

from spancat_daemon import frugal_json
from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_NAME: Final = "release.json"
MODEL_NAME: Final = "model.bin"
SCHEMA: Final = 1
MANIFEST_LIMIT_BYTES: Final = 64 << 20  # 10,000 files with long names and as many labels stay below 10 MB

_REMEMBERED_BYTES: Final = 16 << 10  # a usual one has 4 KiB; 128 of the largest ones take some 10 MB
_DEEPEST = 32  # of metrics and verdicts; beyond it lies nonsense, and the recursion limit
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEADS_OUT = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0")
"""What a path has that need not be below a directory that it is joined to: an empty part, ``.`` or ``..``."""
_RELEASE_ID = re.compile(r"([0-9]{6}|[1-9][0-9]{6,17})-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


class BadManifest(SpancatDaemonError):  # noqa: N818  # a verdict on a file
    """A ``release.json`` that is missing, damaged or of a newer version of spancat-daemon."""


class FileDigest(NamedTuple):
    """One file of a release.

    Attributes:
        sha256: 64 lower-case hexadecimal digits, as ``sha256sum`` prints them.
        bytes: its size.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything ``release.json`` says.

    Attributes:
        schema: version of this format.
        id: the release's name, see `release_id`.
        sequence: its number in the deployment folder; the order of releases, whatever clocks do.
        rule: the rule it was made for.
        created_at: when it was staged, RFC 3339 in UTC with microseconds and ``Z``.
        trigger: why it was made: ``change``, ``schedule``, ``signal``, ``manual``, ``startup``, ….
        forced: whether it was made even though its content might be the live one's.
        changed: whether its content differs from that of the release before it.
        source: the checkpoint's path.
        contents: ``pipeline``, ``component`` or ``standalone``.
        component: name of the span categorizer in the pipeline.
        factory: its factory, ``spancat`` or ``spancat_singlelabel``.
        labels: its labels, in the order of the model's outputs.
        spans_key: where in ``doc.spans`` it writes.
        threshold: from which score on; ``None`` where the factory has none.
        lang: the pipeline's language code.
        pipeline: the names of its pipes, in order.
        spacy_version: range of spaCy versions the checkpoint names.
        verifier: versions of spaCy, thinc and Python that loaded it before it went live; ``None`` if none
            did.
        metrics: the scores in the checkpoint's meta.json.
        metrics_may_be_stale: whether the trainer may have saved without scoring anew.
        files: digest and size of each file but ``release.json`` itself, by path.
        model_sha256: digest of ``model.bin``.
        content_sha256: the identity of the content, see `content_digest`.
        previous: id of the release that was live when this one was made.
        verification: verdict of the gates.
        derived_from: identity of the files that it was made of, where those of the checkpoint are not its
            own; ``None`` where they are, and in manifests of versions that made none.
    """

    schema: int = SCHEMA
    id: str
    sequence: int
    rule: str
    created_at: str
    trigger: str
    forced: bool
    changed: bool
    source: str
    contents: str
    component: str
    factory: str
    labels: tuple[str, ...]
    spans_key: str
    threshold: float | None
    lang: str
    pipeline: tuple[str, ...]
    spacy_version: str
    verifier: Mapping[str, str] | None
    metrics: Mapping[str, Any]
    metrics_may_be_stale: bool
    files: Mapping[str, FileDigest]
    model_sha256: str
    content_sha256: str
    previous: str | None
    verification: Mapping[str, Any]
    derived_from: str | None = None

    @property
    def content_bytes(self) -> int:
        """Sum of the sizes of the files; ``model.bin``, another name of one of them, is not counted twice."""
        return sum(digest.bytes for path, digest in self.files.items() if path != MODEL_NAME)


def content_digest(files: Mapping[str, FileDigest]) -> str:
    """Digest of a release's content: SHA-256 of what ``sha256sum`` prints for its files, sorted by path.

    `files` holds every file but the manifest. Paths sort by their UTF-8 bytes, as ``LC_ALL=C sort`` does.
    """
    lines = "".join([sha256sum_line(path, files[path].sha256) for path in sorted(files)])
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256sum_line(path: str, sha256: str) -> str:
    r"""Return the line that ``sha256sum`` prints and ``sha256sum -c`` reads, with its end.

    A name with a backslash is escaped, and the line then starts with one, as coreutils does it; names with
    line ends never get into a release.
    """
    if "\\" in path:
        escaped = path.replace("\\", "\\\\")
        return f"\\{sha256}  {escaped}\n"
    return f"{sha256}  {path}\n"


def release_id(sequence: int, created: datetime, content_sha256: str) -> str:
    """Return the name of a release, such as ``000042-20261122T113045Z-3f2a9c1b``.

    Args:
        sequence: its number, from 1.
        created: an aware time.
        content_sha256: of which the first 8 digits show.
    """
    return f"{sequence:06d}-{created.astimezone(UTC):%Y%m%dT%H%M%SZ}-{content_sha256[:8]}"


def parse_release_id(name: str) -> int | None:
    """Return the sequence number in a release's name, or ``None`` if it is not such a name."""
    match = _RELEASE_ID.fullmatch(name)
    return int(match[1]) if match is not None else None


def dump(manifest: Manifest) -> bytes:
    r"""Return the bytes of ``release.json``: the same for equal manifests, indented, with a line end.

    Fields come in the order of `Manifest`, labels and pipes in theirs, the rest sorted by key. What JSON
    can't say is written as the nearest it can: NaN and infinities as ``null``, bytes of a path that are not
    UTF-8 as ``\x80`` and the like, integers beyond 64 bits as floats.
    """
    document = {field.name: plain(getattr(manifest, field.name)) for field in fields(Manifest)}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def read(path: Path) -> Manifest:
    """Read and check a ``release.json``.

    Keys it doesn't know are ignored, so that a later version can add some; one with another `schema` is not
    guessed at.

    Raises:
        BadManifest: it is missing, unreadable or not a manifest; names the file and the key.
    """
    where = str(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            raw = _read_to_end(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise BadManifest(f"can't be read: {error.strerror}", where=where) from error
    return _parse_again(raw, where) if len(raw) <= _REMEMBERED_BYTES else parse(raw, where=where)


def _read_to_end(fd: int) -> bytes:
    """All of a file, or so much of it that it is too large.

    Asked for the most that it may be, Python makes room for that, which takes longer than all the rest.
    """
    wanted = min(os.fstat(fd).st_size, MANIFEST_LIMIT_BYTES) + 1
    raw = os.read(fd, wanted)
    while len(raw) >= wanted and len(raw) <= MANIFEST_LIMIT_BYTES:  # it has grown since
        more = os.read(fd, MANIFEST_LIMIT_BYTES + 1 - len(raw))
        if not more:
            break
        raw += more
    return raw


def parse(raw: bytes, *, where: str) -> Manifest:
    """Do `read` for bytes that came from `where`."""
    if len(raw) > MANIFEST_LIMIT_BYTES:
        raise BadManifest(f"is larger than {MANIFEST_LIMIT_BYTES} bytes", where=where)
    try:
        document = frugal_json.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadManifest(f"is not JSON: {error}", where=where) from error
    except ValueError as error:
        raise BadManifest(f"holds {error}", where=where) from None
    if not isinstance(document, dict):
        raise BadManifest("is not a JSON object", where=where)
    schema = document.get("schema")
    if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
        raise BadManifest(
            f"has schema {schema}, this version knows {SCHEMA}",
            where=where,
            hint="a newer spancat-daemon made this release: use that one",
        )
    manifest = Manifest(**_checked(document, where))
    if parse_release_id(manifest.id) != manifest.sequence:
        raise BadManifest(f"says sequence {manifest.sequence} and id {manifest.id!r}", where=where)
    if content_digest(manifest.files) != manifest.content_sha256:
        raise BadManifest(
            "content_sha256 is not the digest of its files: it was changed after it was made", where=where
        )
    return manifest


def _checked(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, (wanted, check) in _FIELDS.items():
        if key not in document:
            if key in _LATER:
                continue
            raise BadManifest(f"lacks {key!r}", where=where)
        try:
            values[key] = check(document[key])
        except _Wrong:
            raise BadManifest(f"{key!r} is not {wanted}", where=where) from None
    return values


@lru_cache(maxsize=128)
def _parse_again(raw: bytes, where: str) -> Manifest:
    # A folder's manifests never change, and every look at the folder reads them all.
    return parse(raw, where=where)


def forget() -> None:
    """Forget the manifests that were read last, for the memory they take; the next look reads them again."""
    _parse_again.cache_clear()


class _Wrong(Exception):  # noqa: N818  # never leaves this module
    """A value of another type than its key asks for."""


def _schema(value: Any) -> int:
    if not _is_int(value) or value != SCHEMA:
        raise _Wrong
    return SCHEMA


def _release_name(value: Any) -> str:
    if parse_release_id(_text(value)) is None:
        raise _Wrong
    return _text(value)


def _positive(value: Any) -> int:
    if not _is_int(value) or value < 1:
        raise _Wrong
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Wrong
    return tuple(_text(item) for item in value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong
    return value


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong
    return float(value)


def _time(value: Any) -> str:
    text = _text(value)
    if _RFC3339.fullmatch(text) is None:
        raise _Wrong
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise _Wrong from None
    return text


def _sha256(value: Any) -> str:
    if _SHA256.fullmatch(_text(value)) is None:
        raise _Wrong
    return _text(value)


def _sha256_or_none(value: Any) -> str | None:
    return None if value is None else _sha256(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong
    return value


def _versions(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    return {key: _text(version) for key, version in _object(value).items()}


def _files(value: Any) -> dict[str, FileDigest]:
    # Nearly all that a manifest holds: what orjson made has exactly these types
    found: dict[str, FileDigest] = {}
    for path, entry in _object(value).items():
        if type(entry) is not dict or _LEADS_OUT.search(path):
            raise _Wrong
        sha256, size = entry.get("sha256"), entry.get("bytes")
        if type(size) is not int or size < 0 or type(sha256) is not str or not _SHA256.fullmatch(sha256):
            raise _Wrong
        found[path] = FileDigest(sha256, size)
    return found


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


_FIELDS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "schema": ("the number 1", _schema),
    "id": ("a release id", _release_name),
    "sequence": ("a positive integer", _positive),
    "rule": ("a string", _text),
    "created_at": ("a time like 2026-11-22T11:30:45.000000Z", _time),
    "trigger": ("a string", _text),
    "forced": ("true or false", _flag),
    "changed": ("true or false", _flag),
    "source": ("a string", _text),
    "contents": ("a string", _text),
    "component": ("a string", _text),
    "factory": ("a string", _text),
    "labels": ("a list of strings", _texts),
    "spans_key": ("a string", _text),
    "threshold": ("a number or null", _threshold),
    "lang": ("a string", _text),
    "pipeline": ("a list of strings", _texts),
    "spacy_version": ("a string", _text),
    "verifier": ("an object of strings or null", _versions),
    "metrics": ("an object", _object),
    "metrics_may_be_stale": ("true or false", _flag),
    "files": ("an object of {sha256, bytes} by relative path", _files),
    "model_sha256": ("a SHA-256", _sha256),
    "content_sha256": ("a SHA-256", _sha256),
    "previous": ("a string or null", _text_or_none),
    "verification": ("an object", _object),
    "derived_from": ("a SHA-256 or null", _sha256_or_none),
}
"""What each key must hold, and what takes it from JSON or raises `_Wrong`."""

_LATER: Final = frozenset({"derived_from"})
"""Keys that earlier versions of this schema did not write."""


def plain(value: Any, depth: int = 0) -> Any:  # one line for each kind of JSON value
    """Make a value one that JSON can say, see `dump`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text_of_unicode(value)
    if isinstance(value, FileDigest):
        return {"sha256": value.sha256, "bytes": value.bytes}
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < (1 << 63) else _finite(value)
    if isinstance(value, float):
        return _finite(value)
    if depth >= _DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(value[key], depth + 1) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in a manifest")


def _text_of_unicode(value: str) -> str:
    try:
        raw = value.encode("utf-8", "surrogateescape")  # a file name
    except UnicodeEncodeError:
        raw = value.encode("utf-8", "backslashreplace")  # JSON can spell half a character
    return raw.decode("utf-8", "backslashreplace")


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
