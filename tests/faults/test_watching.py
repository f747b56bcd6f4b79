"""Whatever happens to file events, source folders and clocks, the next whole checkpoint goes live."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, available_timezones

import pytest

from spancat_daemon.config.cron import trigger_fields
from spancat_daemon.config.model import CronSchedule
from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.triggers.schedule import cron_trigger
from tests.faults.belied import Belied
from tests.faults.beside import Feeder, serves
from tests.faults.judge import judge
from tests.faults.report import tally
from tests.faults.watched import Costs, Scene, inside, namespaces, scene, set_limits
from tests.service import Daemon, configure, until
from tests.spooling import signal as say_written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

exhaustive = pytest.mark.exhaustive
DAY_S: Final = 86_400
_NEXT: Final = "the next checkpoint goes live; said once; then at rest, with no more descriptors or memory"


def storm(checkpoint: Path, events: int) -> None:
    """So many events of one checkpoint; equal neighbours in the kernel's queue would be merged."""
    config, meta = checkpoint / "config.cfg", checkpoint / "meta.json"
    for number in range(events // 2):
        os.utime(config, (number, number))
        os.utime(meta, (number, number))


# -- too much at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=exhaustive)])
def test_the_queue_overflows_while_the_daemon_is_stopped(tmp_path: Path, rounds: int) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    there = scene(tmp_path)
    with there.daemon as daemon:
        there.begin()
        for _ in range(rounds):
            there.mark()
            there.watching(there.feeder.checkpoint)
            with daemon.frozen():
                storm(there.feeder.checkpoint, limit + 1000)
                wanted = there.feeder.put()  # all events of it are lost
            there.wait_told("watch.overflowed")
            there.live(wanted)
            assert len(there.told("watch.overflowed")) == 1
            there.well()
    tally("the queue of file events overflows while the daemon is stopped", rounds, _NEXT)


@exhaustive
@pytest.mark.parametrize("rounds", [10])
def test_a_hundred_thousand_events_in_a_burst(tmp_path: Path, rounds: int) -> None:
    there = scene(tmp_path)
    with there.daemon as daemon:
        there.begin()
        for _ in range(rounds):
            storm(there.feeder.checkpoint, 100_000)
            there.put()
            there.well()
        assert not [event for event in daemon.events if event["event"] == "watch.degraded"]
    tally("100,000 file events in a burst", rounds, _NEXT)


@exhaustive
@pytest.mark.parametrize("poll", ["0s", "1s"])
def test_ten_thousand_runs(tmp_path: Path, poll: str) -> None:
    feeder = Feeder(tmp_path)
    runs = feeder.checkpoint.parent
    for number in range(10_000):
        (runs / f"{number:04}").mkdir()
    config = configure(tmp_path, source="runs/*/model-best", deploy="models/{1}", poll=poll)
    chance = random.Random(0)  # noqa: S311  # which run, not secrets
    with Daemon(config) as daemon:
        there = Scene(feeder, tmp_path, daemon)
        if poll == "0s":
            there.rest()
        with os.scandir(runs) as entries:
            names = [entry.name for entry in entries]
        chosen = [names[0], names[-1], *chance.sample(names[1:-1], 3)]
        for name in chosen:
            there.feeder.checkpoint = runs / name / "model-best"
            there.deploy = tmp_path / "models" / name
            there.put()
        if poll == "0s":
            there.rest()
        assert there.told("watch.degraded") == []
    for name in chosen:
        assert judge(tmp_path / "models" / name, feeder.generations) == []
    tally("10,000 folders of runs under a wildcard", len(chosen), _NEXT)


@exhaustive
@pytest.mark.parametrize("matches", [300, 3000])
def test_matches_come_and_go_by_the_hundreds(tmp_path: Path, matches: int) -> None:
    feeder = Feeder(tmp_path)
    feeder.checkpoint = tmp_path / "runs/kept/model-best"
    feeder.checkpoint.parent.mkdir()
    config = configure(tmp_path, source="runs/*/model-best", deploy="models/{1}")
    config.write_text(config.read_text().replace("[daemon]", '[daemon]\nreconcile_every = "5s"'))
    daemon = Daemon(config)
    there = Scene(feeder, tmp_path / "models/kept", daemon)
    with daemon:
        there.begin()
        held = Costs.of(daemon.pid).descriptors
        for warm in (False, True, True):
            there.mark()
            for number in range(matches):
                (tmp_path / f"runs/{number}/model-best").mkdir(parents=True)
            daemon.wait_for("watch.started", since=there.since, count=matches, timeout_s=240)
            there.put()
            for number in range(matches):
                shutil.rmtree(tmp_path / f"runs/{number}")
            daemon.wait_for("watch.ended", since=there.since, count=matches, timeout_s=240)
            if warm:  # so many at once take their memory for good, but not again and again
                there.well(more_bytes=8 << 20)
            else:
                there.rest()
                there.before = replace(Costs.of(daemon.pid), descriptors=held)
            for name in ("watch.started", "watch.ended"):
                assert len(there.told(name)) == matches
            assert there.told("watch.degraded") == []
    tally("matches of a wildcard come and go, all at once", 3 * matches, _NEXT)


# -- limits --------------------------------------------------------------------------------------------------

_LIMITS = [
    "max_inotify_watches=5",
    pytest.param("max_inotify_instances=0", marks=exhaustive),
    *(pytest.param(f"max_inotify_watches={n}", marks=exhaustive) for n in (0, 1, 3, 8)),
]


@pytest.mark.parametrize("limit", _LIMITS)
def test_the_kernel_gives_no_more(tmp_path: Path, limit: str) -> None:
    there = scene(tmp_path, within=namespaces(limit))
    there.feeder.put()
    with there.daemon as daemon:
        degraded = there.wait_told("watch.degraded")
        sysctl = "max_user_instances" if "instances" in limit else "max_user_watches"
        assert sysctl in degraded["hint"]
        there.begin()
        there.put()
        of_rule = [event for event in there.told("watch.degraded") if event.get("rule") == "products"]
        assert len(of_rule) == 1
        assert there.told("watch.restored") == []
        set_limits(daemon.pid, f"{limit.partition('=')[0]}=1000")
        daemon.wait(lambda event: event["event"] == "watch.restored" and event.get("rule") == "products")
        there.before = Costs.of(daemon.pid)
        there.well()
        assert len(there.told("watch.restored")) == len(there.told("watch.degraded"))
    tally("limits of watches and instances of inotify are reached, and raised", 1, _NEXT)


# -- the folder around the checkpoint ------------------------------------------------------------------------


def deleted(there: Scene) -> None:
    shutil.rmtree(there.runs)
    there.wait_told("watch.lost")
    there.runs.mkdir()


def deleted_and_made_at_once(there: Scene) -> None:
    shutil.rmtree(there.runs)
    there.runs.mkdir()


def replaced_by_a_link(there: Scene) -> None:
    store = there.runs.with_name("store")
    shutil.rmtree(store, ignore_errors=True)
    _aside(there.runs, store)
    there.runs.symlink_to(store)


def re_targeted(there: Scene) -> None:
    if not there.runs.is_symlink():
        replaced_by_a_link(there)
    other = there.runs.with_name(f"store-{len(os.listdir(there.runs.parent))}")  # noqa: PTH208  # a new name
    other.mkdir()
    link = there.runs.with_name("link")
    link.symlink_to(other.name)
    link.replace(there.runs)


def moved_away_and_back(there: Scene) -> None:
    away = there.runs.with_name("away")
    there.runs.rename(away)
    there.wait_told("watch.lost")
    away.rename(there.runs)


def moved_away_and_another_in(there: Scene) -> None:
    other = there.runs.with_name("other")
    other.mkdir()
    _aside(there.runs, there.runs.with_name(f"gone-{len(os.listdir(there.runs.parent))}"))  # noqa: PTH208
    other.rename(there.runs)


def _aside(runs: Path, to: Path) -> None:
    """Moves the folder away; a link in its place is taken away."""
    if runs.is_symlink():
        runs.unlink()
        to.mkdir()
    else:
        runs.rename(to)


def checkpoint_a_link(there: Scene) -> None:
    there.feeder.put()
    real = there.runs / "real"
    shutil.rmtree(real, ignore_errors=True)
    there.feeder.checkpoint.rename(real)
    there.feeder.checkpoint.symlink_to("real")
    until(lambda: any(serves(there.deploy, wanted) for wanted in there.feeder.generations))
    there.feeder.checkpoint.unlink()


FAULTS: Final = {
    "deleted": deleted,
    "deleted and made anew at once": deleted_and_made_at_once,
    "replaced by a link": replaced_by_a_link,
    "a link that is led elsewhere": re_targeted,
    "moved away and back": moved_away_and_back,
    "moved away, another moved in": moved_away_and_another_in,
    "a link for a checkpoint, and none": checkpoint_a_link,
}


def _clear(runs: Path) -> None:
    if runs.is_symlink():
        runs.unlink()
        runs.mkdir()


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=exhaustive)])
def test_the_folder_around_it_is_not_what_it_was(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(rounds)  # noqa: S311  # which fault, not secrets
    there = scene(tmp_path)
    with there.daemon:
        there.begin()
        for _ in range(rounds):
            for name in chance.sample(list(FAULTS), len(FAULTS)):
                if name.startswith(("deleted", "moved away and back")):
                    _clear(there.runs)
                    there.put()
                there.mark()
                FAULTS[name](there)
                there.put()
                if there.told("watch.lost"):
                    there.wait_told("watch.restored")
                assert len(there.told("watch.lost")) == len(there.told("watch.restored")) <= 1, name
                assert there.told("watch.degraded") == [], name
            there.well()
    for name in FAULTS:
        tally(f"the folder around the checkpoint: {name}", rounds, _NEXT)


@exhaustive
@pytest.mark.parametrize("rounds", [10])
def test_a_file_system_mounted_over_it_and_unmounted(tmp_path: Path, rounds: int) -> None:
    there = scene(tmp_path, within=namespaces())
    with there.daemon as daemon:
        there.begin()
        outside = there.feeder.checkpoint
        for _ in range(rounds):
            inside(daemon.pid, "mount", "-t", "tmpfs", "none", str(outside.parent))
            there.feeder.checkpoint = Path(f"/proc/{daemon.pid}/root{outside}")
            there.put()
            there.put()
            daemon.rests()
            inside(daemon.pid, "umount", str(outside.parent))  # nobody holds anything open in it
            there.feeder.checkpoint = outside
            there.well()
    tally("a file system mounted over the source, and unmounted", 2 * rounds, _NEXT)


@exhaustive
@pytest.mark.parametrize("rounds", [10])
@pytest.mark.parametrize("what", ["runs", "runs/model-best/vocab"])
def test_a_folder_that_can_not_be_read_and_then_can(tmp_path: Path, what: str, rounds: int) -> None:
    within: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, to be root without its power over files")
        within = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    there = scene(tmp_path, within=within)
    folder = tmp_path / what
    with there.daemon as daemon:
        there.begin()
        for _ in range(rounds):
            there.mark()
            folder.chmod(0)
            degraded = there.wait_told("watch.degraded")
            assert degraded["reason"] == "not readable"
            assert str(folder) in degraded["path"]
            folder.chmod(0o755)
            there.put()
            daemon.wait(lambda event: event["event"] == "watch.restored", since=there.since)
            assert len(there.told("watch.degraded")) == 1
            assert len(there.told("watch.restored")) == 1
            there.well()
    tally("a folder that can't be read, and then can", rounds, _NEXT)


# -- file systems that tell nothing, and clocks that lie -----------------------------------------------------


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=exhaustive)])
@pytest.mark.parametrize(
    ("more", "reconcile"),
    [
        pytest.param('poll = "1s"', "", id="poll"),
        pytest.param("", "2s", id="reconcile", marks=exhaustive),
    ],
)
def test_a_file_system_without_events(tmp_path: Path, more: str, reconcile: str, rounds: int) -> None:
    belied = Belied(tmp_path, deaf=True)
    there = scene(tmp_path, more=more, reconcile=reconcile, environ=belied.environ)
    with there.daemon:
        there.begin()
        for number in range(rounds):
            state = number % len(there.feeder.generations)
            # In place: nothing but times and bytes changes.
            shutil.copytree(tmp_path / f"state-{state}", there.feeder.checkpoint, dirs_exist_ok=True)
            there.live(there.feeder.generations[state])
        there.judge()
        assert there.told("watch.degraded") == []
    tally(
        "a file system that tells of no change (library before libc)",
        rounds,
        "polling, or else the reconciling scan, finds each whole checkpoint",
    )


