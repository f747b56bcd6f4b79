"""The real service: installed as the README says, on a machine with a systemd of its own.

Its journald is the real one, too. One boot serves all tests of this module, in their order.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.errors import SpancatDaemonError
from tests.faults import booted
from tests.faults.judge import Generation, generation, history, judge
from tests.faults.report import tally
from tests.faults.systemd_service import (
    CHECKPOINT,
    CONFIG,
    DEPLOY,
    LOG,
    NAME,
    PREFIX,
    SOCKET,
    Service,
    exposure,
)
from tests.pipelines import build
from tests.service import ROOT, Event, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.alone, pytest.mark.root]

PROBE = booted.PROJECT / "tests/faults/systemd_probe.py"
_LONGEST_S = 600
_PRIORITIES = {"critical": "2", "error": "3", "warning": "4", "info": "6"}


class Bench:
    """The service, and a trainer's folder beside it."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.machine = service.machine
        self.generations: list[Generation] = []
        self._folder = folder
        self._written = 0

    def write(self) -> None:
        """A checkpoint that was not there before takes the place of the one that is."""
        self._written += 1
        fresh = build("default", self._folder / str(self._written), generation=self._written)
        self.generations.append(generation(fresh))
        checkpoint = self.machine.path(CHECKPOINT)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(fresh, checkpoint)

    def publish(self) -> Event:
        """Writes one; waits until it is live."""
        since = len(self.service.logged())
        self.write()
        return self.service.wait(told, since=since)

    def judge(self) -> None:
        """All is well with the folder once it is at rest, and the log tells of it."""
        until(lambda: self.service.status()["rules"][0]["state"] == "idle")
        assert judge(self.machine.path(DEPLOY), self.generations, log=self.service.logged()) == []


def refused_and_dropped(service: Service) -> bool:
    """Has the daemon log something long; whether lines of its log were lost."""
    with contextlib.suppress(SpancatDaemonError):
        ControlClient(service.machine.path(SOCKET)).call("POST", "/v1/reload", {})
    return bool(service.status()["daemon"]["log_lines_dropped"])


