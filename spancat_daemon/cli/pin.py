"""``spancat-daemon pin`` and ``unpin``: releases that retention leaves alone."""

from __future__ import annotations

import typer  # noqa: TC002  # Typer reads the annotations

from spancat_daemon.cli.acting import act
from spancat_daemon.cli.output import data
from spancat_daemon.cli.scope import ReleaseArgument, RuleArgument, scope


def pin(context: typer.Context, rule: RuleArgument, release: ReleaseArgument) -> None:
    """Keep a release until it is unpinned. Prints its id."""
    data(
        _id(
            act(
                scope(context),
                "pin",
                rule,
                {"release": release},
                here=lambda deployment: deployment.keeping.pin(release),
            )
        )
    )


def unpin(context: typer.Context, rule: RuleArgument, release: ReleaseArgument) -> None:
    """Give a release back to retention. Prints its id."""
    data(
        _id(
            act(
                scope(context),
                "unpin",
                rule,
                {"release": release},
                here=lambda deployment: deployment.keeping.unpin(release),
            )
        )
    )


def _id(answer: object) -> str:
    return str(answer["release"]) if isinstance(answer, dict) else str(answer)
