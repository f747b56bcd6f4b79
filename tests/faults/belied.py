"""A library put before libc that lies to one process: about the wall clock, and about file events."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Final, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead_s;

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("AHEAD_S"), O_RDONLY | O_CLOEXEC);
    void *there = mmap(NULL, sizeof *ahead_s, PROT_READ, MAP_SHARED, fd, 0);
    if (there == MAP_FAILED) abort();
    ahead_s = there;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && ahead_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead_s;
    return failed;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

/* As a network file system: a watch that never tells of anything. The canary's has no IN_DELETE_SELF. */
int inotify_add_watch(int fd, const char *path, uint32_t mask) {
    char other[40];
    if (getenv("DEAF") && mask & IN_DELETE_SELF) {
        snprintf(other, sizeof other, "/proc/self/fd/%d", memfd_create("deaf", MFD_CLOEXEC));
        path = other;
    }
    return syscall(SYS_inotify_add_watch, fd, path, mask);
}
"""


class Belied:
    """The environment of a process that is lied to, and how far its wall clock is ahead."""

    def __init__(self, folder: Path, *, deaf: bool = False) -> None:
        """Compiles the library into `folder`; skips the test where there is no compiler.

        Args:
            folder: where it is put.
            deaf: let watched directories tell of nothing.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("needs a C compiler (cc)")
        source, library = folder / "belied.c", folder / "belied.so"
        source.write_text(_SOURCE)
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"cc can't make a library: {done.stderr}")
        told = folder / "ahead"
        told.write_bytes(bytes(8))
        with told.open("r+b") as file:
            self._ahead = mmap.mmap(file.fileno(), 8)
        self.environ = {"LD_PRELOAD": str(library), "AHEAD_S": str(told)} | ({"DEAF": "1"} if deaf else {})

    def step(self, seconds: int) -> Self:
        """Sets the wall clock ahead, or back."""
        (ahead,) = struct.unpack("q", self._ahead)
        self._ahead[:] = struct.pack("q", ahead + seconds)
        return self
