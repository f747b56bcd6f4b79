"""What can happen to a soak, each as one function that does it, waits, and undoes it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from spancat_daemon.errors import SpancatDaemonError
from tests.faults.beside import loaders
from tests.faults.judge import judge

from .place import SAVED

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .actors import Actors
    from .place import Place, Rule

_PATIENCE_S = 5.0


class Missed(Exception):  # noqa: N818  # no failure of anything
    """There was nothing to do it to."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    Attributes:
        what: as figures and the table of faults call it.
        weight: how often it is drawn, against the others.
        do: does it; returns what is not allowed and was seen at once.
        ends_daemon: whether the daemon is another one afterwards.
        needs: what it can't be done without, if that is not always there.
    """

    what: str
    weight: int
    do: Callable[[Actors, random.Random], list[str]]
    ends_daemon: bool = False
    needs: Literal["", "root", "training", "loader"] = ""


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)  # how long a fault lasts, not for anything


def kill_daemon(actors: Actors, chance: random.Random) -> list[str]:
    actors.daemon.kill()
    # The saver may be at work in its folder
    found = [
        f"after a kill: {rule.name}: {fault}"
        for rule in actors.place.rules
        if rule.deploy != SAVED and actors.place.deploy(rule).exists()
        for fault in judge(actors.place.deploy(rule), recovered=False)
    ]
    _wait(chance.choice([0, 0, chance.uniform(0, 3)]))
    actors.daemon.start()
    return found


def kill_starting_daemon(actors: Actors, chance: random.Random) -> list[str]:
    actors.daemon.kill()
    for _ in range(3):
        starter = threading.Thread(target=actors.daemon.start)
        starter.start()
        _wait(chance.uniform(0.05, 1.0))
        if (process := actors.daemon._process) is not None:
            process.kill()
        starter.join()
        actors.daemon.unexpected = [
            said for said in actors.daemon.unexpected if said != "it ended while it started"
        ]
    actors.daemon.start()
    return []


def restart_daemon(actors: Actors, _: random.Random) -> list[str]:
    actors.daemon.stop()
    actors.daemon.start()
    return []


def stop_daemon(actors: Actors, chance: random.Random) -> list[str]:
    _freeze(actors.daemon.pid, chance.uniform(0.2, 4))
    return []


def kill_training(actors: Actors, chance: random.Random) -> list[str]:
    actors.training.kill()
    _wait(chance.uniform(0, 2))
    actors.training.start()
    return []


def stop_training(actors: Actors, chance: random.Random) -> list[str]:
    if not actors.training.running:
        raise Missed
    actors.training.pause()
    _wait(chance.uniform(0.2, 3))
    actors.training.resume()
    return []


def kill_writer(actors: Actors, chance: random.Random) -> list[str]:
    writer = chance.choice(actors.writers)
    writer.kill()
    _wait(chance.uniform(0, 2))
    writer.start()
    return []


def stop_writer(actors: Actors, chance: random.Random) -> list[str]:
    _freeze(chance.choice(actors.writers).pid, chance.uniform(0.2, 3))
    return []


def kill_reader(actors: Actors, chance: random.Random) -> list[str]:
    reader = chance.choice(actors.readers)
    reader.kill()
    reader.start()
    return []


def stop_reader(actors: Actors, chance: random.Random) -> list[str]:
    _freeze(chance.choice(actors.readers).pid, chance.uniform(0.2, 4))
    return []


def kill_saver(actors: Actors, _: random.Random) -> list[str]:
    actors.saver.kill()
    actors.saver.start()
    return []


def kill_loader(actors: Actors, _: random.Random) -> list[str]:
    _signal(_loader(actors), signal.SIGKILL)
    return []


def stop_loader(actors: Actors, chance: random.Random) -> list[str]:
    _freeze(_loader(actors), chance.uniform(0.2, 3))
    return []


def reload(actors: Actors, chance: random.Random) -> list[str]:
    actors.place.configure(chance.randrange(100))
    try:
        actors.daemon.control.call("POST", "/v1/reload")
    except SpancatDaemonError as error:
        return [f"a good configuration was refused: {error}"]
    return []


def reload_wrongly(actors: Actors, chance: random.Random) -> list[str]:
    variant = chance.randrange(100)
    actors.place.configure(variant, wrong=True)
    try:
        actors.daemon.control.call("POST", "/v1/reload")
    except SpancatDaemonError:
        found = []
    else:
        found = ["a bad configuration was taken"]
    actors.place.configure(variant)
    return found


def fill_disk(actors: Actors, chance: random.Random) -> list[str]:
    ballast = actors.place.small / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(b"-" * 4096):
                pass
    except OSError:  # full
        _wait(chance.uniform(1, 4))
    finally:
        ballast.unlink()
    return []


def delete_source(actors: Actors, chance: random.Random) -> list[str]:
    source = actors.place.source(_rewritten(actors, chance))
    shutil.rmtree(chance.choice([source, source.parent]), ignore_errors=True)
    return []


def move_source(actors: Actors, chance: random.Random) -> list[str]:
    source = actors.place.source(_rewritten(actors, chance))
    away = actors.place.folder / "away"
    try:
        source.parent.rename(away)
    except FileNotFoundError:
        raise Missed from None
    _wait(chance.uniform(0, 1))
    try:
        away.rename(source.parent)
    except OSError:  # written anew meanwhile
        shutil.rmtree(away)
    return []


def rotate_log(actors: Actors, _: random.Random) -> list[str]:
    number = len(list(actors.place.logs()))
    actors.place.log.rename(actors.place.folder / f"daemon.log.{number:06}")
    _signal(actors.daemon.pid, signal.SIGHUP)
    return []


def block_output(actors: Actors, chance: random.Random) -> list[str]:
    actors.daemon.block(blocked=True)
    _wait(chance.uniform(2, 6))
    actors.daemon.block(blocked=False)
    return []


def storm(actors: Actors, chance: random.Random) -> list[str]:
    folder = actors.place.folder / "runs/alpha" / f"storm-{chance.randrange(1000)}"
    try:
        folder.mkdir(parents=True)
        for number in range(3000):
            (folder / str(number)).touch()
    except OSError:  # deleted by another fault
        raise Missed from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return []


FAULTS: Final = (
    Fault("the daemon killed", 6, kill_daemon, ends_daemon=True),
    Fault("the daemon killed three times while it starts", 2, kill_starting_daemon, ends_daemon=True),
    Fault("the daemon stopped by SIGTERM and started", 2, restart_daemon, ends_daemon=True),
    Fault("the daemon frozen by SIGSTOP", 4, stop_daemon),
    Fault("the training killed", 4, kill_training, needs="training"),
    Fault("the training frozen", 4, stop_training, needs="training"),
    Fault("a process that rewrites checkpoints killed", 6, kill_writer),
    Fault("a process that rewrites checkpoints frozen", 4, stop_writer),
    Fault("a reader killed", 4, kill_reader),
    Fault("a reader frozen in the midst of a read", 4, stop_reader),
    Fault("a process that saves by force killed", 3, kill_saver),
    Fault("the loader killed", 4, kill_loader, needs="loader"),
    Fault("the loader frozen", 3, stop_loader, needs="loader"),
    Fault("another configuration loaded", 4, reload),
    Fault("a wrong configuration refused", 3, reload_wrongly),
    Fault("the disk of one folder full for a while", 4, fill_disk, needs="root"),
    Fault("a source, or all of its run, deleted", 4, delete_source),
    Fault("a run moved away and back", 3, move_source),
    Fault("the log rotated", 4, rotate_log),
    Fault("standard output blocked for a while", 3, block_output),
    Fault("6,000 events in a burst", 2, storm),
)


def lacks(fault: Fault, place: Place) -> str:
    """What is missing for a fault; empty if nothing is."""
    if fault.needs == "root" and not place.has_small_disk:
        return "it needs root"
    return f"there is no {fault.needs}" if place.light and fault.needs in {"training", "loader"} else ""


def _rewritten(actors: Actors, chance: random.Random) -> Rule:
    return chance.choice([rule for rule in actors.place.rules if rule.writer == "rewritten"])


def _loader(actors: Actors) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if (pid := actors.daemon.pid) is not None and (found := loaders(pid)):
            return found[0]
        _wait(0.02)
    raise Missed


def _freeze(pid: int | None, seconds: float) -> None:
    _signal(pid, signal.SIGSTOP)
    try:
        _wait(seconds)
    finally:
        _signal(pid, signal.SIGCONT)


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid is None:
        raise Missed
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise Missed from None
