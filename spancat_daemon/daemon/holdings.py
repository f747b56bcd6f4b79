"""The deployment folders that the daemon holds, following the configuration and the globs' matches."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from spancat_daemon.checkpoint.settle import file_clock_ns
from spancat_daemon.config.patterns import wildcards
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.deploying.prospect import Prospect
from spancat_daemon.deploying.whereabouts import Whereabouts, is_remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spancat_daemon.config.expand import Target
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.verify.warm import WarmLoaders

Held: TypeAlias = Deployment | Prospect
"""What stands for a deployment folder."""


class Holdings:
    """One deployment per folder, or the prospect of one: a rule's new settings keep its folder held."""

    def __init__(
        self,
        *,
        log: Logger,
        has_logged: Callable[[str, str], bool],
        loaders: WarmLoaders,
        wake: Callable[[], None],
        state_dir: Path,
        control: Path,
    ) -> None:
        """Starts with none.

        Args:
            log: where the deployments tell what happens.
            has_logged: whether the log file has a history line.
            loaders: who loads the snapshots of all of them.
            wake: told when one of them leaves room for others.
            state_dir: where it is remembered in which place each folder lies.
            control: the socket that whoever finds a folder held can ask at.
        """
        self._log = log
        self._has_logged = has_logged
        self._loaders = loaders
        self._wake = wake
        self._state_dir = state_dir
        self._control = control
        self._opening = threading.Lock()
        self._by_folder: dict[Path, Held] = {}

    def __len__(self) -> int:
        return len(self._by_folder)

    def all(self) -> list[Held]:
        """Every deployment that is held or waits to be, and every prospect."""
        return list(self._by_folder.values())

    def opened(self) -> list[Deployment]:
        """Every deployment that is held or waits to be."""
        found = (held.opened if isinstance(held, Prospect) else held for held in self.all())
        return [deployment for deployment in found if deployment is not None]

    def by_rule(self, rule: str) -> Deployment | None:
        """The deployment of a rule, or of one match of a globbed rule."""
        return _deployment(next((held for held in self.all() if held.target.rule == rule), None))

    def by_folder(self, folder: Path) -> Deployment | None:
        """The deployment of a folder, under whatever path it is known there."""
        return _deployment(next((held for held in self.all() if _same(held.target.deploy, folder)), None))

    def reachable_at(self, control: Path) -> None:
        """Tells those who find a folder held at which socket they can ask from now on."""
        self._control = control
        for held in self.all():
            held.reachable_at(control)

    def open(self, target: Target, *, min_free_bytes: int) -> Deployment:
        """A deployment for a target, not held yet and not one of these."""
        return Deployment(
            target,
            min_free_bytes=min_free_bytes,
            log=self._log,
            has_logged=self._has_logged,
            holder="spancat-daemon run",
            loaders=self._loaders,
            wake=self._wake,
            resumes=True,
            whereabouts=Whereabouts(self._state_dir, target.deploy),
            control=self._control,
        )

    def _prospect(self, target: Target, min_free_bytes: int) -> Held:
        """A match of a glob is a prospect; what a rule names as its folder is held from the start.

        So whoever saves there by hand comes through the daemon.
        """
        if not wildcards(target.watch.source):
            return self.open(target, min_free_bytes=min_free_bytes)
        return Prospect(
            target,
            min_free_bytes=min_free_bytes,
            remembered=self._is_remembered,
            open_for=self._open_for,
            mutex=self._opening,
            now_ns=file_clock_ns,
            monotonic=time.monotonic,
        )

    def _open_for(self, target: Target, min_free_bytes: int) -> Deployment:
        return self.open(target, min_free_bytes=min_free_bytes)

    def _is_remembered(self, deploy: Path) -> bool:
        return is_remembered(self._state_dir, deploy)

    def follow(
        self, targets: Sequence[Target], *, min_free_bytes: int, hold: bool
    ) -> tuple[list[Held], list[Held]]:
        """Makes these targets the ones deployed: the new come before the old go.

        Args:
            targets: what is to be deployed from now on.
            min_free_bytes: what must stay free on each folder's file system.
            hold: take each new folder now, and change nothing if one can't be taken.

        Returns:
            The deployments that are new or whose settings changed, and those that are no longer wanted,
            which the caller closes once nothing uses them.

        Raises:
            SpancatDaemonError, OSError: with `hold`, a folder could not be taken.
        """
        fresh = {
            target.deploy: self._prospect(target, min_free_bytes)
            for target in targets
            if target.deploy not in self._by_folder
        }
        if hold:
            taken: list[Held] = []
            try:
                for deployment in fresh.values():
                    taken.append(deployment)
                    deployment.hold()
            except BaseException:
                for deployment in taken:
                    deployment.abandon()  # it may have taken up what followed a swap
                    deployment.close()
                raise
        changed = list(fresh.values())
        by_folder: dict[Path, Held] = {}
        for target in targets:
            deployment = self._by_folder.get(target.deploy) or fresh[target.deploy]
            if deployment.target != target or deployment.min_free_bytes != min_free_bytes:
                deployment.retarget(target, min_free_bytes=min_free_bytes)
                changed.append(deployment)
            by_folder[target.deploy] = deployment
        dropped = [held for folder, held in self._by_folder.items() if folder not in by_folder]
        self._by_folder = by_folder
        return changed, dropped


def _deployment(held: Held | None) -> Deployment | None:
    return held.open() if isinstance(held, Prospect) else held


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
