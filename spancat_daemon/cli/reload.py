"""``spancat-daemon reload``: a new configuration without a gap."""

from __future__ import annotations

import typer  # noqa: TC002  # Typer reads the annotations

from spancat_daemon.cli.output import print_json, say
from spancat_daemon.cli.scope import JsonOption, scope


def command(context: typer.Context, json: JsonOption = False) -> None:
    """Give the daemon its new configuration. A bad one is refused, and the old goes on."""
    from spancat_daemon.daemon.client import ControlClient  # noqa: PLC0415  # only here

    answer = ControlClient(scope(context).configuration.daemon.control_socket).call("POST", "/v1/reload", {})
    if json:
        print_json(answer)
    else:
        say("the new configuration is in force")
