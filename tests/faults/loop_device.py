"""File systems of our own in a file, as root: mounted, shut down or copied as a power cut would leave them.

Everything is unmounted and detached again, also on failure. What a machine lacks for it is said by `lacks`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_MiB = 1 << 20
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of linux/fs.h, XFS_IOC_GOINGDOWN of xfs
_WITH_LOG_FLUSH, _WITHOUT_LOG_FLUSH = 1, 2
_SIZES: Final = {"ext4": 48 * _MiB, "xfs": 320 * _MiB, "btrfs": 160 * _MiB}
_MAKE: Final = {
    "ext4": ("-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("-q", "-f"),
    "btrfs": ("-q", "-f"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A file system and how it is mounted."""

    name: str
    options: tuple[str, ...] = ()
    size_bytes: int = 0
    make: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, *self.options))

    @property
    def shuts_down(self) -> bool:
        """Whether it can be made to forget all it has not written: btrfs can't on most kernels."""
        return self.name in {"ext4", "xfs"}


def lacks(kind: str) -> str:
    """What this machine lacks to mount such a file system; empty if it lacks nothing."""
    if os.geteuid() != 0:
        return "mounts a file system: needs root"
    if kind != "tmpfs" and shutil.which(f"mkfs.{kind}") is None:
        return f"mkfs.{kind} is not installed"
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    if kind not in known:
        return f"the kernel knows no {kind}"
    if kind != "tmpfs" and not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return ""


class Mounted:
    """One file system, made anew and mounted; a context manager.

    Attributes:
        path: where it is mounted.
        image: the file it is in.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        """Nothing is made yet.

        Args:
            folder: an empty directory for the image and the mount point.
            kind: what is made.
        """
        self.path = folder / "mounted"
        self.image = folder / "image"
        self._kind = kind
        self._mounted = False

    def __enter__(self) -> Self:
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(self._kind.size_bytes or _SIZES[self._kind.name])
        _run(f"mkfs.{self._kind.name}", *_MAKE[self._kind.name], *self._kind.make, str(self.image))
        self.mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mounted:
            self.unmount(lazily=kind is not None)

    def mount(self, *options: str) -> None:
        """Mount it; what its journal holds is replayed."""
        chosen = ",".join(("loop", *self._kind.options, *options))
        _run("mount", "-t", self._kind.name, "-o", chosen, str(self.image), str(self.path))
        self._mounted = True

    def unmount(self, *, lazily: bool = False) -> None:
        """Unmount it; lazily, whoever has files of it open keeps them."""
        _run("umount", *(["--lazy"] if lazily else []), str(self.path))
        self._mounted = False

    def remount(self, *options: str) -> None:
        """Mount it otherwise, such as ``ro``."""
        _run("mount", "-o", ",".join(("remount", *options)), str(self.path))

    def shut_down(self, *, flush_log: bool) -> None:
        """Cut its power: all that it has not written is lost, and its log too if it is not flushed."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            how = _WITH_LOG_FLUSH if flush_log else _WITHOUT_LOG_FLUSH
            fcntl.ioctl(fd, _SHUTDOWN, how.to_bytes(4, "little"))
        finally:
            os.close(fd)

    def copy_image(self, to: Path) -> bool:
        """Copy what is on the device now; whether nothing was written to it meanwhile."""
        before = self._written()
        _run("cp", "--sparse=always", str(self.image), str(to))
        return self._written() == before

    def replace_image(self, by: Path) -> None:
        """Let the device hold what it held when it was copied; it is not mounted."""
        assert not self._mounted
        by.replace(self.image)

    def _written(self) -> tuple[str, ...]:
        """What says that something was, or is being, written: see Documentation/block/stat.rst."""
        device = self.path.stat().st_dev
        if self._kind.name == "btrfs":  # has device numbers of its own
            source = _run("findmnt", "-no", "SOURCE", str(self.path)).strip()
            device = Path(source).stat().st_rdev
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text("ascii").split()
        return fields[4], fields[6], fields[8]  # writes, sectors written, in flight


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
