"""Every way in which checkpoints come to be written, step by step, and generations that differ in every file.

A writer yields after each call that changes a file system, so that whoever drives it can stop there, be
killed there, or do something else first. Standard library and msgpack only: processes that are forked, and
killed by the thousand, hold it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships without types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Files = dict[str, bytes]
"""The files of one generation by path, in the order in which spaCy writes them."""

# As Language.to_disk writes the variant "not_first" of tests.pipelines.
ORDER: Final = (
    *("tokenizer", "meta.json", "config.cfg", "sentencizer.json", "tok2vec/cfg", "tok2vec/model"),
    *("tagger/cfg", "tagger/model", "ner/model", "ner/moves", "ner/cfg", "spancat/cfg", "spancat/model"),
    *("vocab/strings.json", "vocab/vectors", "vocab/key2row", "vocab/vectors.cfg", "vocab/lookups.bin"),
)


class Generations:
    """Checkpoints of one training, as many as are wanted; no two share the bytes of any file.

    Most files keep their length from one generation to the next, as they do in a training, and some don't.
    """

    def __init__(self, base: Path) -> None:
        present = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
        assert present == set(ORDER), present ^ set(ORDER)
        self._base = {path: (base / path).read_bytes() for path in ORDER}

    def __getitem__(self, number: int) -> Files:
        return {path: _varied(path, data, number) for path, data in self._base.items()}


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 by path."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def _varied(path: str, data: bytes, number: int) -> bytes:
    mark = f"{number:08d}" + "+" * (number % 3 * 7)
    name = path.rpartition("/")[2]
    if name == "model":
        return _other_weights(data, random.Random(number))  # noqa: S311  # bytes, not secrets
    if name == "config.cfg":
        return f"# {mark}\n".encode() + data
    if name == "vectors":
        return _npy(number)
    if name in {"tokenizer", "moves", "key2row", "lookups.bin"}:
        value = msgpack.unpackb(data, strict_map_key=False)
        packed: bytes = msgpack.packb(value | {"generation": mark})
        return packed
    value = json.loads(data)
    value = [*value, mark] if isinstance(value, list) else value | {"generation": mark}
    return json.dumps(value).encode()


def _other_weights(data: bytes, chance: random.Random) -> bytes:
    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        return chance.randbytes(len(value)) if isinstance(value, bytes) and len(value) >= 16 else value

    model = msgpack.unpackb(data, strict_map_key=False)
    packed: bytes = msgpack.packb({**model, "params": changed(model["params"])})
    assert len(packed) == len(data)
    return packed


def _npy(number: int) -> bytes:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (16, 4), }"
    head += b" " * (117 - len(head)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + random.Random(number).randbytes(256)  # noqa: S311  # as above


# -- one file -------------------------------------------------------------------------------------------


def truncating(path: Path, data: bytes, pieces: int = 2) -> Iterator[None]:
    """As `open(path, "wb")` and some writes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        yield
        for piece in _pieces(data, pieces):
            os.write(fd, piece)
            yield
    finally:
        os.close(fd)


def dribbling(path: Path, data: bytes) -> Iterator[None]:
    """Some bytes at a time."""
    yield from truncating(path, data, 16)


def mapping(path: Path, data: bytes) -> Iterator[None]:
    """As numpy's memmap with mode "w+": emptied, given its length, and then filled through memory."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        yield
        os.ftruncate(fd, len(data))
        yield
        with mmap.mmap(fd, len(data)) as memory:
            position = 0
            for piece in _pieces(data, 3 if len(data) > mmap.PAGESIZE else 1):
                memory[position : position + len(piece)] = piece
                position += len(piece)
                yield
            memory.flush()
            yield
    finally:
        os.close(fd)


def renaming(path: Path, data: bytes) -> Iterator[None]:
    """Under another name, which is then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield from truncating(temporary, data)
    temporary.rename(path)
    yield


def _pieces(data: bytes, number: int) -> Iterator[bytes]:
    size = -(-len(data) // number)
    for start in range(0, len(data), size):
        yield data[start : start + size]


# -- a whole checkpoint ---------------------------------------------------------------------------------


def save(
    folder: Path, files: Files, write: Callable[[Path, bytes], Iterator[None]] = truncating
) -> Iterator[None]:
    """As `Language.to_disk`: file by file, in place."""
    for path, data in files.items():
        if not (folder / path).parent.is_dir():
            (folder / path).parent.mkdir(parents=True)
            yield
        yield from write(folder / path, data)


def save_dribbling(folder: Path, files: Files) -> Iterator[None]:
    """In place, a few bytes at a time."""
    yield from save(folder, files, dribbling)


def save_mapped(folder: Path, files: Files) -> Iterator[None]:
    """In place, through memory."""
    yield from save(folder, files, mapping)


def save_renaming(folder: Path, files: Files) -> Iterator[None]:
    """Each file renamed into its place."""
    yield from save(folder, files, renaming)


def copy_again(folder: Path, files: Files) -> Iterator[None]:
    """As spaCy makes model-best: model-last in place, then rmtree and copytree, which keeps times."""
    last = folder.with_name("model-last")
    yield from save(last, files)
    yield from _remove(folder)
    yield from _copy_tree(last, folder, hashlib.sha256(files["meta.json"]).digest())


def rename_in(folder: Path, files: Files) -> Iterator[None]:
    """Another directory in its place; for an instant there is none."""
    new, old = folder.with_name("new"), folder.with_name("old")
    yield from _remove(old)
    yield from _remove(new)
    yield from save(new, files)
    if folder.exists():
        folder.rename(old)
        yield
    new.rename(folder)
    yield
    yield from _remove(old)


def link_over(folder: Path, files: Files) -> Iterator[None]:
    """A link that comes to lead to another directory, and the one before is emptied at once."""
    link = folder.with_name("link")
    before = folder.readlink() if folder.is_symlink() else None
    new = folder.with_name("even" if before is not None and before.name == "odd" else "odd")
    yield from _remove(new)
    yield from save(new, files)
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    yield
    link.rename(folder)
    yield
    if before is not None:
        yield from _remove(folder.with_name(before.name))


def _remove(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _remove(Path(entry.path))
        else:
            Path(entry.path).unlink()
            yield
    folder.rmdir()
    yield


def _copy_tree(source: Path, target: Path, seed: bytes) -> Iterator[None]:
    """As `shutil.copytree`: each time is set after the bytes, a directory's last.

    The order is that of the directory's entries, which is any: here that which the seed says.
    """
    target.mkdir()
    yield
    for entry in sorted(
        os.scandir(source), key=lambda entry: hashlib.sha256(seed + entry.name.encode()).digest()
    ):
        if entry.is_dir():
            yield from _copy_tree(Path(entry.path), target / entry.name, seed)
            continue
        yield from truncating(target / entry.name, Path(entry.path).read_bytes(), 1)
        status = entry.stat()
        os.utime(target / entry.name, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    yield


WRITERS: Final[dict[str, Callable[[Path, Files], Iterator[None]]]] = {
    "in place, as spaCy saves": save,
    "rmtree and copytree, as spaCy makes model-best": copy_again,
    "a few bytes at a time": save_dribbling,
    "through mapped memory": save_mapped,
    "each file renamed into place": save_renaming,
    "a directory renamed into place": rename_in,
    "a link that comes to lead elsewhere": link_over,
}