@pytest.mark.parametrize("steps", [(DAY_S, -DAY_S), pytest.param((DAY_S, -DAY_S) * 5, marks=exhaustive)])
def test_the_wall_clock_steps_by_a_day(tmp_path: Path, steps: tuple[int, ...]) -> None:
    belied = Belied(tmp_path)
    time_of_day = (datetime.now(UTC) - timedelta(minutes=10)).strftime("%M %H")  # next due in nearly a day
    there = scene(
        tmp_path,
        environ=belied.environ,
        more=f'schedule = [{{ cron = "{time_of_day} * * *", force = true }}, '
        '{ every = "1h", force = true }]',
    )
    control = ControlClient(tmp_path / "var/control.sock")

    def next_run() -> str:
        rules = control.call("GET", "/v1/status")["rules"]
        return str(rules[0]["next_run"])

    with there.daemon:
        there.begin()
        forced = 0
        for step in steps:
            there.mark()
            before = next_run()
            belied.step(step)
            until(lambda before=before: next_run() != before, what="the step was not seen")  # type: ignore[misc]
            if step > 0:
                there.wait_told("schedule.missed")
                forced += 1
            there.put()
            there.well()
            assert len(there.told("schedule.missed")) == (step > 0)
        by_schedule = [event for event in there.daemon.events if event.get("trigger") == "schedule"]
        assert sum(event["event"] == "release.overwrite" for event in by_schedule) == forced
        assert there.daemon.stop() == 0
    tally(
        "the daemon's wall clock steps by a day",
        len(steps),
        "checkpoints go live as ever; what a step skipped runs once; intervals don't care",
    )


