"""A state that a power cut may leave, made real, recovered by the real recovery, and judged."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from spancat_daemon.release.durability import Durability
from spancat_daemon.release.folder import DeploymentFolder
from tests.faults.judge import STATE, history, judge
from tests.faults.power_protocol import Publisher

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection
    from pathlib import Path

    from tests.faults.crash_states import Relied, State
    from tests.faults.judge import Generation

DEPLOY: Final = "models/products"
"""The deployment folder in the recorded tree."""


class Fleeting(Durability):
    """Makes nothing stay: states are judged by the thousand, and no power is cut meanwhile."""

    def start_writeback(self, fd: int) -> None: ...
    def sync_file(self, fd: int) -> None: ...
    def sync_data(self, fd: int) -> None: ...
    def sync_directory(self, fd: int) -> None: ...


FLEETING: Final = Fleeting()


def faults_of(state: State, where: Path) -> list[str]:
    """Everything that is not allowed in a state: before its recovery, in it, and after.

    Args:
        state: which.
        where: a directory to make it in; it is taken away again.
    """
    where.mkdir()
    try:
        state.make(where)
        deploy = where / DEPLOY
        found = [f"unrecovered: {fault}" for fault in judge(deploy, state.trace.generations, recovered=False)]
        found += recovered_faults(deploy, state.trace.generations, state.relied)
        for name in state.doubles():
            if (deploy / "releases" / name).exists() or (deploy / STATE / "rejected" / name).exists():
                found.append(f"{name} is among what recovery empties, too")
        return found
    finally:
        shutil.rmtree(where)


def recovered_faults(
    deploy: Path,
    generations: Collection[Generation],
    relied: Relied,
    *,
    durability: Durability = FLEETING,
    did: Counter[str] | None = None,
) -> list[str]:
    """Recover a folder after a power cut, and say what is not allowed in it then.

    Args:
        deploy: the folder.
        generations: every checkpoint that was ever written.
        relied: what must hold.
        durability: how recovery makes things stay.
        did: counts what recovery does, by the first word.
    """
    publisher = Publisher(deploy, deploy / "no checkpoint", durability=durability)
    try:
        recovered = publisher.start()
    except Exception as error:  # noqa: BLE001  # whatever it is, recovery must not end so
        return [f"recovery failed: {type(error).__name__}: {error}"]
    finally:
        publisher.close()
    if did is not None:
        did.update(action.split()[0] for action in recovered.actions)
    found = judge(deploy, generations)
    lines = history(deploy)
    commits = tuple(line["sha256"] for line in lines if line["kind"] == "commit")
    if commits[: len(relied.commits)] != relied.commits:
        found.append(f"of {len(relied.commits)} commits that were reported, {len(commits)} others are left")
    if len(commits) > len(relied.commits) + 1:
        found.append(f"{len(relied.commits)} commits were reported, and {len(commits)} are there")
    found += [f"a crash is no change by hand: {a}" for a in recovered.actions if _blames_somebody(a)]
    if not relied.prunes:
        found += [f"nothing was pruned: {a}" for a in recovered.actions if a.startswith("recorded that")]
    folder = DeploymentFolder(deploy)
    if relied.pinned - folder.pins():
        found.append("a pin is lost")
    if relied.unpinned & folder.pins():
        found.append("a pin that was taken away is back")
    if relied.number >= folder.next_sequence():
        found.append(f"{folder.next_sequence()} is given a second time")
    again = Publisher(deploy, deploy / "no checkpoint", durability=durability)
    found += [f"a second recovery finds more to do: {action}" for action in again.start().actions]
    again.close()
    return found


def _blames_somebody(action: str) -> bool:
    return any(words in action for words in ("by hand", "was lost", "leads to", "is missing", "is left"))
