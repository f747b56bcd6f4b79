"""What a command works on: the configuration, and the targets and folders that its arguments name."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spancat_daemon.config.unplugged import without_plugins

if TYPE_CHECKING:
    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Configuration
    from spancat_daemon.release.folder import DeploymentFolder

RuleArgument = Annotated[
    str,
    typer.Argument(
        metavar="RULE", help="Name of a rule; for a rule with wildcards NAME/MATCH, as in products/run-7."
    ),
]
ReleaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE",
        help="A release: its id or the start of it, its number, or @1 for the one before the live one.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Scope:
    """What ``-c FILE`` names, read when a command first asks for it."""

    def __init__(self, config: str | None) -> None:
        """Remembers the name of the file; None: the usual places."""
        self.path = Path(config) if config is not None else None

    @cached_property
    def configuration(self) -> Configuration:
        """The configuration.

        Raises:
            ConfigurationError: with everything that is wrong with it.
        """
        with without_plugins():
            from spancat_daemon.config.load import load  # noqa: PLC0415  # brings pydantic

        return load(self.path)

    def target(self, rule: str) -> Target:
        """Returns the source and the deployment folder of a rule.

        Raises:
            UsageError: there is no such rule; names the nearest.
        """
        from spancat_daemon.config.expand import find_target  # noqa: PLC0415  # as above

        return find_target(self.configuration, rule)

    def folder(self, rule: str) -> DeploymentFolder:
        """Returns the deployment folder of a rule, for reading.

        Raises:
            UsageError: there is no such rule.
        """
        from spancat_daemon.release.folder import DeploymentFolder  # noqa: PLC0415  # as above

        return DeploymentFolder(self.target(rule).deploy)


def scope(context: typer.Context) -> Scope:
    """Returns what the program's own options chose."""
    found = context.obj
    if not isinstance(found, Scope):  # pragma: no cover  # the callback of the program always sets it
        raise TypeError(found)
    return found
