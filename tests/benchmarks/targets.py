# ruff: noqa: E501, RUF001  # the prose of a page
"""What is aimed at, held against what was measured, and what stands in the way where it is not met."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Records = dict[str, dict[str, Any]]
OURS: Final = "spancat-daemon"
_DECISION: Final = "warm, all kept, the best too, 10000"

IN_THE_WAY: Final = {
    "6_mb": (
        "Two things; the profile below has both. Processor time: SHA-256 runs beside the rest, and what is left on the longest thread "
        "is the copy itself, some 7,500 calls of Python and the kernel's part "
        "of the fsyncs. And waiting: files, manifest, directories, their root, both parents of the new release, intent, swap and "
        "commit are made to stay one after the other, since each says something of those before it: eight waits for the device "
        "(22 before fsyncs were made at once), where `sync -f` is one or two. On xfs and btrfs that is most of the time; btrfs, where fsyncs at once take longer, has one after the other for each file, too."
    ),
    "1_gb": (
        "Memory: a page is copied, read again to be hashed (what was lost on the way shows only there), and written. Nearly all "
        "processor time of the copy is the kernel's `memcpy`; SHA-256 goes on beside it on two threads, and `cp -r` does not hash."
    ),
    "400_mb": (
        "Every byte of the vectors is compared with the release that has them (a read of both, no write), since neither size nor time "
        "proves that they are the same: some 54 ms for 390 MB, of which most is the kernel's `memcpy` of the two reads. Half of them on "
        "a second thread, tried, takes 38 to 44 ms, and the trainer's processor; it was not taken."
    ),
    "reflink": (
        "The clone takes milliseconds, for `cp -r` too (it clones). Then both processors are taken by SHA-256 of the whole content, "
        "two files at a time, while the file system writes the source's dirty pages, which takes processor time too; what is added "
        "are the waits for the device of every release, one after the other."
    ),
    "detection": (
        "A checkpoint can't be proven settled before the kernel tick of its last write has ended: files are "
        "stamped by a clock that moves once a tick (4 ms, or 10 ms at 100 Hz), and a look that comes too early is "
        "made again."
    ),
    "detection_busy": (
        "While a release is being made, what is written next waits for its end: one checkpoint is taken at a time."
    ),
    "idle": (
        "Of what is resident with one rule, 16 MB are shared libraries as the kernel counts them, whoever else has them mapped "
        "(libpython, OpenSSL's for SHA-256, pydantic's core); the rest are the modules of the daemon and of its libraries, of "
        "which pydantic with the model of daemon.toml takes most. Each rule that has a release adds 50 KB."
    ),
    "10000": (
        "A daemon that starts looks where each checkpoint is and watches it, directory by directory: 0.3 ms of processor time "
        "each. A checkpoint that has no release yet holds about 8 KB: its watches, what was last seen of it, its lane."
    ),
    "many": (
        "10,000 manifests are 10,000 files to be opened, and each is checked to its last digest before it counts: that takes some "
        "100 µs each, of which opening and reading are 7 µs and JSON 5 µs. A daemon remembers what it has read."
    ),
    "commands": (
        "Nearly all of it is importing, not reading releases: the profile below has what takes how much. Of 940 million instructions "
        "40 are Python's own start, 220 Typer's import with all it needs, 440 pydantic's, and 90 the models of daemon.toml (spancat-daemon's "
        "own share of the profile). Two libraries that are worth more than these milliseconds: a reader of tables and one of command "
        "lines of our own, tried, made it 106 ms, and were not taken."
    ),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table.

    Attributes:
        what: is aimed at.
        target: the figure.
        measured: what was found; empty: nothing was measured.
        met: whether it is met; None: not known.
        key: of what stands in the way.
    """

    what: str
    target: str
    measured: str
    met: bool | None
    key: str


def percentile(values: Sequence[float], percent: int) -> float:
    """With few values, an interpolation between the largest."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def verdicts(records: Records) -> list[Verdict]:
    """All targets, in their order."""
    return [
        *_staging(records),
        *_detection(records),
        _torn(records),
        *_swap(records),
        *_idle(records),
        *_commands(records),
    ]


def ratios(record: Mapping[str, Any], *, over: Sequence[str]) -> list[float]:
    """Round by round, the time of a release by the longest of the others'."""
    ways = record["ways"]
    others = [ways[name]["seconds"] for name in over]
    return [a / max(others_s) for a, *others_s in zip(ways["ours"]["seconds"], *others, strict=True)]


def _ratio(records: Records, name: str, what: str, most: float, key: str, *, over: Sequence[str]) -> Verdict:
    aim = f"≤ {most:.1f} ×"
    if name not in records:
        return Verdict(what, aim, "", None, key)
    found = ratios(records[name], over=over)
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return Verdict(what, aim, f"{middle:.2f} × ({low:.2f}-{high:.2f})", middle <= most, key)


