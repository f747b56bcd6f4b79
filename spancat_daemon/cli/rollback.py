"""``spancat-daemon rollback``: an earlier release, live again."""

from __future__ import annotations

from typing import Annotated

import typer

from spancat_daemon.cli.acting import act
from spancat_daemon.cli.output import data, print_json, say
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope


def command(
    context: typer.Context,
    rule: RuleArgument,
    release: Annotated[
        str | None,
        typer.Argument(
            metavar="RELEASE",
            help="Which: id, start of it, number, or @2. Without it, the one that was live before.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make the previous release live again, or a named one.

    Prints its id. The release it leaves is not promoted again unless by force.
    """
    chosen = scope(context)
    live = chosen.folder(rule).live() if release is None else None
    leaving = live.id if live is not None else None  # a snapshot under way may change that before we come in
    answer = act(
        chosen,
        "rollback",
        rule,
        {"release": release, "leaving": leaving},
        here=lambda deployment: deployment.rollback(release, leaving=leaving),
    )
    if json:
        print_json(answer)
        return
    data(answer["release"])
    if answer.get("previous_release"):
        say(f"{answer['previous_release']} is no longer live")
