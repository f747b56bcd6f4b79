"""What the loader takes from itself, tried on this kernel, and within sandboxes that refuse it some of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from spancat_daemon.verify.child import INSIDE
from spancat_daemon.verify.inside import confinement
from tests import pythons

# What a service's sandbox may refuse, by the numbers of the calls.
CALLS = {
    "x86_64": {"unshare": 272, "landlock": 444, "seccomp": 317, "prctl": 157, "prlimit64": 302},
    "aarch64": {"unshare": 97, "landlock": 444, "seccomp": 277, "prctl": 167, "prlimit64": 261},
}
MACHINE = os.uname().machine
LANDLOCK = confinement._landlock_abi()
_CAP_SYS_ADMIN, _PR_CAPBSET_DROP = 21, 24

pytestmark = pytest.mark.skipif(MACHINE not in CALLS, reason="no filter for this kind of machine")


_BY_LANDLOCK = ["memory", *(["network"] * (LANDLOCK >= 4)), *(["files"] * (LANDLOCK > 0))]


def run(
    code: str, *, refused: tuple[str, ...] = (), unprivileged: bool = False, python: str = sys.executable
) -> dict[str, Any]:
    """Confine a new process and run code in it; returns what the code puts into `found`.

    Calls that are refused are so before, as in a service's sandbox. `tried` calls a function and returns the
    name of its error, if any.
    """
    script = f"""
import json, os, sys
sys.path.insert(0, sys.argv[1])
from inside import confinement

