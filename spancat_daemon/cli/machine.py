"""What `check` looks at on the machine: whether it can do what the configuration asks of it."""

from __future__ import annotations

import errno
import os
import pwd
import secrets
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from spancat_daemon.checkpoint.spool import ENTRIES, open_checkpoint, watched_path
from spancat_daemon.cli.finding import Finding
from spancat_daemon.config.expand import glob_root, targets
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.observe.render import size
from spancat_daemon.release.folder import DeploymentFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Configuration, Watch

_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "afs", "virtiofs"}
_COUNTED_DIRECTORIES = 100_000
_JOIN = "add the daemon's user to the trainer's group"


def inspect(configuration: Configuration) -> Iterator[Finding]:
    """Looks at everything that the daemon will need, as the user who runs this.

    Writes nothing that stays: what can't be known otherwise is tried with names that are removed at once.
    """
    yield from _daemon(configuration)
    yield from _log(configuration)
    unreadable: list[Path] = []
    now = targets(configuration, unreadable=lambda folder, _: unreadable.append(folder))
    for watch in configuration.watch:
        yield from _source(watch, [target for target in now if target.watch.name == watch.name])
    roots = {glob_root(watch.source) for watch in configuration.watch}
    for folder in sorted({*unreadable} - roots):  # of a root its rule tells
        yield Finding("error", "watch", f"{folder} can't be searched for checkpoints by {_user()}", _JOIN)
    for target in now:
        yield from _deploy(target, min_free_bytes=configuration.daemon.min_free)
    yield from _watches(configuration, now)


def _daemon(configuration: Configuration) -> Iterator[Finding]:
    settings = configuration.daemon
    yield Finding("ok", "daemon", f"looked at as user {_user()}; the daemon's user may see it otherwise")
    yield _writable("daemon.state_dir", settings.state_dir)
    socket = settings.control_socket
    if os.path.lexists(socket) and not stat.S_ISSOCK(socket.lstat().st_mode):
        yield Finding(
            "error", "daemon.control_socket", f"{socket} is not a socket", "remove it, or name another path"
        )
    else:
        yield _writable("daemon.control_socket", socket.parent)


def _user() -> str:
    uid = os.geteuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _log(configuration: Configuration) -> Iterator[Finding]:
    file = configuration.log.file
    if file is None:
        return
    if not os.path.lexists(file):
        yield _writable("log.file", file.parent)
    elif not file.is_file():
        yield Finding("error", "log.file", f"{file} is not a file", "name another path")
    elif not os.access(file, os.W_OK, effective_ids=True):
        yield Finding(
            "error", "log.file", f"{file} can't be written", f"give it to the daemon's user: {_chown(file)}"
        )
    else:
        yield Finding("ok", "log.file", f"{file} can be written")


def _writable(about: str, folder: Path) -> Finding:
    """Whether a folder is there or can be made, and written to."""
    there = _nearest(folder)
    if not there.is_dir():
        return Finding("error", about, f"{there} is not a directory", "move it away, or name another path")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        made = f"{folder} can't be made: " if there != folder else ""
        return Finding(
            "error",
            about,
            f"{made}{there} can't be written by {_user()}",
            f"give it to the daemon's user: {_chown(there)}",
        )
    return Finding("ok", about, f"{folder} can be {'written' if there == folder else 'made'}")


def _chown(path: Path) -> str:
    return f"chown USER {path}"


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    while not os.path.lexists(path):
        path = path.parent
    return path


def _source(watch: Watch, found: Sequence[Target]) -> Iterator[Finding]:
    root = glob_root(watch.source)
    has_wildcards = Path(watch.source) != root
    place = root if has_wildcards else root.parent
    try:
        place_is_there = place.is_dir()
        there = [target.source for target in found if target.source.is_dir()]
    except PermissionError as error:
        yield Finding(
            "error",
            watch.name,
            f"{error.filename} can't be looked into by {_user()}",
            _JOIN,
        )
        return
    if not place_is_there:
        yield Finding(
            "warning",
            watch.name,
            f"the source's folder {place} is not there yet",
            "a trainer will make it; if this is a slip of the pen, correct source",
        )
        return
    if not os.access(place, os.R_OK | os.X_OK, effective_ids=True):
        yield Finding(
            "error",
            watch.name,
            f"{place} can't be read by {_user()}",
            _JOIN,
        )
        return
    for source in there:
        yield from _kind(watch, source)
        unreadable = _unreadable(watched_path(source, writer=watch.writer))
        if unreadable is not None:
            yield Finding(
                "error",
                watch.name,
                f"{unreadable} can't be read by {_user()}",
                _JOIN,
            )
    kind = _file_system(place)
    if watch.on_change and watch.poll == 0 and (kind in _REMOTE or kind.startswith("fuse.")):
        yield Finding(
            "warning",
            watch.name,
            f"{place} is on {kind}, which says nothing of changes made on other machines",
            'set poll = "5s", or leave it to reconcile_every',
        )
    yield Finding(
        "ok",
        watch.name,
        f"{watch.source}: {len(there)} checkpoint{'s' if len(there) != 1 else ''} there"
        if has_wildcards
        else f"{watch.source}: {'there' if there else 'not there yet, its folder is'}",
    )


