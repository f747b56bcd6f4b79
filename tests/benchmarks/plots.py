"""The pictures of the page, as SVG."""

from __future__ import annotations

from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.targets import OURS, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.benchmarks.targets import Records

_COLORS: Final = {"ours": "tab:blue", "cp": "tab:orange", "sha256": "0.7"}
_NAMES: Final = {"ours": "spancat-daemon", "cp": "cp -r + sync -f", "sha256": "SHA-256, two threads"}


def draw(folder: Path, records: Records) -> Iterator[str]:
    """Draw what there are figures for; yields the names of the files."""
    mpl.rcParams.update({"svg.hashsalt": "bench", "font.size": 8, "svg.fonttype": "none"})
    for name, picture in (("staging", _staging), ("live", _live), ("torn", _torn), ("swap", _swap)):
        figure = picture(records)
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", format="svg", metadata={"Date": None})
            yield name


def _plain(name: str) -> str:
    return name.replace("`", "")


def _staging(records: Records) -> Figure | None:
    chosen = [record for name, record in records.items() if name.startswith("staging_")]
    if not chosen:
        return None
    chosen.sort(key=lambda record: (record["file_system"] != "ext4", record["file_system"], record["bytes"]))
    figure = Figure(figsize=(9, 0.45 * len(chosen) + 1), layout="constrained")
    axes = figure.subplots()
    for place, record in enumerate(chosen):
        for shift, way in enumerate(_COLORS):
            seconds = [s * 1000 for s in record["ways"][way]["seconds"]]
            low, middle, high = quantiles(seconds, n=4, method="inclusive")
            y = place + 0.25 * (shift - 1)
            label = _NAMES[way] if place == 0 else None
            axes.barh(y, middle, 0.23, color=_COLORS[way], label=label)
            axes.plot([low, high], [y, y], color="black", linewidth=1)
    axes.set_yticks(range(len(chosen)), [f"{one['what']} ({one['file_system']})" for one in chosen])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ms, median and quartiles (logarithmic)")
    axes.legend(loc="lower right")
    figure.suptitle("From a saved checkpoint to a durable, live release")
    return figure


def _live(records: Records) -> Figure | None:
    record = records.get("peers_alone")
    if record is None:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name, found in record["found"].items():
        live = sorted(s * 1000 for s in found["live_s"])
        share = [100 * (number + 1) / found["saves"] for number in range(len(live))]
        width = 2.5 if name == OURS else 1
        axes.step([0.5, *live], [0, *share], where="post", linewidth=width, label=_plain(name))
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    axes.set_xlabel("ms from the last close to a whole copy that can be read (logarithmic)")
    axes.set_ylabel("% of all generations")
    axes.legend(fontsize=7)
    figure.suptitle("A trainer saves 6 MB every 200 ms: which generations can be read whole, and how soon")
    return figure


def _torn(records: Records) -> Figure | None:
    chosen = sorted(
        (record for name, record in records.items() if name.startswith("peers_beside")),
        key=lambda record: float(record["pause_s"]),
    )
    if not chosen:
        return None
    names = list(chosen[0]["found"])
    figure = Figure(figsize=(9, 0.42 * len(names) + 1), layout="constrained")
    axes = figure.subplots(1, len(chosen), sharey=True)
    for place, record in enumerate(chosen):
        axis: Any = axes[place] if len(chosen) > 1 else axes
        for y, name in enumerate(names):
            found = record["found"].get(name, {"views": 0, "torn": 0})
            share = 100 * found["torn"] / found["views"] if found["views"] else 0.0
            axis.barh(y, share, color="tab:blue" if name == OURS else "tab:red")
            axis.text(share + 2, y, f"{found['torn']} of {found['views']}", va="center", fontsize=7)
        axis.set_title(f"pauses of {record['pause_s']:g} s")
        axis.set_xlim(0, 140)
        axis.set_xticks([0, 50, 100])
        axis.set_yticks(range(len(names)), [_plain(name) for name in names])
        axis.set_xlabel("% torn")
    (axes[0] if len(chosen) > 1 else axes).invert_yaxis()
    figure.suptitle("Copies that are no generation that ever was whole")
    return figure


def _swap(records: Records) -> Figure | None:
    chosen = [records[name] for name in ("swap_symlink", "swap_exchange") if name in records]
    if not chosen:
        return None
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for record in chosen:
        for key, what, style in (
            ("during_ns", "the open that saw a swap", "-"),
            ("others_ns", "any other", ":"),
        ):
            took = sorted(ns / 1000 for ns in record[key])
            shown = [percentile(took, percent) for percent in range(1, 100)]
            axes.plot(shown, range(1, 100), style, label=f"{record['swap']}: {what}")
    axes.set_xscale("log")
    axes.set_xlabel("µs that open() took (logarithmic)")
    axes.set_ylabel("% of them")
    axes.legend(fontsize=7)
    figure.suptitle("A spinning reader during swaps")
    return figure