def _staging(records: Records) -> Iterator[Verdict]:
    cp = ("cp",)
    live = "last write → live, durable, structure-verified"
    yield _ratio(
        records, "staging_ext4_6_mb", f"{live}: 6 MB, ext4, by `cp -r` + `sync -f`", 1.2, "6_mb", over=cp
    )
    yield _ratio(
        records, "staging_ext4_1_gb", "the same: 1 GB all changed, dirty source", 1.1, "1_gb", over=cp
    )
    yield _ratio(
        records, "staging_ext4_400_mb_vectors", "the same: 400 MB, unchanged vectors", 0.3, "400_mb", over=cp
    )
    for kind in ("xfs", "btrfs"):
        yield _ratio(
            records,
            f"staging_{kind}_1_gb",
            f"{kind} with reflink: 1 GB all changed, dirty source, by the larger of `cp -r` + `sync -f` and "
            "SHA-256 on two threads",
            1.2,
            "reflink",
            over=("cp", "sha256"),
        )


def _detection(records: Records) -> Iterator[Verdict]:
    aim = "p50 ≤ 10 ms, p99 ≤ 50 ms"
    places = [
        ("detection (last write → staging starts), a daemon at rest", "idle_1", "detection"),
        ("the same, 1,000 checkpoints watched", "idle_1000", "detection"),
        ("the same, 10,000 checkpoints watched", "idle_10000", "detection"),
    ]
    for what, name, key in places:
        found = records[name]["detection_s"] if name in records else []
        yield _p50_p99(what, aim, found, key)
    found = records["peers_alone"]["found"][OURS]["detection_s"] if "peers_alone" in records else []
    yield _p50_p99("the same, under a trainer that saves every 200 ms", aim, found, "detection_busy")


def _p50_p99(what: str, aim: str, found: Sequence[float], key: str) -> Verdict:
    if not found:
        return Verdict(what, aim, "", None, key)
    p50, p99 = median(found) * 1000, percentile(found, 99) * 1000
    measured = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(found)} saves)"
    return Verdict(what, aim, measured, p50 <= 10 and p99 <= 50, key)


def _torn(records: Records) -> Verdict:
    found = [record["found"][OURS] for name, record in records.items() if name.startswith("peers_")]
    torn, views = sum(one["torn"] for one in found), sum(one["views"] for one in found)
    what = "torn or mixed releases, with writer pauses of 0, 0.1, 1.2 and 5 s between files"
    return Verdict(what, "0", f"{torn} of {views:,}" if found else "", not torn if found else None, "torn")


def _swap(records: Records) -> Iterator[Verdict]:
    for kind in ("symlink", "exchange"):
        what, aim = f'swap as a reader sees it, `swap = "{kind}"`', "0 failed opens, ≤ 100 µs"
        record = records.get(f"swap_{kind}")
        if record is None:
            yield Verdict(what, aim, "", None, "swap")
            continue
        took = [took / 1000 for took in record["during_ns"]]
        measured = (
            f"{record['failed']} of {record['opens']:,} opens failed; median {median(took):.0f} µs, "
            f"p99 {percentile(took, 99):.0f} µs ({record['swaps']} swaps)"
        )
        yield Verdict(what, aim, measured, not record["failed"] and median(took) <= 100, "swap")


def _idle(records: Records) -> Iterator[Verdict]:
    what, aim = "idle, 100 rules", "≤ 45 MB RSS, ≤ 0.1 % of one core, ≤ 2 wakeups/s"
    if record := records.get("idle_100_rules"):
        size, cpu, wakeups = _mb(record), record["cpu_of_a_core"], record["wakeups_per_s"]
        measured = f"{size:.0f} MB, {cpu:.2%}, {wakeups:.1f}/s"
        yield Verdict(what, aim, measured, size <= 45 and cpu <= 0.001 and wakeups <= 2, "idle")
    else:
        yield Verdict(what, aim, "", None, "idle")
    what, aim = "10,000 watched checkpoints", "ready ≤ 5 s, ≤ 150 MB RSS"
    if record := records.get("idle_10000"):
        ready_s = median(record["ready_s"])
        measured = f"{ready_s:.2f} s, {_mb(record):.0f} MB"
        yield Verdict(what, aim, measured, ready_s <= 5 and _mb(record) <= 150, "10000")
    else:
        yield Verdict(what, aim, "", None, "10000")


def _mb(record: Mapping[str, Any]) -> float:
    size: int = record["resident_bytes"]
    return size / 1e6


def _commands(records: Records) -> Iterator[Verdict]:
    for what, most_ms, name, way in (
        ("`spancat-daemon --version`", 150, "commands", "`--version`"),
        ("`spancat-daemon list`", 150, "commands", "`list`"),
        ("the same with 10,000 releases", 250, "many_releases_commands", "list, 10000"),
        ("retention decision over 10,000 releases, in the daemon", 200, "many_releases_decision", _DECISION),
        ("the same, by a command that was just started", 200, "many_releases_decision", "cold, 10000"),
    ):
        key = "many" if name == "many_releases_decision" else "commands"
        ways = records[name]["ways"] if name in records else {}
        if way in ways:
            took = median(ways[way]["seconds"]) * 1000
            yield Verdict(what, f"≤ {most_ms} ms", f"{took:.0f} ms", took <= most_ms, key)
        else:
            yield Verdict(what, f"≤ {most_ms} ms", "", None, key)
