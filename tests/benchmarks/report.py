# ruff: noqa: E501  # the prose of a page
"""docs/performance.md and the tables in README.md, made of the records, as `make bench` ends.

``python -m tests.benchmarks.report PAGE README``; the records are in the folder that is named as the page is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.pairs import Timing
from tests.benchmarks.plots import draw
from tests.benchmarks.records import load
from tests.benchmarks.targets import IN_THE_WAY, OURS, percentile, ratios, verdicts
from tests.documented import put

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.targets import Records, Verdict

_HEAD: Final = """\
# Performance

Measured by `make bench`, which writes this page; what each figure is made of, round by round, is in [performance/](performance/).
Times are medians (and quartiles). Ways that are compared are done in turn, in random order, on the same files, each after the
same preparation; a ratio is the median of the rounds' ratios. Nothing here is a promise about another machine: look at the
ratios, and run it on yours (`make bench`, twenty minutes, as root; `make bench LONGER=4` for four times as many rounds;
`make bench ARGS='-k staging'` for a part, which leaves the rest of the page as it was).
"""

_IN_README: Final = ("6_mb", "6_mb_next", "1_gb", "400_mb_vectors")
_VERIFIED: Final = """\
Loading it first, as is the default, comes to that; the first time after `verify.idle` also what importing spaCy takes (*cold*):
"""

_PEERS: Final = """\
A real trainer process saves a pipeline of 6 MB, of which no two generations share the bytes of any file, in place and in
spaCy's order. Every generation's digests are recorded before its first byte is written, so every copy that anybody made can be
held against all that was ever whole: *torn* is a copy whose bytes are no generation. A reader follows `current` all the time;
where there is none (`lsyncd` mirrors) it counts what stood still for 100 ms; of `restic` and `borg` every archive is read back.
The daemon's releases are judged by the model of tests/faults too.
"""

_ALONE: Final = """\
### Each alone, a save every {every:g} ms without pauses

*Live* is from the close of a generation's last file to the first moment at which a reader gets it whole. CPU and bytes are of
all processes of the peer, by the copies that it made; bytes are those given to the kernel to be written.
"""

_BESIDE: Final = """\
### All beside each other, writers that pause

