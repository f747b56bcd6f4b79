"""``spancat-daemon logs``: the structured log for human eyes."""

from __future__ import annotations

from typing import Annotated

import typer

from spancat_daemon.cli.scope import scope


def command(
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="Which log; - is standard input. Without it, [log] file of daemon.toml."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is logged from now on.")
    ] = False,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", metavar="R", help="Only this rule; may be given again.")
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event", metavar="E", help="Only this event, as in release.overwrite; may be given again."
        ),
    ] = None,
    lines: Annotated[
        int,
        typer.Option("--lines", "-n", metavar="N", min=0, help="How many of the last lines to begin with."),
    ] = 50,
    json: Annotated[
        bool, typer.Option("--json", help="Print the lines as they are, one JSON object each.")
    ] = False,
) -> None:
    """What happened, from the log file for people."""
    from spancat_daemon.cli.logs import show_logs  # noqa: PLC0415  # only here

    show_logs(
        scope(context).configuration if file is None else None,
        follow=follow,
        rules=rule or [],
        events=event or [],
        as_json=json,
        lines=lines,
        source=file,
    )
