"""System calls of the running daemon, hurt while strace holds all of it: of a reload, and of a publish.

What each call of a publish may do is tried by the thousand in `test_system_calls`; here it is seen that the
whole daemon, with its threads, log and socket, is as the small process there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from spancat_daemon.daemon.client import ControlClient
from spancat_daemon.errors import SpancatDaemonError
from tests.faults.beside import at_rest
from tests.faults.judge import generation, judge, live
from tests.faults.report import tally
from tests.faults.strace_calls import Call, Fault, errors, happened, kills, recorded, recording, untraceable
from tests.faults.test_system_calls import KILLED, spread
from tests.pipelines import build
from tests.service import PATIENCE_S, Daemon, configure, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(untraceable()), reason=untraceable())

PUBLISH = [
    Fault(Call(name, number, ""), what)
    for name, number, what in (
        ("fdatasync", 2, "signal=SIGKILL"),
        ("fsync", 5, "error=ENOSPC"),
        ("symlink", 1, "error=EROFS"),
        ("write", 1, "error=EIO"),
        ("fdatasync", 3, "signal=SIGKILL"),
        ("linkat", 1, "signal=SIGKILL"),
    )
]


@contextmanager
def held(daemon: Daemon, options: Sequence[str]) -> Iterator[None]:
    """The daemon with strace at all its threads; it may die meanwhile."""
    tracer = subprocess.Popen(["strace", *options, "-p", str(daemon.pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # lets go
        tracer.communicate(timeout=PATIENCE_S)


def dead(daemon: Daemon) -> bool:
    """Whether it is, once the one who waits for it knows."""
    return daemon._process is None or daemon._process.poll() is not None


class Service:
    """A daemon with one rule whose release is live, that others are added to by a reload."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.kind = kind
        self.log = root / "calls"
        self.control = ControlClient(root / "var/control.sock", timeout_s=PATIENCE_S)
        self.states = [build("default", root / f"states/{number}", generation=number) for number in range(2)]
        self.generations = [generation(state) for state in self.states]
        shutil.copytree(self.states[0], root / "runs/model-best", copy_function=shutil.copy2)
        self.added = 0
        self.config = self.rules()
        self.daemon = Daemon(self.config).start()
        self.daemon.wait_for("release.published")

    def rules(self, *, added: bool = False) -> Path:
        """Write a configuration, which may have a second rule, with a deployment folder that never was."""
        self.added += added
        more = f'[[watch]]\nname = "added"\nsource = "runs/none"\ndeploy = "added-{self.added}/models"\n'
        config = configure(self.root, rules=more if added else "", swap=self.kind)
        config.write_text('[log]\nfile = "daemon.log"\n' + config.read_text())
        return config

    def reload(self) -> str:
        """Return why it was refused; empty if it was not."""
        try:
            self.control.call("POST", "/v1/reload")
        except SpancatDaemonError as error:
            return str(error)
        return ""

    def restart(self) -> None:
        self.daemon.kill()
        self.daemon = Daemon(self.config).start()

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "daemon.log").read_text().splitlines()]

    def unwell(self) -> list[str]:
        self.control.call("POST", "/v1/snapshot", {"rule": "products"})  # a start's own look is over then
        return at_rest(self.daemon, self._violations)

    def _violations(self) -> list[str]:
        found = judge(self.root / "models/products", self.generations, log=self.logged())
        for added in self.root.glob("added-*/models"):
            found += judge(added)
        return found


@pytest.fixture
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    service = Service(tmp_path, request.param)
    yield service
    service.daemon.stop()


