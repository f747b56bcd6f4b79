"""``spancat-daemon run``: the service."""

from __future__ import annotations

import typer

from spancat_daemon.cli.scope import scope


def command(context: typer.Context) -> None:
    """The service: watch, publish, prune. SIGTERM or Ctrl-C ends it."""
    from spancat_daemon.daemon.sparing import serve  # noqa: PLC0415  # the whole daemon

    raise typer.Exit(serve(scope(context).path))