# -- nights in which the clocks change -----------------------------------------------------------------------

_EXPRESSIONS: Final = ("30 2 * * *", "0 0 * * *", "*/15 * * * *", "45 1-3 * * *", "5 3 * * 0", "59 23 * * *")
_AROUND: Final = timedelta(hours=30)
_SAMPLE: Final = (
    "Europe/Berlin",
    "Australia/Lord_Howe",  # half an hour
    "America/Santiago",  # at midnight
    "Africa/Casablanca",  # for Ramadan
)


@pytest.mark.parametrize("zones", [_SAMPLE, pytest.param(None, marks=exhaustive)], ids=["sample", "all"])
def test_nights_in_which_the_clocks_change(zones: tuple[str, ...] | None) -> None:
    cases = 0
    for name in zones or sorted(available_timezones()):
        zone = ZoneInfo(name)
        for change in _changes(zone):
            first = change - _AROUND
            minutes = [first + timedelta(minutes=n) for n in range(int(2 * _AROUND.total_seconds()) // 60)]
            local = [minute.astimezone(zone) for minute in minutes]
            for expression in _EXPRESSIONS:
                expected = _expected(expression, zone, local)
                trigger = cron_trigger(CronSchedule(cron=expression, timezone=name))
                assert list(_runs(trigger.get_next_fire_time, minutes)) == expected, (
                    name,
                    change,
                    expression,
                )
                cases += 1
    tally(
        "a schedule in a night in which the clocks change",
        cases,
        "each time that comes runs as often as it comes; one that is left out runs at its old offset",
    )


def _changes(zone: ZoneInfo) -> list[datetime]:
    """The hours of a year after which the offset is another."""
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(365 * 24)]
    offsets = [hour.astimezone(zone).utcoffset() for hour in hours]
    return [hour for hour, now, then in zip(hours, offsets, offsets[1:], strict=False) if now != then]


def _expected(expression: str, zone: ZoneInfo, local: list[datetime]) -> list[datetime]:
    """Minute by minute; of those that no clock shows, the moment they would have been."""
    fields = {key: _set(words) for key, words in trigger_fields(expression).items()}
    found = {moment.astimezone(UTC) for moment in local if _fits(fields, moment)}
    shown = {moment.replace(tzinfo=None) for moment in local}
    naive, end = min(shown), max(shown)
    while naive < end:
        naive += timedelta(minutes=1)
        if naive not in shown and _fits(fields, naive):
            found.add(naive.replace(tzinfo=zone).astimezone(UTC))
    last = local[-1].astimezone(UTC)
    return sorted(moment for moment in found if local[0] < moment <= last)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split(","))


