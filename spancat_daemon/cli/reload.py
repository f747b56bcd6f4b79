"""``spancat-daemon reload``: a new configuration without a gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from spancat_daemon.cli.output import print_json, say
from spancat_daemon.cli.scope import JsonOption, scope
from spancat_daemon.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.cli.scope import Scope


def command(context: typer.Context, json: JsonOption = False) -> None:
    """Give the daemon its new configuration. A bad one is refused, and the old goes on."""
    from spancat_daemon.daemon.client import ControlClient  # noqa: PLC0415  # only here

    client = ControlClient(_socket(scope(context)))
    try:
        answer = client.call("POST", "/v1/reload", {})
    except UsageError as error:
        say(f"{error}\nThe daemon refused it and goes on with the configuration that it has.")
        raise typer.Exit(error.exit_code) from error
    if json:
        print_json(answer)
    else:
        say("the new configuration is in force")


def _socket(chosen: Scope) -> Path:
    """Where the daemon listens; also from a configuration with mistakes, which the daemon then refuses."""
    from spancat_daemon.config.load import control_socket  # noqa: PLC0415  # brings pydantic
    from spancat_daemon.config.problems import ConfigurationError  # noqa: PLC0415  # as above

    try:
        return chosen.configuration.daemon.control_socket
    except ConfigurationError:
        socket = control_socket(chosen.path)
        if socket is None or not socket.exists():
            raise
        return socket
