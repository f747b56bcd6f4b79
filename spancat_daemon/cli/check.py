"""``spancat-daemon check``: the configuration and the machine, before anything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from spancat_daemon.cli.output import data, print_json, say
from spancat_daemon.cli.scope import JsonOption, scope
from spancat_daemon.errors import ExitCode


def command(
    context: typer.Context,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print the JSON schema of daemon.toml, for editors, and check nothing."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check the configuration and the machine.

    Paths, permissions, mounts, swap kind, watch limits, free space.

    Run it as the user that the daemon runs as. Exit code 4: there are warnings or errors.
    """
    if schema:
        from spancat_daemon.config.schema import json_schema  # noqa: PLC0415  # only here

        print_json(json_schema())
        return
    from spancat_daemon.cli.machine import inspect  # noqa: PLC0415  # brings the configuration's model

    configuration = scope(context).configuration
    findings = list(inspect(configuration))
    found = sum(finding.level != "ok" for finding in findings)
    if json:
        print_json([finding.as_json() for finding in findings])
    else:
        width = max(len(finding.about) for finding in findings)
        for finding in findings:
            hint = f"; {finding.hint}" if finding.hint else ""
            data(f"{finding.level:7}  {finding.about.ljust(width)}  {finding.text}{hint}")
        say(f"{configuration.path}: {f'{found} to look at' if found else 'all well'}")
    if found:
        raise typer.Exit(ExitCode.FINDINGS)
