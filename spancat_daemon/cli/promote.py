"""``spancat-daemon promote``: a rejected snapshot, live after all."""

from __future__ import annotations

from typing import Annotated

import typer

from spancat_daemon.cli.acting import act
from spancat_daemon.cli.output import data, print_json, say
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope


def command(
    context: typer.Context,
    rule: RuleArgument,
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A rejected snapshot: its id or the start of it, or its number; see `list --rejected`.",
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Whatever its verification says; it is not verified again.")
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, for the log and for `show`.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Make a rejected snapshot live, if it passes now, by the terms of today, or by force.

    It becomes a release with an id of its own. Prints the id of the release that is live then.
    """
    answer = act(
        scope(context),
        "promote",
        rule,
        {"release": snapshot, "force": force, "reason": reason},
        here=lambda deployment: deployment.promote(snapshot, force=force, reason=reason),
    )
    if json:
        print_json(answer)
        return
    data(answer["release"])
    if answer.get("previous_release"):
        say(f"{answer['previous_release']} is no longer live")
