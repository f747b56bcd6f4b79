"""What the triggers have to attend to, given the configuration and the checkpoints it matches now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spancat_daemon.config.expand import glob_root
from spancat_daemon.config.patterns import wildcards
from spancat_daemon.triggers.filesystem import Watched
from spancat_daemon.triggers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Configuration


def watched(configuration: Configuration, wanted: Sequence[Target]) -> list[Watched]:
    """Each checkpoint whose rule acts on change, and each glob, whose matches come and go."""
    globs = [
        Watched(
            key=watch.name,  # its matches' keys hold a "/", so none is the same, whatever they are called
            path=glob_root(watch.source),
            pattern=watch.source,
            poll_s=watch.poll,
            contents=False,
        )
        for watch in configuration.watch
        if wildcards(watch.source)
    ]
    checkpoints = [
        Watched(key=target.rule, path=target.source, pattern=None, poll_s=target.watch.poll)
        for target in wanted
        if target.watch.on_change
    ]
    return globs + checkpoints


def jobs(wanted: Sequence[Target]) -> list[Job]:
    """Each target's schedules."""
    return [Job(target.rule, schedule) for target in wanted for schedule in target.watch.schedule]
