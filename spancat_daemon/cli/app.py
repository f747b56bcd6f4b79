"""The commands, put together into one program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from spancat_daemon import __version__
from spancat_daemon.cli import (
    check,
    demo,
    history,
    listing,
    log,
    pin,
    promote,
    prune,
    reload,
    rollback,
    run,
    show,
    snapshot,
    status,
    verify,
)
from spancat_daemon.cli.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable


class Commands(TyperGroup):
    """The group of all commands; ends quietly where nobody reads the output any more."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Typer would turn it into a failure, indistinguishable from a real one
            raise _ReaderGone from error


class _ReaderGone(BrokenPipeError):  # noqa: N818  # nobody's error
    """A broken pipe that Typer, which looks at the error number, lets through."""


def build() -> typer.Typer:
    """Returns the program."""
    app = typer.Typer(
        cls=Commands,
        callback=_options,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich would double the time that --help takes
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    commands: dict[str, Callable[..., None]] = {
        "run": run.command,
        "check": check.command,
        "snapshot": snapshot.command,
        "list": listing.command,
        "show": show.command,
        "status": status.command,
        "promote": promote.command,
        "rollback": rollback.command,
        "pin": pin.pin,
        "unpin": pin.unpin,
        "prune": prune.command,
        "history": history.command,
        "verify": verify.command,
        "reload": reload.command,
        "logs": log.command,
        "demo": demo.command,
    }
    for name, command in commands.items():
        app.command(name)(command)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spancat-daemon {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The configuration. Without it: $SPANCAT_DAEMON_CONFIG, ./daemon.toml, "
            "/etc/spancat-daemon/daemon.toml, the first that is there.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  # its callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Takes spaCy span categorizers out of running trainings into production, whole and atomically.

    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no daemon answers, 4 findings.
    """
    context.obj = Scope(config)
