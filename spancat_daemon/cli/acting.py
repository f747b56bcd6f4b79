"""Commands that change a deployment folder: through the daemon, which holds it; if none runs, here."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spancat_daemon.errors import NoDaemon, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from spancat_daemon.cli.scope import Scope
    from spancat_daemon.deploying.deployment import Deployment


def act(
    chosen: Scope, verb: str, rule: str, details: Mapping[str, Any], *, here: Callable[[Deployment], Any]
) -> Any:
    """Asks the daemon to do something with a rule's folder; without a daemon, does it.

    Args:
        chosen: what the command works on.
        verb: the last part of the daemon's route, such as ``rollback``.
        rule: the rule's name.
        details: what the daemon has to know besides the rule.
        here: does it with the folder open and locked; returns what the daemon would answer.

    Raises:
        FolderBusy: no daemon answers, but another process holds the folder.
        SpancatDaemonError: it can't be done; says why.
    """
    from spancat_daemon.daemon.client import ControlClient  # noqa: PLC0415  # only for acting commands

    target = chosen.target(rule)
    try:
        return ControlClient(chosen.configuration.daemon.control_socket).call(
            "POST", f"/v1/{verb}", {"rule": target.rule, **details}
        )
    except NoDaemon:
        with _deployment(chosen, rule, verb) as deployment:
            return here(deployment)


@contextmanager
def _deployment(chosen: Scope, rule: str, verb: str) -> Iterator[Deployment]:
    """The folder of a rule, open and locked; what happens is logged to standard error and the log file."""
    import sys  # noqa: PLC0415

    from spancat_daemon.deploying.deployment import Deployment  # noqa: PLC0415  # as above
    from spancat_daemon.deploying.whereabouts import Whereabouts  # noqa: PLC0415
    from spancat_daemon.observe import logs  # noqa: PLC0415
    from spancat_daemon.verify.warm import WarmLoaders  # noqa: PLC0415

    configuration = chosen.configuration
    target = chosen.target(rule)
    for folder in (target.deploy, configuration.daemon.state_dir):
        _refuse_to_take_over(folder, verb)
    # What a person reads beside the command's data; the log file gets JSON whatever this says
    output = logs.configure(configuration.log.model_copy(update={"format": "console"}), stream=sys.stderr)
    try:
        with (
            WarmLoaders(at_most=1) as loaders,
            Deployment(
                target,
                min_free_bytes=configuration.daemon.min_free,
                log=logs.get_logger(),
                loaders=loaders,
                has_logged=output.has_history,
                holder=f"spancat-daemon {verb}",
                whereabouts=Whereabouts(configuration.daemon.state_dir, target.deploy),
            ) as deployment,
        ):
            yield deployment
    finally:
        output.close()


def _refuse_to_take_over(folder: Path, verb: str) -> None:
    from spancat_daemon.deploying.ownership import taken_over_from  # noqa: PLC0415  # as above

    taken = taken_over_from(folder)
    if taken is not None:
        there, name = taken
        raise UsageError(
            f"belongs to {name}, and what root makes in it {name}'s daemon could not use",
            where=str(there),
            hint=f"runuser -u {name} -- spancat-daemon {verb} …, or start the daemon and ask again",
        )