def told(event: Event) -> bool:
    return event["event"] in {"release.published", "release.overwrite"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if lacking := booted.missing():
        pytest.skip(lacking)
    with booted.Machine(_LONGEST_S) as machine:
        service = Service(machine)
        service.install()
        yield Bench(service, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def service(bench: Bench) -> Iterator[Service]:
    """It runs, on the configuration as installed; and does again afterwards."""
    yield bench.service
    shutil.copy(ROOT / "deploy/systemd/daemon.toml", bench.machine.path(CONFIG))
    if bench.service.show("ActiveState") != ["active"]:
        bench.service.begin()


def test_it_starts_and_says_what_it_does(service: Service) -> None:
    active, kind, restarts, text = service.show("ActiveState", "Type", "NRestarts", "StatusText")
    assert (active, kind, restarts, text) == ("active", "notify", "0", "watching 1 checkpoint")
    assert 'Status: "watching 1 checkpoint"' in service.control("status")
    # enable --now came back after the daemon had said so, and not before
    assert [event["event"] for event in service.logged()][-1] == "daemon.ready"
    assert service.command("status").splitlines()
    assert service.machine.run("systemctl", "is-enabled", NAME).stdout.strip() == "enabled"
    tally("the service is installed and started by systemd", 1, "READY=1 only when it watches")


def test_it_publishes_what_was_loaded_under_full_confinement(bench: Bench, service: Service) -> None:
    event = bench.publish()
    bench.judge()
    manifest = json.loads(bench.machine.path(DEPLOY / "current" / "release.json").read_text())
    assert event["verified"] == manifest["verification"]["level"] == "load"
    # All that the loader can give up, it gave up inside the unit's sandbox
    assert set(manifest["verification"]["confined"]) == {"memory", "network", "files", "processes"}
    owner = bench.machine.path(DEPLOY / "current" / "model.bin").stat().st_uid
    assert str(owner) == bench.machine.run("id", "-u", "spancat").stdout.strip()
    # A server of another user loads it
    load = "import sys, spacy; print(spacy.load(sys.argv[1]).pipe_names)"
    loaded = bench.machine.run(PREFIX / "bin/python", "-c", load, DEPLOY / "current", nobody=True)
    assert loaded.stdout.strip() == "['tok2vec', 'spancat']"
    tally("a checkpoint is published by the booted service", 1, "loaded first, in full confinement")


def test_the_journal_has_every_event_with_its_priority(service: Service) -> None:
    service.machine.path(CONFIG).write_text("nonsense = 1\n")
    service.control("reload", check=False)
    service.wait(lambda event: event["event"] == "daemon.reload_refused")
    entries = [entry for entry in service.journal() if entry.get("_PID") == str(service.pid)]
    told_there = [json.loads(entry["MESSAGE"]) for entry in entries]  # the priority is no part of it
    assert told_there == service.logged()
    assert [entry["PRIORITY"] for entry in entries] == [_PRIORITIES[event["level"]] for event in told_there]
    assert {"3", "6"} <= {entry["PRIORITY"] for entry in entries}
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {f"{NAME}.service"}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {NAME}
    assert {entry["_CAP_EFFECTIVE"] for entry in entries} == {"0"}
    # As the README says
    read = f"journalctl -u {NAME} -o cat | {PREFIX}/bin/{NAME} logs -"
    assert "reload" in service.machine.shell(read)
    tally("events in the journal", len(entries), "each once, with its priority")


def test_a_reload_is_accepted_or_refused_and_systemctl_knows(bench: Bench, service: Service) -> None:
    pid, config = service.pid, bench.machine.path(CONFIG)
    good = config.read_text()
    config.write_text(good.replace("source =", "sorce ="))
    refused = bench.machine.run("systemctl", "reload", NAME, check=False)
    assert refused.returncode == 1
    assert "did you mean 'source'" in service.control("status")
    assert service.show("ActiveState", "StatusText", "MainPID") == [
        "active",
        "watching 1 checkpoint; the last reload was refused",
        str(pid),
    ]
    bench.publish()  # the old one goes on
    fed = service.show("WatchdogTimestampMonotonic")
    until(lambda: service.show("WatchdogTimestampMonotonic") != fed)
    assert service.show("StatusText")[0].endswith("refused")  # not only until the watchdog is fed
    second = good.split("[[watch]]")[1].split("\n\n")[0].replace("products", "others")
    config.write_text(f"{good}\n[[watch]]{second}\n")
    assert bench.machine.run("systemctl", "reload", NAME).returncode == 0
    assert service.show("StatusText", "MainPID") == ["watching 2 checkpoints", str(pid)]
    config.write_text(good)
    service.control("reload")
    assert service.show("StatusText") == ["watching 1 checkpoint"]
    bench.judge()
    tally("a reload through systemctl", 3, "accepted, or refused with a status and the old one goes on")


def test_the_kernel_holds_it_to_what_the_unit_says(service: Service) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in service.machine.path(f"/proc/{service.pid}/status").read_text().splitlines()
    )
    assert "0" not in status["Uid"].split()
    assert "0" not in status["Gid"].split()
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("mnt", "net", "user", "ipc"):
        of_service = service.machine.path(f"/proc/{service.pid}/ns/{kind}").readlink()
        assert of_service != service.machine.path(f"/proc/1/ns/{kind}").readlink(), kind
    interfaces = service.machine.path(f"/proc/{service.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    tally(
        "limits of the service's process, in the kernel", 11, "no root, capability, network; filtered calls"
    )


def test_who_takes_it_over_can_do_nothing_outside(service: Service) -> None:
    """The unit with another program: what it may not do fails, and not because the program is at fault."""
    machine = service.machine
    unit = (ROOT / "deploy/systemd/spancat-daemon.service").read_text()
    # Where the user could write if it were not for the sandbox, and where not even root may
    for everybodys in ("/srv/open", "/home/open", "/etc/open"):
        machine.path(everybodys).mkdir(parents=True, exist_ok=True)
        machine.path(everybodys).chmod(0o777)
    forbidden = [
        "/srv/open",
        "/home/open",
        "/etc/open",
        "/",
        "/etc",
        "/usr",
        "/srv/training",
        "/root",
        "/dev",
    ]
    forbidden += ["/var/lib", "/sys/fs/cgroup"]
    unseen = ["/proc/sys"]
    roots = [str(CONFIG.parent), "/run"]
    allowed = ["/tmp", "/var/tmp", DEPLOY.parent, LOG.parent, "/run/spancat-daemon"]  # noqa: S108  # its own
    folders = ":".join(map(str, forbidden + unseen + roots + allowed))
    replaced = {
        "ExecStart": f"{PREFIX}/bin/python {PROBE} {folders} 1",
        "Type": "oneshot",
        "Restart": "no",
        "WatchdogSec": "0",
        "RuntimeDirectoryPreserve": "yes",  # the daemon's, which goes on
    }
    lines = [line for line in unit.splitlines() if line.split("=")[0] not in {*replaced, "ExecReload"}]
    at = lines.index("[Service]") + 1
    lines[at:at] = [f"{key}={value}" for key, value in replaced.items()]
    machine.path("/etc/systemd/system/probe.service").write_text("\n".join(lines) + "\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "probe")
    machine.run("journalctl", "--sync")
    output = machine.run("journalctl", "--unit=probe", "--output=cat", "_COMM=python").stdout
    said = json.loads(output)
    done = {name for name, outcome in said.items() if outcome == "done"}
    assert done == {f"write {folder}" for folder in allowed} | {"open a unix socket"}
    for folders_so, outcome in ((forbidden, "EROFS"), (unseen, "ENOENT"), (roots, "EACCES")):
        assert {said[f"write {folder}"] for folder in folders_so} == {outcome}
    assert said["open a socket of the network"] == "EAFNOSUPPORT"
    # The same program without the sandbox: what was refused above is refused by the sandbox
    at_large = machine.run(PREFIX / "bin/python", PROBE, folders, "1").stdout
    free = {name for name, outcome in json.loads(at_large).items() if outcome == "done"}
    assert {"write /etc", "write /srv/training", "open a socket of the network", "make a namespace"} <= free
    tally("forbidden things tried from inside the unit", len(said) - len(done), "refused by the kernel")


def test_its_exposure_is_small(service: Service) -> None:
    said = service.machine.run("systemd-analyze", "security", "--no-pager", NAME, check=False).stdout
    sys.stdout.write(f"exposure of the running service: {exposure(said)} of 10\n")
    assert exposure(said) <= 1.0
    tally("`systemd-analyze security` of the running service", 1, "an exposure of at most 1.0 of 10")


def test_frozen_in_a_publish_it_is_killed_and_the_next_one_mends_it(bench: Bench, service: Service) -> None:
    for times in (1, 2):
        pid, (restarts,) = service.pid, service.show("NRestarts")
        since = len(service.logged())
        bench.write()
        service.wait(lambda event: event["event"] == "snapshot.started", since=since)
        service.signal("SIGSTOP")
        until(partial(restarted, service, int(restarts)), what="no watchdog")
        until(lambda: service.show("SubState") == ["running"], what="not restarted")
        assert service.pid != pid
        published = service.wait(told, since=since)
        assert published["release"] == service.live()
        assert len(history(bench.machine.path(DEPLOY))) >= 2 * times
        bench.judge()
    log = bench.machine.run("journalctl", f"--unit={NAME}", "--output=cat", "_PID=1").stdout
    assert log.count("Watchdog timeout") == 2
    tally(
        "the daemon frozen in a publish, killed by systemd's watchdog", 2, "restarted, the checkpoint is live"
    )


def test_a_stop_takes_less_than_ten_seconds_even_with_a_stuck_loader(bench: Bench, service: Service) -> None:
    since = len(service.logged())
    bench.write()
    service.wait(lambda event: event["event"] == "snapshot.started", since=since)
    until(lambda: loaders(service) != [], what="no loader")
    for pid in loaders(service):
        service.machine.run("kill", "-STOP", pid, check=False)  # one that has ended was not needed
    service.control("stop")  # killed after 10 s, by the drop-in; then its result would be "timeout"
    assert service.show("Result", "ActiveState", "ExecMainStatus") == ["success", "inactive", "0"]
    assert loaders(service) == []
    assert service.logged()[-1]["event"] == "daemon.stopped"
    service.begin()
    until(lambda: any(map(told, service.logged()[since:])), what="not made up for")
    bench.judge()
    tally("stopped by systemd with a stuck loader", 1, "stopped within 10 s, the next start publishes")


def restarted(service: Service, before: int) -> bool:
    return int(service.show("NRestarts")[0]) > before


def loaders(service: Service) -> list[str]:
    """Processes of the service besides the daemon."""
    tasks = service.machine.path(f"/sys/fs/cgroup/system.slice/{NAME}.service/cgroup.procs")
    if not tasks.exists():
        return []
    found = service.machine.run(
        "cat", f"/sys/fs/cgroup/system.slice/{NAME}.service/cgroup.procs", check=False
    )
    return [pid for pid in found.stdout.split() if pid != str(service.pid)]


def test_a_wrong_configuration_is_not_started_over_and_over(bench: Bench, service: Service) -> None:
    service.control("stop")
    bench.machine.path(CONFIG).write_text("[[watch]]\n")
    service.machine.run("systemctl", "reset-failed", NAME, check=False)
    assert "failed" in service.control("start", check=False)
    shown = service.show("ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts")
    assert shown == ["failed", "failed", "exit-code", "2", "0"]  # a restart to come is "auto-restart"
    assert f"{CONFIG}:1:" in service.control("status", check=False)
    tally("started with a wrong configuration", 1, "fails once, with the place of the mistake")


def test_killed_it_is_restarted(bench: Bench, service: Service) -> None:
    service.begin()
    pid = service.pid
    service.signal("SIGKILL")
    until(lambda: service.pid not in {0, pid} and service.show("ActiveState") == ["active"])
    bench.publish()
    bench.judge()
    tally("the service's daemon killed", 1, "restarted, and publishes")


def test_logrotate_moves_the_log_and_no_line_is_lost(bench: Bench, service: Service) -> None:
    if shutil.which("logrotate") is None:
        pytest.skip("logrotate is not installed")
    before = bench.machine.path(LOG).stat().st_ino
    bench.machine.run("logrotate", "--force", f"/etc/logrotate.d/{NAME}")
    assert bench.machine.path(LOG.with_name("daemon.log.1")).stat().st_ino == before
    bench.publish()
    assert any(map(told, map(json.loads, bench.machine.path(LOG).read_text().splitlines())))
    bench.judge()
    tally("the log rotated by logrotate", 1, "no line lost")


def test_a_stopped_journald_does_not_stop_publishing(bench: Bench, service: Service) -> None:
    bench.machine.path(CONFIG).write_text("".join(f"unknown_{number} = 1\n" for number in range(300)))
    journald = bench.machine.run(
        "systemctl", "show", "--value", "-pMainPID", "systemd-journald"
    ).stdout.strip()
    bench.machine.run("kill", "-STOP", journald)
    try:
        until(lambda: refused_and_dropped(service), what="the journal takes it all")
        published = bench.publish()
    finally:
        bench.machine.run("kill", "-CONT", journald)
    assert published["release"] == service.live()
    bench.judge()
    assert service.show("ActiveState") == ["active"]
    # Once it reads again, the journal is told that lines are missing
    bench.publish()
    until(lambda: any("log.dropped" in str(entry["MESSAGE"]) for entry in service.journal()))
    tally("journald stopped, and its socket full", 1, "publishing goes on; lost lines are counted")
