"""How much memory this process has had."""

from __future__ import annotations

import contextlib
import os

_FORGET_PEAK = b"5"


class Memory:
    """The process's own memory; to be made before it may write no files any more."""

    def __init__(self) -> None:
        try:
            self._references = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self._references = -1

    def forget_peak(self) -> None:
        """Let `peak_bytes` count from here on; where that is impossible, it counts from the start."""
        if self._references >= 0:
            with contextlib.suppress(OSError):
                os.write(self._references, _FORGET_PEAK)

    @staticmethod
    def peak_bytes() -> int:
        """Return the most there was in use at once; ru_maxrss would count the parent's before exec, too."""
        return _status(b"VmHWM:")

    @staticmethod
    def now_bytes() -> int:
        """Return what is in use."""
        return _status(b"VmRSS:")


def _status(key: bytes) -> int:
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123  # pathlib costs an import here
            for line in status:
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