def _fits(fields: dict[str, frozenset[str]], moment: datetime) -> bool:
    weekday = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[moment.weekday()]
    found = {"minute": moment.minute, "hour": moment.hour, "day": moment.day, "month": moment.month}
    return all(fields[key] == {"*"} or str(value) in fields[key] for key, value in found.items()) and (
        fields["day_of_week"] == {"*"} or weekday in fields["day_of_week"]
    )


def _runs(following: Callable[..., datetime | None], minutes: list[datetime]) -> Iterator[datetime]:
    now, before = minutes[0] + timedelta(microseconds=1), None
    while (run := following(before, now)) is not None and run <= minutes[-1]:
        yield run.astimezone(UTC)
        before, now = run, run.astimezone(UTC) + timedelta(microseconds=1)


# -- what trainers say, where the checkpoint is a link -------------------------------------------------------


def test_a_trainer_that_writes_where_a_link_leads_to_is_heard(tmp_path: Path) -> None:
    feeder = Feeder(tmp_path)
    feeder.checkpoint = tmp_path / "store/run-7/model-best"
    feeder.checkpoint.parent.mkdir(parents=True)
    (tmp_path / "runs/model-best").symlink_to("../store/run-7/model-best")
    there = scene(tmp_path, feeder=feeder)
    with there.daemon as daemon:
        there.begin()
        daemon.rests()
        with daemon.frozen():
            wanted = feeder.put()
            say_written(feeder.checkpoint.parent, "model-last", "model-best")
        there.live(wanted)
        assert daemon.wait_for("release.overwrite")[0]["trigger"] == "signal"
    tally("a signal where a link leads to", 1, "heard as one beside the link is")
