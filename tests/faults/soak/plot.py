"""The picture of a soak, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .figures import Latency, Sample

_MiB = 1 << 20


def draw(
    path: Path,
    *,
    title: str,
    began: float,
    samples: Sequence[Sample],
    swaps: Mapping[str, Sequence[float]],
    faults: Sequence[Mapping[str, Any]],
    found: Sequence[Latency],
) -> None:
    """Draw swaps and faults, memory, descriptors and threads, and how soon what was written was live."""
    mpl.rcParams.update({"svg.hashsalt": "soak", "font.size": 8})
    figure = Figure(figsize=(11, 11), layout="constrained")
    happened, memory, held, soon = figure.subplots(4, 1, sharex=True, height_ratios=[3, 2, 2, 2])
    figure.suptitle(title)
    for fault in faults:
        for axes in (happened, memory, held, soon):
            color = "tab:red" if fault["ends_daemon"] else "0.85"
            axes.axvline(fault["begun"] - began, color=color, linewidth=0.7, zorder=0)
    for folder, moments in swaps.items():
        happened.step(
            [m - began for m in moments], range(1, len(moments) + 1), where="post", label=folder, linewidth=1
        )
    happened.set_ylabel("swaps")
    happened.legend(loc="upper left", title="red: the daemon ends; grey: another fault", title_fontsize=7)
    times = [one.time - began for one in samples]
    memory.plot(times, [one.rss_bytes / _MiB for one in samples], ".", markersize=2)
    memory.set_ylabel("resident, MiB")
    memory.set_ylim(bottom=0)
    held.plot(times, [one.descriptors for one in samples], ".", markersize=2, label="descriptors")
    held.plot(times, [one.threads for one in samples], ".", markersize=2, label="threads")
    held.set_ylabel("count")
    held.set_ylim(bottom=0)
    held.legend(loc="upper left")
    for disturbed, color, label in ((True, "0.6", "during a fault"), (False, "tab:blue", "undisturbed")):
        chosen = [one for one in found if one.disturbed is disturbed]
        x, y = [one.written - began for one in chosen], [max(one.seconds, 1e-3) for one in chosen]
        soon.plot(x, y, ".", markersize=3, color=color, label=label)
    soon.set_yscale("log")
    soon.set_ylabel("written → live, s")
    soon.set_xlabel("seconds")
    soon.legend(loc="upper left")
    figure.savefig(path, format="svg", metadata={"Date": None})
