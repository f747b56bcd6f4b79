"""The commands, put together into one program."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from spancat_daemon import __version__
from spancat_daemon.cli.scope import Scope

_MODULES: Final = {
    "run": "run",
    "check": "check",
    "snapshot": "snapshot",
    "list": "listing",
    "show": "show",
    "status": "status",
    "promote": "promote",
    "rollback": "rollback",
    "pin": "pin",
    "unpin": "pin",
    "prune": "prune",
    "history": "history",
    "verify": "verify",
    "reload": "reload",
    "logs": "log",
    "demo": "demo",
}
"""Which module of this package each command lies in: its function `command`, or one of the command's name."""

_PLAIN: Final[dict[str, Any]] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # plain help: rich would double the time that --help takes
}


class Commands(TyperGroup):
    """The group of all commands; ends quietly where nobody reads the output any more."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Imported()

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Typer would turn it into a failure, indistinguishable from a real one
            raise _ReaderGone from error


class _Imported(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is asked for, as one start of the program needs one."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = dict.fromkeys(_MODULES)

    def __getitem__(self, name: str) -> Any:
        if self._known[name] is None:
            module = importlib.import_module(f"spancat_daemon.cli.{_MODULES[name]}")
            alone = typer.Typer(**_PLAIN)
            alone.command(name)(getattr(module, name, None) or module.command)
            self._known[name] = typer.main.get_command(alone)
        return self._known[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._known[name] = command

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class _ReaderGone(BrokenPipeError):  # noqa: N818  # nobody's error
    """A broken pipe that Typer, which looks at the error number, lets through."""


def build() -> typer.Typer:
    """Returns the program."""
    return typer.Typer(
        cls=Commands,
        callback=_options,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        **_PLAIN,
    )


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
