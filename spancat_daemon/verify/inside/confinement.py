"""What the loader may not do: taken from it by itself, in the kernel, before it touches a release.

Loading runs what config.cfg names, and a model with PyTorch in it is a pickle: code that nobody has seen. So
the process gives up writing files, the network, other processes and what root may do beyond others, and
limits its memory. Each of these needs something of the kernel, and of the sandbox the service is in, that may
not be there; what can't be taken is left, and `confine` and `forbid_processes` say what was. None of them
raises.

Why this way: RLIMIT_NPROC counts all of a user's processes and threads, wherever they are, and does not hold
for root; a process namespace of its own would take one more process in between, and is refused in most
sandboxes. A system call filter needs no privileges, works in all of these places, and turns an attempt into
an error where it is made, so that the reason names the line. Threads stay allowed. It also refuses what
Landlock does not know of: to change the mode, owner, times or attributes of a file, to signal or limit
another process, and memory that RLIMIT_AS does not count or that stays when the process is gone. Where there
is no filter, `left_processes` finds what was started.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Each is tried on its own. Python without ctypes, or memory that may not be executed, is no reason to fail.
_REFUSED = (OSError, ValueError, ImportError, MemoryError, AttributeError)

_PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 22, 36, 38
_CLONE_THREAD, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00010000, 0x10000000, 0x40000000
_CAPABILITY_VERSION = 0x20080522
_READ_OTHERS_FILES = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; Landlock is above the former
_F_SETSIG = 10  # fcntl.F_SETSIG, which musl's Python lacks

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on all machines
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11

_SECCOMP_SET_MODE_FILTER, _SECCOMP_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 2, 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF, on 32 bits
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32 = 0x40000000

_STARTS = frozenset(("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"))

_IOPRIO_WHO_PROCESS, _BEST_EFFORT_LAST = 1, (2 << 13) | 7
_NICE = 10


class _Machine:
    """What differs from one kind of machine to the other: numbers of system calls.

    Attributes:
        audit: how a filter tells that a call is one of this kind.
        clone: the call that makes both threads and processes.
        refused: those that make processes otherwise, or run another program in this one; sockets;
            io_uring, which does behind a filter's back what the filter refuses; those that change what is
            known of a file; and those that make memory which is not this process's alone.
        own_only: those whose first argument must be this process, or 0, which stands for it.
        seccomp: the call that sets a filter for all threads.
        ioprio_set: the call that sets the priority of reading.
    """

    def __init__(
        self,
        *,
        audit: int,
        clone: int,
        refused: tuple[int, ...],
        own_only: tuple[int, ...] = (),
        seccomp: int,
        ioprio_set: int,
    ) -> None:
        self.audit, self.clone, self.refused, self.own_only = audit, clone, refused, own_only
        self.seccomp, self.ioprio_set = seccomp, ioprio_set


_CLONE3, _IO_URING_SETUP = 435, 425  # on all machines, as these: pidfd_send_signal and the newer *at calls
_NEWER = (_IO_URING_SETUP, 424, 452, 463, 466)
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        clone=56,
        refused=(
            *(57, 58, 59, 322, 41),  # fork, vfork, execve, execveat, socket
            *(90, 91, 268, 92, 93, 94, 260),  # chmod and chown
            *(132, 235, 261, 280),  # utime
            *(188, 189, 190, 197, 198, 199),  # setxattr and removexattr
            *(319, 29, 64, 68, 240, 248),  # memfd_create, shmget, semget, msgget, mq_open, add_key
            *(200, *_NEWER),  # tkill
        ),
        own_only=(62, 234, 129, 297, 302),  # kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, prlimit64
        seccomp=317,
        ioprio_set=251,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        clone=220,
        refused=(
            *(221, 281, 198),  # execve, execveat, socket
            *(52, 53, 54, 55),  # chmod and chown
            88,  # utime
            *(5, 6, 7, 14, 15, 16),  # setxattr and removexattr
            *(279, 194, 190, 186, 180, 217),  # memfd_create, shmget, semget, msgget, mq_open, add_key
            *(130, *_NEWER),  # tkill
        ),
        own_only=(129, 131, 138, 240, 261),  # as above
        seccomp=277,
        ioprio_set=30,
    ),
}


def confine(memory_bytes: int, lifeline: int) -> list[str]:
    """Limit this process; to be called while it has one thread and before spaCy is imported.

    Args:
        memory_bytes: limit of its address space; 0: unlimited.
        lifeline: descriptor of a pipe whose other end the parent holds; -1: none. When that is closed, even
            by the parent's death, the kernel kills this process whatever it is doing.

    Returns:
        What is in force: of ``memory``, ``network``, ``files`` (none can be written, made or removed).
    """
    _tried(_adopt_orphans)
    if lifeline >= 0:
        _tried(lambda: _die_with(lifeline))
    for give_way in (_be_nice, _read_last, _be_first_to_die, _leave_no_core):
        _tried(give_way)
    network = _tried(_leave_network)
    _tried(_gain_no_privileges)
    _tried(_be_no_root)
    abi = _landlock_abi()
    limited = memory_bytes > 0 and _tried(lambda: _limit_memory(memory_bytes))
    locked = abi > 0 and _tried(lambda: _lock_files(abi))
    found = {"memory": limited, "network": network or (locked and abi >= 4), "files": locked}
    return [name for name, in_force in found.items() if in_force]


def forbid_processes() -> list[str]:
    """Let this process start no others and open no sockets, from now on and in all of its threads.

    Not before spaCy is imported: libraries may ask other programs about the machine then.

    Returns:
        What is in force: ``processes`` and ``network``, or nothing.
    """
    machine = _machine()
    if machine is None or not _tried(lambda: _filter_calls(machine)):
        return []
    return ["processes", "network"]


def note_attempts(noted: list[str]) -> None:
    """Add to a list, from now on, how Python code tries to start processes, whether or not it can."""

    def hook(event: str, _: Any) -> None:
        if event in _STARTS:
            noted.append(event)

    sys.addaudithook(hook)


def left_processes() -> bool:
    """Whether there are processes that this one, or one that it started, has started and left."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except OSError:
        return False
    return True


