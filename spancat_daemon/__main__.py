"""Start of the program, as ``spancat-daemon`` and as ``python -m spancat_daemon``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
INTERRUPTED = 130  # likewise of SIGINT


def main() -> None:
    """Runs the command line; exits with a code of :class:`spancat_daemon.errors.ExitCode`.

    Every :class:`~spancat_daemon.errors.SpancatDaemonError` becomes one message on standard error. A reader
    that goes away (``spancat-daemon list products | head -1``) and Ctrl-C end the program without one.
    """
    from spancat_daemon.cli.output import say  # noqa: PLC0415  # Ctrl-C during the imports is quiet too
    from spancat_daemon.errors import ExitCode, SpancatDaemonError  # noqa: PLC0415  # as above

    _open_closed_streams()
    try:
        try:
            _carry_out(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except SpancatDaemonError as error:
        say(str(error), error=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _forget_output()
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        hint = "; run it as the daemon's user, or root" if isinstance(error, PermissionError) else ""
        say(f"{where}{error.strerror or error}{hint}", error=True)
        sys.exit(ExitCode.FAILED)


def _carry_out(arguments: list[str]) -> None:
    """The command of the arguments; the service without the 2 MB that understand any other."""
    match arguments:
        case ["run"] | ["-c" | "--config", _, "run"]:
            from spancat_daemon.daemon.sparing import serve  # noqa: PLC0415  # the whole daemon

            sys.exit(serve(Path(arguments[1]) if len(arguments) > 1 else None))
        case _:
            from spancat_daemon.cli.app import build  # noqa: PLC0415  # all that understands a command line

            build()(prog_name="spancat-daemon")


def _open_closed_streams() -> None:
    """Opens what the caller closed (``>&-``) on nothing, before a file of ours gets its descriptor."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _forget_output() -> None:
    """Keeps the interpreter from flushing into the broken pipe, and complaining, as it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
