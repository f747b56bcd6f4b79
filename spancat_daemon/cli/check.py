"""``spancat-daemon check``: the configuration and the machine, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spancat_daemon.cli.output import data, print_json, say
from spancat_daemon.cli.scope import JsonOption, scope
from spancat_daemon.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.cli.finding import Finding


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

    Files that it names, paths, permissions, mounts, swap kind, watch limits, free space, the interpreter that
    verifies, the labels that probes and gates ask for, what is told of a swap.

    Run it as the user that the daemon runs as. Exit code 4: there are warnings or errors.
    """
    if schema:
        from spancat_daemon.config.schema import json_schema  # noqa: PLC0415  # only here

        print_json(json_schema())
        return
    configuration, findings = _look(scope(context).path)
    found = sum(finding.level != "ok" for finding in findings)
    if json:
        print_json([finding.as_json() for finding in findings])
    else:
        width = max(len(finding.about) for finding in findings)
        for finding in findings:
            data(f"{finding.level:7}  {finding.about.ljust(width)}  {finding}")
        say(f"{configuration}: {f'{found} to look at' if found else 'all well'}")
    if found:
        raise typer.Exit(ExitCode.FINDINGS)


def _look(path: Path | None) -> tuple[Path, list[Finding]]:
    """The file that is checked, and what was found.

    Raises:
        ConfigurationError: it, or a file that it names, can't be used: `run` would not start with it.
    """
    # all of them bring the configuration's model
    from spancat_daemon.cli.conditions import inspect_conditions  # noqa: PLC0415
    from spancat_daemon.cli.consequences import inspect_consequences  # noqa: PLC0415
    from spancat_daemon.cli.machine import inspect  # noqa: PLC0415
    from spancat_daemon.config.load import load_located  # noqa: PLC0415
    from spancat_daemon.config.problems import ConfigurationError  # noqa: PLC0415
    from spancat_daemon.config.references import problems  # noqa: PLC0415

    located = load_located(path)
    found = problems(located)
    if found:
        raise ConfigurationError(found)
    configuration = located.configuration
    return configuration.path, [
        *inspect(configuration),
        *inspect_conditions(located),
        *inspect_consequences(located),
    ]