def _tried(restrain: Callable[[], object]) -> bool:
    try:
        restrain()
    except _REFUSED:
        return False
    return True


def _adopt_orphans() -> None:
    """What is left behind by what was started becomes a child of this process, so that it can be found."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _die_with(lifeline: int) -> None:
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    watched = select.poll()
    watched.register(lifeline, 0)
    if watched.poll(0):  # it was closed before we listened
        os._exit(0)


def _be_nice() -> None:
    os.nice(_NICE)


def _read_last() -> None:
    """The last of the ordinary: an idle one may get no turn at all until the time is up."""
    machine = _machine()
    if machine is not None:
        _call(machine.ioprio_set, _IOPRIO_WHO_PROCESS, 0, _BEST_EFFORT_LAST)


def _be_first_to_die() -> None:
    with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123  # pathlib costs an import here
        score.write("800")


def _leave_no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory(memory_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _leave_network() -> None:
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        user, group = os.getuid(), os.getgid()
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        # Keep the names that files and accounts have; without them nothing but names is lost.
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with contextlib.suppress(OSError), open("/proc/self/" + name, "w") as mapping:  # noqa: PTH123
                mapping.write(text)


def _gain_no_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _be_no_root() -> None:
    """Give up what root may do beyond others, but for reading: files may be another user's."""
    import ctypes  # noqa: PLC0415  # may be missing

    library = ctypes.CDLL(None, use_errno=True)
    whose = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    found = ctypes.create_string_buffer(24)
    _checked(library.capget(whose, found))
    (_, permitted) = struct.unpack_from("=II", found)
    kept = permitted & _READ_OTHERS_FILES
    left = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    _checked(library.capset(whose, ctypes.create_string_buffer(left, len(left))))


def _landlock_abi() -> int:
    try:
        return _call(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    except _REFUSED:
        return 0


def _lock_files(abi: int) -> None:
    """Write nothing but /dev/null; read what there is to read."""
    import ctypes  # noqa: PLC0415  # may be missing

    writing = _WRITE_FILE | _REMOVE_AND_MAKE | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    attributes = struct.pack("=Q", writing)
    if abi >= 4:
        attributes += struct.pack("=Q", _TCP_BIND_AND_CONNECT)
    if abi >= 6:
        attributes += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _call(
        _LANDLOCK_CREATE_RULESET, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
    )
    try:
        nothing = os.open(os.devnull, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", writing & (_WRITE_FILE | _TRUNCATE), nothing)
            _call(_LANDLOCK_ADD_RULE, ruleset, 1, ctypes.create_string_buffer(rule, len(rule)), 0)
        finally:
            os.close(nothing)
        _call(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _filter_calls(machine: _Machine) -> None:
    import ctypes  # noqa: PLC0415  # may be missing

    program = _program(machine)
    code = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    set_up = Filter(len(program) // 8, ctypes.addressof(code))
    try:
        unmoved = _call(
            machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(set_up)
        )
    except OSError:  # a sandbox that refuses the newer call
        unmoved = 1
    if unmoved:  # not all threads, so this one and those that it starts
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(set_up))


def _program(machine: _Machine) -> bytes:
    """Return the filter, in the kernel's form: eight bytes an instruction."""

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    refuse = step(_RETURN, _ERRNO | errno.EPERM)
    steps = [step(_LOAD, _MACHINE_AT), step(_EQUAL, machine.audit, 1, 0), refuse]
    steps += [step(_LOAD, _NUMBER_AT), step(_AT_LEAST, _X32, 0, 1), refuse]
    for number in machine.refused:
        steps += [step(_EQUAL, number, 0, 1), refuse]
    for number in machine.own_only:
        steps += [step(_EQUAL, number, 0, 5), step(_LOAD, _FIRST_ARGUMENT_AT), step(_EQUAL, 0, 2, 0)]
        steps += [step(_EQUAL, os.getpid(), 1, 0), refuse, step(_RETURN, _ALLOW)]
    # Its flags lie in memory, where a filter can't look; the C library then makes its threads with clone.
    steps += [step(_EQUAL, _CLONE3, 0, 1), step(_RETURN, _ERRNO | errno.ENOSYS)]
    steps += [step(_EQUAL, machine.clone, 0, 3), step(_LOAD, _FIRST_ARGUMENT_AT)]
    steps += [step(_ANY_BIT, _CLONE_THREAD, 1, 0), refuse, step(_RETURN, _ALLOW)]
    return b"".join(steps)


def _machine() -> _Machine | None:
    return _MACHINES.get(os.uname().machine) if struct.calcsize("P") == 8 else None


def _prctl(option: int, value: int, more: int = 0) -> None:
    import ctypes  # noqa: PLC0415  # may be missing

    numbers = [ctypes.c_ulong(number) for number in (value, more, 0, 0)]
    _checked(ctypes.CDLL(None, use_errno=True).prctl(option, *numbers))


def _unshare(flags: int) -> None:
    import ctypes  # noqa: PLC0415  # may be missing

    _checked(ctypes.CDLL(None, use_errno=True).unshare(flags))


def _call(number: int, *arguments: Any) -> int:
    import ctypes  # noqa: PLC0415  # may be missing

    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(function(ctypes.c_long(number), *wide))


def _checked(result: int) -> int:
    import ctypes  # noqa: PLC0415  # may be missing

    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
