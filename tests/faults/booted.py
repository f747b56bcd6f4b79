"""A machine of its own, small enough for a test: systemd as process 1 of namespaces, on a root in memory.

Nothing of it reaches the machine outside: its root, /etc, /run, /tmp and /var are its own and go with it;
what it has of the machine's (/usr, the interpreter, this project) and /proc/sys, /sys are read-only; it has
no network, and can't set the clock. It ignores SIGTERM, so it ends by SIGKILL: of `Machine.close`, or, should
the test itself be killed, of timeout(1).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.service import ROOT, until

if TYPE_CHECKING:
    from types import TracebackType

PROJECT: Final = Path("/mnt/project")
_SYSTEMD: Final = Path("/usr/lib/systemd/systemd")
_TOOLS: Final = ("unshare", "nsenter", "setpriv", "pivot_root", "timeout", "mount", "systemctl", "journalctl")
_CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_PATH: Final = f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin"

# $1 where the root is put together, $2 the interpreter's home, $3 the packages it has, $4 the project
_INIT: Final = r"""
set -eu
root=$1 prefix=$2 packages=$3 project=$4
readonly_bind() { [ -e "$2" ] || mkdir -p "$2"; mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
mount -t tmpfs -o mode=755 booted "$root"
cd "$root"
mkdir -p etc/systemd/system proc sys dev run tmp var/tmp var/lib/logrotate var/log root srv opt old
chmod 1777 tmp var/tmp
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
ln -s ../run var/run
readonly_bind /usr usr
case $prefix in /usr|/usr/*) ;; *) readonly_bind "$prefix" ".$prefix" ;; esac
readonly_bind "$packages" mnt/packages
readonly_bind "$project" mnt/project
mount -t tmpfs -o mode=755,nosuid booted dev
for name in null zero full random urandom tty; do : > dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 booted dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 booted run
: > dev/console
: > run/console
mount --bind run/console dev/console
mount -t proc proc proc
for name in sys sysrq-trigger; do
    if [ -e proc/$name ]; then readonly_bind proc/$name proc/$name; fi
done
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
# The users whom files in /usr name
cp /etc/ld.so.cache /etc/passwd /etc/group etc/
printf 'passwd: files\ngroup: files\nshadow: files\n' > etc/nsswitch.conf
od -An -N16 -tx1 /dev/urandom | tr -d ' ' > etc/machine-id
for unit in systemd-logind.service getty.target dbus.service dbus.socket systemd-journald-audit.socket; do
    ln -s /dev/null etc/systemd/system/$unit
done
pivot_root . old
cd /
umount -l old
rmdir old
mount --make-rshared /
hostname booted
exec env -i container=other PATH=/usr/sbin:/usr/bin setpriv \
    --bounding-set -sys_time,-sys_module,-sys_rawio,-syslog,-audit_control,-audit_read,-audit_write \
    /usr/lib/systemd/systemd --unit=multi-user.target
"""


def missing() -> str:
    """What this machine lacks to boot another; empty if nothing."""
    if os.geteuid() != 0:
        return "root: namespaces and mounts are to be made"
    if not _SYSTEMD.exists():
        return f"{_SYSTEMD} (Debian: systemd)"
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if _cgroup_root() is None:
        return "cgroup2 is not mounted"
    tried = subprocess.run(
        ["unshare", "--pid", "--mount", "--cgroup", "--net", "--uts", "--ipc", "--fork", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"namespaces can't be made here: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """A context manager: boots at its start, is gone at its end.

    Args:
        longest_s: it is killed after so long, whatever else happens.
    """

    def __init__(self, longest_s: int) -> None:
        self._longest_s = longest_s
        self._mount_point = Path(tempfile.mkdtemp(prefix="booted-"))
        self._console = self._mount_point.with_name(f"{self._mount_point.name}.console")
        root = _cgroup_root()
        assert root is not None
        self._cgroup = root / self._mount_point.name
        self._process: subprocess.Popen[bytes] | None = None
        self._init_pid = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _boot(self) -> None:
        self._cgroup.mkdir()
        joins = 'echo $$ > "$0/cgroup.procs"; exec "$@"'
        limited = ["timeout", "--signal=KILL", str(self._longest_s)]
        apart = ["unshare", "--pid", "--mount", "--cgroup", "--net", "--uts", "--ipc", "--fork"]
        init = ["sh", "-c", _INIT, "init", str(self._mount_point), sys.base_prefix]
        init += [sysconfig.get_path("purelib"), str(ROOT)]
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", joins, str(self._cgroup), *limited, *apart, "--kill-child=KILL", *init],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # timeout -> unshare -> process 1, which has become systemd when it answers
        until(self._found_init, what=self._console.read_text())
        until(
            lambda: "running" in self.run("systemctl", "is-system-running", "--wait", check=False).stdout,
            what="it does not come up",
        )

    def _found_init(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._console.read_text()
        pid = self._process.pid
        for _ in range(2):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if not children:
                return False
            pid = int(children[0])
        if Path(f"/proc/{pid}/comm").read_text().strip() != "systemd":
            return False
        self._init_pid = pid
        return True

    def path(self, inside: str | Path) -> Path:
        """How a file of the machine is called outside of it."""
        return Path(f"/proc/{self._init_pid}/root", str(inside).lstrip("/"))

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout_s: float = 60,
        nobody: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the machine, as root unless it is to be nobody.

        Raises:
            AssertionError: it failed, and is to be checked.
        """
        enter = ["nsenter", f"--target={self._init_pid}", "--all", "--root", "env", "--chdir=/"]
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if nobody else []
        done = subprocess.run(
            [*enter, *as_user, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={"PATH": _PATH, "LANG": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
        )
        if check:
            assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def shell(self, script: str) -> str:
        """Runs a script of the shell; returns what it printed."""
        return self.run("sh", "-euc", script).stdout

    def close(self) -> None:
        """SIGKILL for all of it; nothing of it is left."""
        if self._process is not None:
            if self._init_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._init_pid, signal.SIGKILL)  # the kernel ends the namespace with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(120)
            self._process = None
        if self._cgroup.exists():
            # Processes that left the namespace's tree, which are none, and those that are about to end
            (self._cgroup / "cgroup.kill").write_text("1")
            until(lambda: "populated 0" in (self._cgroup / "cgroup.events").read_text())
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                Path(folder).rmdir()
        self._mount_point.rmdir()
        self._console.unlink(missing_ok=True)


def _cgroup_root() -> Path | None:
    return next((path for path in _CGROUPS if (path / "cgroup.procs").exists()), None)
