"""What a program does to a directory tree, call by call, as the file system sees it: inodes and names.

While a `Recording` is held, the functions of `os` that change a file system, and the renames of
``release/durability.py``, are recorded if they concern the tree. It can also let the program die before any
of them, as ``kill -9`` would: from then on nothing changes any more.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from spancat_daemon.release import durability as seam
from spancat_daemon.release.durability import Durability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Node = int
"""One inode; its number is never given again."""
ROOT: Final[Node] = 0
_EXCHANGE = 2


@dataclass(frozen=True, slots=True)
class Written:
    """The bytes of a file are others now."""

    node: Node
    content: bytes


@dataclass(frozen=True, slots=True)
class Named:
    """Names of directories mean others now, in one step; None: a name is gone.

    Attributes:
        names: directory, name, and what it means now.
        splits: whether making one of its directories stay makes only that half of it stay: a plain rename
            from one directory to another. An exchange is whole or not at all.
    """

    names: tuple[tuple[Node, str, Node | None], ...]
    splits: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """A file or a directory was made to stay, by the call at `site`."""

    node: Node
    site: str


@dataclass(frozen=True, slots=True)
class Told:
    """From now on somebody relies on something."""

    what: str
    value: str


Event = Written | Named | Synced | Told
Kind = Literal["directory", "file", "link"]


class Died(BaseException):
    """The recorded program was killed."""


class Recording(Durability):
    """Records; it is the durability of the program as well.

    Attributes:
        events: in their order.
        kinds: what each node is.
        targets: where the links lead.
        calls: how many calls that change something, or make it stay, were begun.
    """

    def __init__(self, root: Path) -> None:
        """Records an empty directory."""
        self.events: list[Event] = []
        self.kinds: dict[Node, Kind] = {ROOT: "directory"}
        self.targets: dict[Node, str] = {}
        self.calls = 0
        self._nodes: dict[tuple[int, int], Node] = {_key(root.stat()): ROOT}
        self._contents: dict[Node, bytes] = {}
        self._dies_at: int | None = None

    def tell(self, what: str, value: str) -> None:
        """Record that somebody relies on something."""
        self.events.append(Told(what, value))

    def dies_at(self, call: int) -> None:
        """Let the program die before the `call`-th call from now on, and stay dead until `revive`."""
        self._dies_at = self.calls + call

    def revive(self) -> None:
        """Let a new process begin."""
        self._dies_at = None

    def sync_file(self, fd: int) -> None:
        self._sync(fd)

    def sync_data(self, fd: int) -> None:
        self._sync(fd)

    def sync_directory(self, fd: int) -> None:
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        self._begin()
        node = self._nodes.get(_key(os.fstat(fd)))
        if node is not None:
            self._look_at(fd)
            self.events.append(Synced(node, _site()))

    def _begin(self) -> None:
        self.calls += 1
        if self._dies_at is not None and self.calls >= self._dies_at:
            raise Died

    @contextmanager
    def held(self) -> Iterator[None]:
        """Record all that happens meanwhile."""
        replaced: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
            original = getattr(owner, name)
            replaced.append((owner, name, original))

            def call(*args: Any, **kwargs: Any) -> Any:
                return wrapper(original, *args, **kwargs)

            setattr(owner, name, call)

        for name in ("write", "pwrite", "ftruncate"):
            replace(os, name, self._writes)
        replace(os, "copy_file_range", self._copies)
        replace(os, "open", self._opens)
        for name in ("mkdir", "symlink"):
            replace(os, name, self._makes)
        for name in ("unlink", "remove", "rmdir"):
            replace(os, name, self._removes)
        replace(os, "link", self._links)
        for name in ("rename", "replace"):
            replace(os, name, self._renames)
        replace(seam, "_rename", self._renames_with_flags)
        try:
            yield
        finally:
            for owner, name, original in reversed(replaced):
                setattr(owner, name, original)

    def _writes(self, original: Callable[..., Any], fd: int, *args: Any) -> Any:
        if _key(os.fstat(fd)) not in self._nodes:
            return original(fd, *args)
        self._begin()
        done = original(fd, *args)
        self._look_at(fd)
        return done

    def _copies(self, original: Callable[..., Any], source: int, target: int, *args: Any) -> Any:
        self._begin()
        done = original(source, target, *args)
        self._look_at(target)
        return done

    def _opens(self, original: Callable[..., Any], path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        place = self._place(path, kwargs.get("dir_fd")) if flags & os.O_CREAT else None
        if place is None:
            return original(path, flags, *args, **kwargs)
        self._begin()
        is_new = self._at(path, kwargs.get("dir_fd")) is None
        fd = original(path, flags, *args, **kwargs)
        if is_new:
            self._made(os.fstat(fd), place)
        self._look_at(fd)
        return fd

    def _makes(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        path = args[1] if original.__name__ == "symlink" else args[0]
        place = self._place(path, kwargs.get("dir_fd"))
        if place is not None:
            self._begin()
        original(*args, **kwargs)
        if place is not None:
            self._made(os.stat(path, dir_fd=kwargs.get("dir_fd"), follow_symlinks=False), place)
            if original.__name__ == "symlink":
                named = self.events[-1]
                assert isinstance(named, Named)
                assert named.names[0][2] is not None
                self.targets[named.names[0][2]] = os.fspath(args[0])

    def _removes(self, original: Callable[..., Any], path: Any, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        if place is not None:
            self._begin()
            self._forget(path, dir_fd)
        original(path, dir_fd=dir_fd)
        if place is not None:
            self.events.append(Named(((*place, None),)))

    def _links(self, original: Callable[..., Any], source: Any, path: Any, **kwargs: Any) -> None:
        place = self._place(path, kwargs.get("dst_dir_fd"))
        if place is not None:
            self._begin()
        original(source, path, **kwargs)
        if place is not None:
            self.events.append(Named(((*place, self._known(path, kwargs.get("dst_dir_fd"))),)))

    def _renames(self, original: Callable[..., Any], source: Any, path: Any) -> None:
        self._move(source, path, lambda: original(source, path))

    def _renames_with_flags(self, original: Callable[..., Any], a: Path, b: Path, flags: int) -> None:
        if flags != _EXCHANGE:
            self._move(a, b, lambda: original(a, b, flags))
            return
        self._begin()
        one, other = self._place(a, None), self._place(b, None)
        assert one is not None
        assert other is not None
        nodes = self._known(a, None), self._known(b, None)
        original(a, b, flags)
        self.events.append(Named(((*one, nodes[1]), (*other, nodes[0]))))

    def _move(self, source: Any, path: Any, move: Callable[[], None]) -> None:
        old, new = self._place(source, None), self._place(path, None)
        if old is None and new is None:
            move()
            return
        assert old is not None
        assert new is not None, "something is moved out of the tree"
        self._begin()
        node = self._known(source, None)
        if self._at(path, None) is not None:
            self._forget(path, None)
        move()
        self.events.append(Named(((*old, None), (*new, node)), splits=old[0] != new[0]))

    def _place(self, path: Any, dir_fd: int | None) -> tuple[Node, str] | None:
        """Which directory of the tree a name is in, and the name; None: it is in none."""
        folder, name = os.path.split(os.fsdecode(path))
        try:
            status = os.stat(folder or ".", dir_fd=dir_fd) if folder or dir_fd is None else os.fstat(dir_fd)
        except FileNotFoundError:
            return None
        node = self._nodes.get(_key(status))
        return None if node is None else (node, name)

    @staticmethod
    def _at(path: Any, dir_fd: int | None) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _known(self, path: Any, dir_fd: int | None) -> Node:
        return self._nodes[_key(os.stat(path, dir_fd=dir_fd, follow_symlinks=False))]

    def _made(self, status: os.stat_result, place: tuple[Node, str]) -> None:
        node = len(self.kinds)
        self._nodes[_key(status)] = node
        kinds: dict[int, Kind] = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
        self.kinds[node] = kinds[stat.S_IFMT(status.st_mode)]
        self.events.append(Named(((*place, node),)))

    def _forget(self, path: Any, dir_fd: int | None) -> None:
        """An inode that loses its last name: its number may soon be another's."""
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            self._nodes.pop(_key(status), None)

    def _look_at(self, fd: int) -> None:
        status = os.fstat(fd)
        node = self._nodes.get(_key(status))
        if node is None or not stat.S_ISREG(status.st_mode):
            return
        content = Path(f"/proc/self/fd/{fd}").read_bytes()
        if content != self._contents.get(node, b""):
            self._contents[node] = content
            self.events.append(Written(node, content))


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _site() -> str:
    """Where in the project the call comes from."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in {__file__, seam.__file__}:
        assert frame.f_back is not None
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