def reload_under(service: Service, fault: Fault) -> list[str]:
    """Add a rule under a fault, then without one; return what is wrong with that."""
    service.rules(added=True)
    killed = "SIGKILL" in fault.what
    with held(service.daemon, fault.options(service.log)):
        refused = service.reload()
        if killed:
            until(lambda: dead(service.daemon), what="it was not killed")
    wrong = [] if happened(service.log) else ["the fault did not happen"]
    if killed:
        service.restart()
    elif refused:
        problem = os.strerror(getattr(errno, fault.what.removeprefix("error=")))
        if problem not in refused:
            wrong.append(f"it does not say {problem!r}: {refused!r}")
    if again := service.reload():
        wrong.append(f"a reload where nothing fails is refused: {again}")
    rules = {rule["rule"] for rule in service.control.call("GET", "/v1/status")["rules"]}
    if rules != {"products", "added"}:
        wrong.append(f"it has the rules {rules}")
    wrong += service.unwell()
    service.rules()
    assert service.reload() == ""
    return wrong


def reload_calls(service: Service) -> list[Call]:
    """What changes something in a reload that adds a rule, in the thread that reloads."""
    service.rules(added=True)
    with held(service.daemon, recording(service.log)):
        assert service.reload() == ""
    calls = recorded(service.log, service.root / "added-1", thread=service.daemon.pid)
    service.rules()
    assert service.reload() == ""
    return [call for call in calls if call.changes]


def must_survive_reloads(service: Service, most: int | None) -> None:
    calls = reload_calls(service)
    assert {"mkdir", "fsync", "flock"} <= {call.name for call in calls}
    for faults, fault, promise in (
        (list(kills(calls)), "`kill -9` before a system call of a reload", KILLED),
        (list(errors(calls)), "a failing system call of a reload", RELOAD),
    ):
        chosen = faults if most is None else spread(faults, most)
        wrong = {str(one): found for one in chosen if (found := reload_under(service, one))}
        assert not wrong, wrong
        tally(fault, len(chosen), promise)


RELOAD = "it is refused and says why, or done; the rules before it go on, and the next one is accepted"


@pytest.mark.parametrize("service", ["symlink"], indirect=True)
def test_some_calls_of_a_reload(service: Service) -> None:
    must_survive_reloads(service, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("service", ["symlink", "exchange"], indirect=True)
def test_every_call_of_a_reload(service: Service) -> None:
    must_survive_reloads(service, None)


def publish_under(service: Service, fault: Fault) -> list[str]:
    """Let the trainer write under a fault; return what is wrong once the daemon has had another look."""
    deploy, checkpoint = service.root / "models/products", service.root / "runs/model-best"
    now = live(deploy)
    assert now is not None
    number = int(now["model_sha256"] == service.generations[0]["spancat/model"])
    shutil.copytree(service.states[number], service.root / "fresh", copy_function=shutil.copy2)
    since = len(service.daemon.events)
    with held(service.daemon, fault.options(service.log)):
        checkpoint.rename(service.root / "before")
        (service.root / "fresh").rename(checkpoint)
        if "SIGKILL" in fault.what:
            until(lambda: dead(service.daemon), what="it was not killed")
        else:
            service.daemon.wait(
                lambda event: event["event"] in {"snapshot.failed", "release.overwrite"}, since=since
            )
    shutil.rmtree(service.root / "before")
    wrong = [] if happened(service.log) else ["the fault did not happen"]
    # What lives goes on, and tries again: it is held while the folder is looked at.
    with nullcontext() if "SIGKILL" in fault.what else service.daemon.frozen():
        wrong += judge(deploy, service.generations, recovered=False)
    if "SIGKILL" in fault.what:
        service.restart()
    wrong += service.unwell()
    after = live(deploy)
    if after is None or after["model_sha256"] != service.generations[number]["spancat/model"]:
        wrong.append("what was to be published is not live")
    return wrong


@pytest.mark.parametrize("service", ["symlink", "exchange"], indirect=True)
def test_a_publish_of_the_daemon(service: Service) -> None:
    faults = [fault for fault in PUBLISH if service.kind == "symlink" or fault.call.name != "symlink"]
    wrong = {str(fault): found for fault in faults if (found := publish_under(service, fault))}
    assert not wrong, wrong
    tally("a system call of a publish of the whole daemon, killed or failing", len(faults), KILLED)