def _kind(watch: Watch, source: Path) -> Iterator[Finding]:
    """A spool where a pipeline is meant, or the other way round."""
    is_pipeline = os.path.lexists(source / "config.cfg")
    if watch.writer == "spool" and is_pipeline:
        yield Finding(
            "error",
            watch.name,
            f"{source} holds a pipeline and is no spool",
            'name the spool of the training, or leave out writer = "spool"',
        )
    elif watch.writer != "spool" and not is_pipeline and os.path.lexists(source / ENTRIES):
        yield Finding(
            "error",
            watch.name,
            f"{source} holds no pipeline but a folder {ENTRIES!r}, as a spool does",
            'if it is one, write writer = "spool"',
        )


def _unreadable(source: Path) -> Path | None:
    for folder, _, files in os.walk(source):
        for name in (".", *files):
            path = Path(folder, name)
            if not os.access(path, os.R_OK, effective_ids=True) and os.path.lexists(path):
                return path
    return None


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on, by the mount table; empty if it can't be told."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""


def _deploy(target: Target, *, min_free_bytes: int) -> Iterator[Finding]:
    writable = _writable(target.rule, target.deploy)
    yield writable
    if writable.level != "ok":
        return
    there = _nearest(target.deploy)
    if there == target.deploy:
        yield from _same_mount(target.rule, DeploymentFolder(target.deploy))
    yield from _swap(target, there)
    free = shutil.disk_usage(there).free
    needed = min_free_bytes + _size(target)
    if free < needed:
        yield Finding(
            "error",
            target.rule,
            f"{there} has {size(free)} free; a release needs {size(needed)}, min_free included",
            "free some space, keep fewer releases, or lower min_free",
        )
    else:
        yield Finding("ok", target.rule, f"{size(free)} free for releases")


def _same_mount(rule: str, folder: DeploymentFolder) -> Iterator[Finding]:
    """Tries what publishing does: two bind mounts look like one file system, but nothing moves between."""
    if not (folder.staging_path.is_dir() and folder.releases_path.is_dir()):
        return
    name = f".check-{os.getpid()}-{secrets.token_hex(4)}"
    staged, released, link = folder.staging_path / name, folder.releases_path / name, folder.path / name
    try:
        staged.touch(mode=0o600, exist_ok=False)
        released.hardlink_to(staged)
        link.symlink_to(f"releases/{name}")
        staged.rename(released)  # two names of one file: a rename that leaves both
    except FileNotFoundError:  # a daemon that cleans up at this very moment took it
        return
    except OSError as error:
        reason = (
            "are on different mounts, so nothing can be renamed from one to the other"
            if error.errno == errno.EXDEV
            else f"can't be linked and renamed in: {error.strerror}"
        )
        yield Finding(
            "error",
            rule,
            f"{folder.staging_path} and {folder.releases_path} {reason}",
            f"mount the whole of {folder.path}, not parts of it, on a file system with hard links",
        )
    else:
        yield Finding("ok", rule, f"{folder.path}: releases can be linked and renamed into place")
    finally:
        for path in (staged, released, link):
            path.unlink(missing_ok=True)


def _swap(target: Target, there: Path) -> Iterator[Finding]:
    from spancat_daemon.release.swap import supports_exchange  # noqa: PLC0415  # next to its only use

    if target.watch.swap != "exchange":
        return
    if supports_exchange(there):
        yield Finding("ok", target.rule, f"{there} can exchange directories")
    else:
        yield Finding(
            "error",
            target.rule,
            f"{there} is on {_file_system(there) or 'a file system'} that can't exchange directories",
            'use swap = "symlink"',
        )


def _size(target: Target) -> int:
    """The bytes of the checkpoint that is there now, as far as they can be told."""
    try:
        with open_checkpoint(target.source, writer=target.watch.writer) as source:
            checkpoint = source.path
    except (SpancatDaemonError, OSError):  # there is none, or what is wrong with it is told elsewhere
        return 0
    total = 0
    for folder, _, files in os.walk(checkpoint):
        for name in files:
            try:
                total += Path(folder, name).lstat().st_size
            except OSError:  # rewritten at this moment
                continue
    return total


def _watches(configuration: Configuration, now: Sequence[Target]) -> Iterator[Finding]:
    """Each directory of a watched checkpoint takes one of the user's inotify watches, and each above it."""
    needed = 0
    for target in now:
        if target.watch.on_change and target.watch.poll == 0:
            watched = watched_path(target.source, writer=target.watch.writer)
            needed += len(watched.parts) + sum(1 for _ in _directories(watched))
    for name, needs in (("max_user_watches", needed), ("max_user_instances", 1)):
        limit = _inotify_limit(name)
        if limit is None or not configuration.watch:
            continue
        if needs > limit:
            yield Finding(
                "warning",
                "inotify",
                f"{needs} directories to watch, but fs.inotify.{name} is {limit}: the rest will be polled",
                f"sysctl fs.inotify.{name}={max(2 * needs, 8192)}",
            )
        elif name == "max_user_watches":
            yield Finding("ok", "inotify", f"{needs} directories to watch of {limit} that a user can")


def _directories(source: Path) -> Iterator[str]:
    for count, (folder, _, _) in enumerate(os.walk(source)):
        if count >= _COUNTED_DIRECTORIES:
            return
        yield folder


def _inotify_limit(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/fs/inotify", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
