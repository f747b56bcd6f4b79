"""The raw data of a measurement: kept as JSON, one file each, with the machine it was made on."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.service import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = "SPANCAT_DAEMON_BENCH"
"""Environment variable: the folder for the records. `make bench` sets it; without it, nothing is kept."""
LONGER: Final = "SPANCAT_DAEMON_BENCH_LONGER"
"""Environment variable: how many times as many rounds."""

_DIGITS: Final = 6


def rounds(usual: int) -> int:
    """How many rounds there are to be, where `usual` are made by default."""
    return max(3, round(usual * float(os.environ.get(LONGER) or 1)))


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Keep what was measured, under a name that is a file's name too."""
    assert re.fullmatch(r"[a-z0-9_]+", name), name
    if folder := os.environ.get(FOLDER):
        record = {"name": name, "made": _now(), "machine": _machine(), **_rounded(dict(figures))}
        text = json.dumps(record, ensure_ascii=False, indent=1)
        # One line a list of numbers: raw data are long, and read by programs
        text = re.sub(r"\[\s+([-\d.,e\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        (Path(folder) / f"{name}.json").write_text(text + "\n")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """All records of a folder, by name."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _machine() -> dict[str, Any]:
    return {**_description(), "load": round(os.getloadavg()[0], 2)}


@cache
def _description() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30)),
        "disk": _disk(ROOT),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "python": platform.python_version(),
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _disk(path: Path) -> str:
    """The kind of the disk below a folder, as far as it is known."""
    device = path.stat().st_dev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
    if not queue.is_dir():
        queue = queue.parent.parent / "queue"  # of a partition
    try:
        name = queue.resolve().parent.name
        spins = (queue / "rotational").read_text().strip() == "1"
        cache_kind = (queue / "write_cache").read_text().strip()
    except OSError:
        return "unknown"
    virtual = name.startswith(("vd", "xvd"))
    kind = "virtual disk" if virtual else "hard disk" if spins else "solid-state disk"
    return f"{kind} {name}, {cache_kind} cache"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