The same trainer, watched by all of them at once, pauses between files ({pauses}), and {gap:g} s between saves, so that whoever
waits for quiet has a chance. *a of b*: torn copies of all copies.
"""

_NOTE: Final = {
    "staging": (
        "`cp -r` + `sync -f` is `cp -r SRC DST && sync -f DST`. A *dirty* source lies in the page cache alone, as a trainer leaves "
        "it; `sync -f` writes it too, being of the whole file system. *CPU* is of both processors, *written* what was given to the "
        "kernel to be written. SHA-256 is of the same files on two threads, and nothing else."
    ),
    "many": (
        "Of 18 files each; the number is how many there are. *Cold* reads every manifest, as a command that was just started does; "
        "*warm* is a process that has read them before, as the daemon; *alone* is the decision without the disk."
    ),
    "idle": (
        "Wakeups are voluntary context switches of all threads. *Looks* is from the close of a checkpoint's last file to "
        "`snapshot.started`, the other checkpoints at rest."
    ),
    "profiles": (
        "Own times by what they are spent in, of the thread that does the work: a wait for others is `_thread.lock.acquire`. "
        "Profiling lengthens what is many calls of Python, up to twice: what counts is a part's share."
    ),
}


def page(records: Records, pictures: Sequence[str]) -> str:
    """The page."""
    parts = [_HEAD, *_targets(records), *_machine(records)]
    parts += _staging(records, pictures)
    parts += _peers(records, pictures)
    parts += [
        *_swap(records, pictures),
        *_idle(records),
        *_commands(records),
        *_many(records),
        *_log(records),
        *_profiles(records),
    ]
    for record in records.values():
        if "heading" in record:
            parts += [f"## {record['heading']}", record["text"]]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _targets(records: Records) -> Iterator[str]:
    found = verdicts(records)
    yield "## Targets"
    yield _table(
        ["what", "target", "measured", "met"],
        [[one.what, one.target, one.measured or "not measured", _met(one)] for one in found],
    )
    missed = dict.fromkeys(one.key for one in found if one.met is False)
    if missed:
        yield "What stands in the way of those that are not met:"
        first = {one.key: one.what for one in reversed(found) if one.met is False}
        yield "\n".join(f"- *{first[key]}*: {IN_THE_WAY.get(key, 'not known.')}" for key in missed)


def _met(one: Verdict) -> str:
    return {True: "yes", False: "**no**", None: ""}[one.met]


def _machine(records: Records) -> Iterator[str]:
    machines = {
        tuple(sorted((k, v) for k, v in one["machine"].items() if k != "load")) for one in records.values()
    }
    yield "## Machine"
    for machine in map(dict, sorted(machines)):
        yield (
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['disk']}; "
            f"{machine['system']}, Linux {machine['kernel']}, Python {machine['python']}. xfs and btrfs lie in a file of the "
            "ext4 that is on this disk."
        )
    loads = [one["machine"]["load"] for one in records.values()]
    made = sorted(one["made"] for one in records.values())
    yield (
        f"Measured from {made[0]} to {made[-1]}; load average at the end of each measurement, the measurement's own included: "
        f"median {median(loads):.1f}, highest {max(loads):.1f}."
    )


def _picture(name: str, what: str, pictures: Sequence[str]) -> str:
    return f"![{what}](performance/{name}.svg)" if name in pictures else ""


def _staging(records: Records, pictures: Sequence[str]) -> Iterator[str]:
    chosen = [record for name, record in records.items() if name.startswith("staging_")]
    if not chosen:
        return
    chosen.sort(key=lambda one: (one["file_system"] != "ext4", one["file_system"], one["bytes"]))
    yield "## From a saved checkpoint to a durable, live release"
    yield _NOTE["staging"]
    rows = []
    for record in chosen:
        ways: dict[str, dict[str, list[float]]] = record["ways"]
        cost = [
            f"{median(ways[way]['cpu_s']) * 1000:.0f} ms, {median(ways[way]['written_bytes']) / 1e6:.0f} MB"
            for way in ("ours", "cp")
        ]
        rows.append(
            [
                record["file_system"],
                record["what"],
                *(str(Timing.of(ways[way]["seconds"])) for way in ("ours", "cp", "sha256")),
                f"**{median(ratios(record, over=['cp'])):.2f}**",
                *cost,
            ]
        )
    head = ["", "", "spancat-daemon, ms", "`cp -r` + `sync -f`, ms", "SHA-256, ms", "ratio to `cp`"]
    yield _table([*head, "CPU, written: ours", "`cp`"], rows)
    yield _picture("staging", "From a saved checkpoint to a live release", pictures)


def _peers(records: Records, pictures: Sequence[str]) -> Iterator[str]:
    alone = records.get("peers_alone")
    beside = sorted(
        (one for name, one in records.items() if name.startswith("peers_beside")),
        key=lambda one: float(one["pause_s"]),
    )
    if alone is None and not beside:
        return
    yield "## Against what people use instead"
    yield _PEERS
    if alone is not None:
        yield _ALONE.format(every=alone["every_s"] * 1000)
        yield _table(
            [
                "",
                "live, of all saves",
                "live, ms: p50",
                "p99",
                "torn, of all copies",
                "CPU a copy",
                "written a copy",
            ],
            [_alone_row(name, found) for name, found in alone["found"].items()],
        )
        yield _picture("live", "How soon generations can be read whole", pictures)
    if beside:
        pauses = "; ".join(
            f"{one['pause_s']:g} s at {one['most_pauses']} places, for {one['seconds']:g} s"
            if one["pause_s"]
            else "none"
            for one in beside
        )
        yield _BESIDE.format(pauses=pauses, gap=beside[0]["gap_s"])
        yield _table(
            ["", *(f"pauses of {one['pause_s']:g} s" for one in beside)],
            [
                [_bold(name), *(_torn_of(one["found"].get(name)) for one in beside)]
                for name in beside[0]["found"]
            ],
        )
        yield _picture("torn", "Torn copies", pictures)
    yield from _commands_of_peers((alone or beside[0])["commands"], (alone or beside[0])["lacking"])


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def _alone_row(name: str, found: dict[str, Any]) -> list[str]:
    live = [seconds * 1000 for seconds in found["live_s"]]
    copies = found["views"]
    return [
        _bold(name),
        f"{len(live)} of {found['saves']}",
        f"{median(live):.0f}" if live else "",
        f"{percentile(live, 99):.0f}" if live else "",
        f"{found['torn']} of {copies}",
        f"{found['cpu_s'] / copies * 1000:.0f} ms" if copies else "",
        f"{found['written_bytes'] / copies / 1e6:.1f} MB" if copies else "",
    ]


def _torn_of(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not there"
    return f"{found['torn']} of {found['views']}" if found["views"] else "no copy"


def _commands_of_peers(commands: dict[str, dict[str, str]], lacking: dict[str, str]) -> Iterator[str]:
    yield "### Their commands"
    yield "For bash, `$SRC` being the checkpoint and `$DST` a folder for what comes of it."
    for name, one in commands.items():
        missing = f" (not measured: {lacking[name]})" if name in lacking else ""
        script = f"\n\n# $SCRIPT:\n{one['script']}" if one["script"] else ""
        yield f"{name}{missing}:\n\n```bash\n{one['command']}{script}\n```"


def _swap(records: Records, pictures: Sequence[str]) -> Iterator[str]:
    chosen = [records[name] for name in ("swap_symlink", "swap_exchange") if name in records]
    if not chosen:
        return
    yield "## A swap, as a reader sees it"
    yield (
        "A process opens `current/meta.json` as fast as it can while releases go live, on as many processors as there are: the longest opens are those of a reader that had to wait for one. The open that saw a swap is the first that "
        "gets the new release's file."
    )
    rows = []
    for record in chosen:
        during = [ns / 1000 for ns in record["during_ns"]]
        rows.append(
            [
                f"`{record['swap']}`",
                f"{record['swaps']}",
                f"{record['opens']:,}",
                f"{record['failed']}",
                f"{median(record['others_ns']) / 1000:.1f}",
                f"{median(during):.1f}",
                f"{percentile(during, 99):.1f}",
            ]
        )
    head = ["`swap`", "swaps", "opens", "failed", "any open, µs", "that saw a swap, µs: p50", "p99"]
    yield _table(head, rows)
    yield _picture("swap", "Opens during swaps", pictures)


def _idle(records: Records) -> Iterator[str]:
    chosen = sorted(
        (one for name, one in records.items() if name.startswith("idle_")),
        key=lambda one: int(one["checkpoints"]),
    )
    if not chosen:
        return
    yield "## A daemon that has nothing to do"
    yield _NOTE["idle"]
    rows = [
        [
            one["what"],
            f"{median(one['ready_s']):.2f}",
            f"{one['cpu_of_a_core'] * 100:.3f} % ({one['cpu_of_a_core'] * 3600:.1f} s an hour)",
            f"{one['wakeups_per_s']:.1f}",
            f"{one['resident_bytes'] / 1e6:.0f}",
            f"{median(one['detection_s']) * 1000:.1f}",
            f"{percentile(one['detection_s'], 99) * 1000:.1f}",
        ]
        for one in chosen
    ]
    yield _table(
        ["", "ready after, s", "CPU, of one core", "wakeups/s", "RSS, MB", "looks after, ms: p50", "p99"],
        rows,
    )


def _commands(records: Records) -> Iterator[str]:
    if record := records.get("commands"):
        yield "## Commands, from start to end"
        yield _table(
            ["", "ms"], [[what, str(Timing.of(way["seconds"]))] for what, way in record["ways"].items()]
        )


def _many(records: Records) -> Iterator[str]:
    chosen = {name: one for name, one in records.items() if name.startswith("many_releases_")}
    if not chosen:
        return
    yield "## Many releases"
    yield _NOTE["many"]
    for name, record in chosen.items():
        what = name.removeprefix("many_releases_").replace("_", " ").strip()
        yield _table(
            [what.replace("publish", "the next publish,"), "ms", "CPU, ms"],
            [
                [way, str(Timing.of(took["seconds"])), f"{median(took['cpu_s']) * 1000:.1f}"]
                for way, took in record["ways"].items()
            ],
        )


def _log(records: Records) -> Iterator[str]:
    if record := records.get("log"):
        per_line = {
            name: [s / record["lines"] * 1e6 for s in way["seconds"]] for name, way in record["ways"].items()
        }
        yield "## The log, in a file"
        yield _table(
            ["", "µs a line", "lines a second"],
            [
                [
                    {"ours": "spancat-daemon", "logging": "`logging` with `json`, same fields"}[name],
                    *_line(took),
                ]
                for name, took in per_line.items()
            ],
        )


def _profiles(records: Records) -> Iterator[str]:
    chosen = [record for name, record in records.items() if name.startswith("profile_")]
    if not chosen:
        return
    yield "## Where the time goes"
    yield _NOTE["profiles"]
    for record in chosen:
        yield _table(
            [record["what"], "own ms"],
            [[part, f"{own_ms:.2f}"] for part, own_ms in record["own_ms"].items()],
        )


def _line(took_us: Sequence[float]) -> list[str]:
    return [f"{median(took_us):.1f}", f"{1e6 / median(took_us):,.0f}"]


def costs(records: Records) -> str:
    """What README.md shows of it: a release against a copy, and a verification against loading."""
    staged = [
        [
            record["what"],
            *(str(Timing.of(record["ways"][way]["seconds"])) for way in ("ours", "cp")),
            f"**{median(ratios(record, over=['cp'])):.2f}**",
        ]
        for record in (records.get(f"staging_ext4_{name}") for name in _IN_README)
        if record is not None
    ]
    verified = records.get("seeing_that_a_checkpoint_works_against_loading_it")
    parts = [_table(["", "spancat-daemon, durable and live, ms", "`cp -r` + `sync -f`, ms", "ratio"], staged)]
    if verified is not None:
        parts += [_VERIFIED, verified["text"]]
    return "\n\n".join(part.strip() for part in parts)


def main() -> None:
    target, readme = map(Path, sys.argv[1:])
    folder = target.with_suffix("")
    records = load(folder)
    if not records:
        sys.exit(f"there is nothing in {folder}")
    target.write_text(page(records, list(draw(folder, records))))
    put(readme, costs(records), by="make bench")


if __name__ == "__main__":
    main()
