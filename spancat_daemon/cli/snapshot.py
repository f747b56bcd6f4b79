"""``spancat-daemon snapshot``: one checkpoint, now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spancat_daemon.cli.acting import act
from spancat_daemon.cli.output import data, print_json, say
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope
from spancat_daemon.errors import ExitCode

if TYPE_CHECKING:
    from spancat_daemon.deploying.deployment import Deployment

_LIVE_NOW = {"published", "unchanged"}


def command(
    context: typer.Context,
    rule: RuleArgument,
    force: Annotated[
        bool,
        typer.Option("--force", help="Make a new release even if nothing changed, or it was rolled back."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put a checkpoint into production now. Prints the id of the release that is live then."""
    answer = act(
        scope(context),
        "snapshot",
        rule,
        {"force": force},
        here=lambda deployment: _take(deployment, force=force),
    )
    if json:
        print_json({key: answer[key] for key in ("status", "release", "reason")})
    elif answer["status"] in _LIVE_NOW:
        data(answer["release"])
    if answer["status"] == "unchanged":
        say(f"unchanged: {answer['reason']}")
    elif answer["status"] not in _LIVE_NOW:
        say(f"{answer['status']}: {answer['reason']}")
        raise typer.Exit(ExitCode.FAILED)


def _take(deployment: Deployment, *, force: bool) -> dict[str, Any]:
    """What the daemon would do: it gives a trainer that is writing right now the time to finish."""
    from spancat_daemon.daemon.dispatch import MANUAL_PATIENCE_S  # noqa: PLC0415  # only where no daemon runs

    deadline_s = time.monotonic() + MANUAL_PATIENCE_S
    result = deployment.snapshot("manual", force=force)
    while result.status == "unsettled" and time.monotonic() < deadline_s:
        time.sleep(0.1 if result.retry_after_s is None else result.retry_after_s)
        result = deployment.snapshot("manual", force=force)
    return {"status": result.status, "release": result.release, "reason": result.reason}
