"""``spancat-daemon status``: the daemon, its rules and what is live."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from spancat_daemon.cli.moments import age_text, local_text
from spancat_daemon.cli.output import data, print_json, say, table
from spancat_daemon.cli.scope import JsonOption, scope
from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Configuration

_TIMEOUT_S = 10.0


def command(context: typer.Context, json: JsonOption = False) -> None:
    """The daemon, its rules, what is live.

    Also the last success and failure of each rule, and when its next schedule is.

    Without a daemon: what the deployment folders say, and exit code 3; exit code 1 if it does not answer.
    """
    from spancat_daemon.daemon.client import ControlClient  # noqa: PLC0415  # only here

    configuration = scope(context).configuration
    absent: SpancatDaemonError | None = None
    try:
        status = ControlClient(configuration.daemon.control_socket, timeout_s=_TIMEOUT_S).call(
            "GET", "/v1/status"
        )
    except SpancatDaemonError as error:  # none runs, or it does not answer this user, or not in time
        absent = error
        status = {"daemon": None, "rules": _rules(configuration)}
    status["rules"].sort(key=_place_in(configuration))
    for rule in status["rules"]:
        rule.update(_from_disk(Path(rule["deploy"])))
    if json:
        print_json(status)
    else:
        _show(status, now=datetime.now(UTC))
    if absent is not None:
        say(str(absent))
        raise typer.Exit(absent.exit_code)


def _rules(configuration: Configuration) -> list[dict[str, Any]]:
    """What a daemon would say of each rule if it had just started."""
    from spancat_daemon.config.expand import targets  # noqa: PLC0415  # only without a daemon

    return [_idle(target) for target in targets(configuration)]


def _place_in(configuration: Configuration) -> Callable[[dict[str, Any]], tuple[int, str]]:
    """Puts rules in the order of the configuration, the matches of one in the order of their names."""
    order = {watch.name: place for place, watch in enumerate(configuration.watch)}
    return lambda rule: (order.get(rule["rule"].partition("/")[0], len(order)), rule["rule"])


def _idle(target: Target) -> dict[str, Any]:
    return {
        "rule": target.rule,
        "source": str(target.source),
        "deploy": str(target.deploy),
        "live": None,
        "state": None,
        "last_success": None,
        "last_failure": None,
        "last_reason": "",
        "failures": 0,
        "next_run": None,
    }


def _from_disk(deploy: Path) -> dict[str, Any]:
    """What is live, since when, and how many releases there are; with the reason if that can't be told."""
    from spancat_daemon.release.folder import DeploymentFolder  # noqa: PLC0415  # only where a folder is read
    from spancat_daemon.release.history import History  # noqa: PLC0415  # as above

    folder = DeploymentFolder(deploy)
    try:
        live = folder.live()
        releases = len(folder.ids())
        change = History.last_change(folder.history_path)
        since, went_back = (change.time, _went_back(change.data)) if change is not None else (None, "")
    except (OSError, SpancatDaemonError) as error:
        where = getattr(error, "filename", None)
        problem = f"{where}: {error.strerror}" if isinstance(error, OSError) and where else str(error)
        return {"live": None, "live_since": None, "releases": 0, "went_back": "", "problem": problem}
    return {
        "live": live.id if live else None,
        "live_since": since if live else None,
        "releases": releases,
        "went_back": went_back if live else "",
        "problem": None,
    }


def _went_back(change: Mapping[str, Any]) -> str:
    """From which release, and why, if this swap went back by itself; empty if not."""
    if change.get("trigger") not in {"rollback", "recovery"} or not change.get("reason"):
        return ""
    return f"went back by itself from {change.get('previous_release')}: {change['reason']}"


def _show(status: dict[str, Any], *, now: datetime) -> None:
    daemon = status["daemon"]
    if daemon:
        well = f"NOT WELL: {daemon['unwell']}" if daemon["unwell"] else "well"
        up = age_text(datetime.fromisoformat(daemon["started_at"]), now)
        data(f"daemon {daemon['version']}, pid {daemon['pid']}, up {up}, {well}")
        data(f"configuration {daemon['configuration']}")
        if daemon["log_lines_dropped"]:
            data(f"{daemon['log_lines_dropped']} log lines are lost: a full disk, or nobody reads them")
    if not status["rules"]:
        say("no checkpoint is there yet that a source with wildcards matches")
        return
    table(
        (
            "rule",
            "live",
            ">for",
            ">releases",
            "state",
            ">succeeded",
            ">failed",
            "next",
        ),
        [
            (
                rule["rule"],
                rule["live"] or ("unknown" if rule["problem"] else "nothing"),
                _age(rule["live_since"], now),
                "?" if rule["problem"] else str(rule["releases"]),
                rule["state"] or "",
                _ago(rule["last_success"], now),
                _ago(rule["last_failure"], now),
                local_text(datetime.fromisoformat(rule["next_run"])) if rule["next_run"] else "",
            )
            for rule in status["rules"]
        ],
        spare=("releases", "for", "succeeded"),
    )
    for rule in status["rules"]:
        for problem in filter(None, (rule["problem"], rule["went_back"], rule["last_reason"])):
            data(f"{rule['rule']}: {problem}")


def _ago(time: str | None, now: datetime) -> str:
    return f"{_age(time, now)} ago" if time else ""


def _age(time: str | None, now: datetime) -> str:
    return age_text(datetime.fromisoformat(time), now) if time else ""