def tried(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__

refused = {[CALLS[MACHINE][name] for name in refused]!r}
if refused:
    here = confinement._machine()
    sandbox = confinement._Machine(
        audit=here.audit, clone=here.clone, refused=tuple(refused), seccomp=here.seccomp, ioprio_set=0
    )
    confinement._filter_calls(sandbox)
found = {{}}
found["confined"] = confinement.confine(1 << 30, -1)
found["forbidden"] = confinement.forbid_processes()
{textwrap.dedent(code)}
print(json.dumps(found))
"""
    command = [python, "-I", "-B", "-c", script, str(INSIDE.parent)]
    if unprivileged:
        drop = (
            "import ctypes, os, sys;"
            f"ctypes.CDLL(None).prctl({_PR_CAPBSET_DROP}, {_CAP_SYS_ADMIN}, 0, 0, 0);"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [python, "-c", drop, *command]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(LANDLOCK < 3, reason="this kernel has no Landlock, or too old a one")
def test_no_files_are_written_made_or_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    found = run(f"""
        os.chdir({str(tmp_path)!r})
        found["write"] = tried(open, "file", "r+")
        found["truncate"] = tried(os.truncate, "file", 0)
        found["make"] = tried(open, "new", "w")
        found["makedir"] = tried(os.mkdir, "new")
        found["link"] = tried(os.symlink, "file", "new")
        found["rename"] = tried(os.rename, "file", "new")
        found["unlink"] = tried(os.unlink, "file")
        found["rmdir"] = tried(os.rmdir, "folder")
        found["nothing"] = tried(lambda: open(os.devnull, "w").write("x"))
        found["read"] = open("file").read()
    """)
    assert "files" in found.pop("confined")
    del found["forbidden"]
    assert (found.pop("nothing"), found.pop("read")) == (None, "old")
    assert set(found.values()) == {"PermissionError"}, found
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]  # noqa: PTH208  # names


def test_no_network_and_no_processes_but_threads() -> None:
    found = run("""
        import ctypes, signal, socket, subprocess, threading
        found["network"] = tried(socket.socket)
        found["unix"] = tried(socket.socket, socket.AF_UNIX)
        found["pair"] = tried(socket.socketpair)
        found["fork"] = tried(os.fork)
        found["run"] = tried(subprocess.run, ["true"])
        found["spawn"] = tried(os.posix_spawn, "/bin/true", ["true"], {})
        found["exec"] = tried(os.execv, "/bin/true", ["true"])
        found["vfork"] = ctypes.CDLL(None).syscall(58 if os.uname().machine == "x86_64" else 221, 0, 0, 0)
        thread = threading.Thread(target=lambda: found.update(thread=tried(os.fork)))
        thread.start()
        thread.join()
        found["parent"] = tried(os.kill, os.getppid(), 0)
        found["left"] = confinement.left_processes()
    """)
    assert "memory" in found.pop("confined")
    assert found.pop("forbidden") == ["processes", "network"]
    assert (found.pop("pair"), found.pop("left"), found.pop("vfork")) == (None, False, -1)
    assert set(found.values()) == {"PermissionError"}, found


@pytest.mark.skipif(LANDLOCK < 1, reason="this kernel has no Landlock")
@pytest.mark.parametrize("unprivileged", [False, True])
def test_what_is_not_its_own_stays_as_it_is(unprivileged: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    before = (tmp_path / "file").stat()
    found = run(
        f"""
        import resource, signal, threading
        file = {str(tmp_path / "file")!r}
        found["chmod"] = tried(os.chmod, file, 0)
        found["chown"] = tried(os.chown, file, os.getuid(), os.getgid())
        found["utime"] = tried(os.utime, file, (1, 1))
        found["xattr"] = tried(os.setxattr, file, "user.name", b"x")
        found["memory"] = tried(os.memfd_create, "name")
        found["signal"] = tried(os.kill, os.getppid(), 0)
        found["signals"] = tried(os.kill, -1, 0)
        found["limits"] = tried(resource.prlimit, os.getppid(), resource.RLIMIT_CORE)
        found["priority"] = os.getuid() and "PermissionError" or tried(os.nice, -1)
        found["secrets"] = tried(lambda: open(f"/proc/{{os.getppid()}}/environ").read())

        found["own signal"] = tried(os.kill, os.getpid(), 0)
        found["own thread"] = tried(signal.pthread_kill, threading.get_ident(), 0)
        found["own limit"] = tried(resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
        """,
        unprivileged=unprivileged,
    )
    del found["confined"], found["forbidden"]
    assert {found.pop(f"own {what}") for what in ("signal", "thread", "limit")} == {None}
    assert set(found.values()) == {"PermissionError"}, found
    after = (tmp_path / "file").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


@pytest.mark.parametrize("unprivileged", [False, True])
def test_network_is_a_namespace_of_its_own(unprivileged: bool) -> None:
    found = run(
        """
        found["namespace"] = os.readlink("/proc/self/ns/net")
        found["user"] = os.getuid()
        """,
        unprivileged=unprivileged,
    )
    assert found["user"] == os.getuid()
    if found["namespace"] == str(Path("/proc/self/ns/net").readlink()):
        pytest.skip("namespaces are refused here")
    assert "network" in found["confined"]


@pytest.mark.parametrize(
    ("refused", "confined", "forbidden"),
    [
        (("unshare",), _BY_LANDLOCK, ["processes", "network"]),
        (("unshare", "landlock"), ["memory"], ["processes", "network"]),
        # systemd's @system-service of 252: no landlock, no namespaces, and the older call for the filter.
        (("unshare", "landlock", "seccomp", "prlimit64"), [], ["processes", "network"]),
        (("unshare", "landlock", "seccomp", "prlimit64", "prctl"), [], []),
    ],
)
def test_what_a_sandbox_refuses_is_left_and_not_claimed(
    refused: tuple[str, ...], confined: list[str], forbidden: list[str]
) -> None:
    found = run(
        """
        import subprocess
        found["run"] = tried(subprocess.run, ["true"])
        found["none"] = confinement.left_processes()
        try:
            started = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
        except PermissionError:
            started = None
        found["left"] = confinement.left_processes()
        if started:
            started.kill()
        """,
        refused=refused,
    )
    assert (found["confined"], found["forbidden"]) == (confined, forbidden)
    in_force = bool(forbidden)
    assert (found["run"] == "PermissionError") == in_force
    assert not found["none"]
    assert found["left"] != in_force


def test_it_runs_on_the_oldest_python() -> None:
    python = pythons.find("3.8", what_for="the loader")
    found = run("found['fork'] = tried(os.fork)", python=python)
    assert set(found["confined"]) >= set(_BY_LANDLOCK)
    assert found["fork"] == "PermissionError"


def test_attempts_are_noted() -> None:
    found = run("""
        found["noted"] = []
        confinement.note_attempts(found["noted"])
        os.system("true")
        tried(os.fork)
        open("/proc/self/stat").close()
    """)
    assert found["noted"] == ["os.system", "os.fork"]


def test_machine_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_MACHINES", {})
    assert confinement.forbid_processes() == []
