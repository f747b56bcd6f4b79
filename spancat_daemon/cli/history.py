"""``spancat-daemon history``: what was live when, as the deployment folder itself has recorded it."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spancat_daemon.cli.moments import local_text, parse_moment
from spancat_daemon.cli.output import data, print_json, say, table
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope
from spancat_daemon.errors import ExitCode, SpancatDaemonError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import History, Record


def command(
    context: typer.Context,
    rule: RuleArgument,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="What was live at 2026-11-22T11:30:45Z, '2026-11-22 11:30' (local), or 2h ago.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check the chain of records, and that the last one agrees with the folder."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """What was live when, and why. Newest first. Exit code 4: --verify found something."""
    from spancat_daemon.release.history import History  # noqa: PLC0415  # only where a folder is read

    if at is not None and verify:
        raise UsageError("--at and --verify don't go together", hint="use one of them")
    folder = scope(context).folder(rule)
    history = History.reading(folder.history_path)
    if verify:
        _verify(folder, history, json=json)
    elif at is not None:
        _at(history, parse_moment(at, now=datetime.now(UTC)), json=json)
    else:
        changes = live_changes(history.records())
        if json:
            print_json(changes)
        elif changes:
            table(
                ("", "from", "release", ">record", "because"),
                [_row(change) for change in changes],
            )
        else:
            say(f"nothing was ever live in {folder.path}")


def live_changes(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Each span of time with what was live in it, newest first.

    ``live_until`` is None for what is live now. ``release`` is None where recovery found nothing live. The
    rest is what the history's record says, ``history_seq`` and ``history_sha256`` name it.
    """
    changes = [record for record in records if record.kind in {"commit", "recovered"}]
    ends = [after.time for after in changes[1:]]
    return [
        {
            "live_from": record.time,
            "live_until": until,
            "release": record.data.get("release"),
            "kind": record.kind,
            **record.data,
            "history_seq": record.seq,
            "history_sha256": record.sha256,
        }
        for record, until in zip_longest(changes, ends)
    ][::-1]


def _row(change: dict[str, Any]) -> tuple[str, ...]:
    reason = change.get("trigger") or change["kind"]
    if change.get("forced") and reason not in {"rollback", "recovery"}:
        reason += ", forced"
    if change.get("changed") is False:
        reason += ", same content"
    promoted = change.get("promoted")
    why = promoted.get("reason") if isinstance(promoted, dict) else change.get("reason")
    if why:
        reason += f": {why}"
    return (
        "" if change["live_until"] else "*",
        local_text(datetime.fromisoformat(change["live_from"])),
        change["release"] or "nothing",
        str(change["history_seq"]),
        reason,
    )


def _at(history: History, moment: datetime, *, json: bool) -> None:
    record = history.at(moment)
    if record is None:
        raise SpancatDaemonError(f"nothing was live at {local_text(moment)}", where=str(history.path))
    if json:
        print_json(
            next(change for change in live_changes(history.records()) if change["history_seq"] == record.seq)
        )
    else:
        data(record.data["release"])
        say(f"live from {local_text(datetime.fromisoformat(record.time))}, record {record.seq}")


def _verify(folder: DeploymentFolder, history: History, *, json: bool) -> None:
    findings = [f"line {finding.line}: {finding.detail}" for finding in history.verify()]
    findings += _disagreements(folder, history)
    if json:
        print_json({"records": history.seq, "head": history.sha256, "findings": findings})
    else:
        for finding in findings:
            data(finding)
        if findings:
            say(f"{history.path}: {len(findings)} found")
        elif history.seq == 0:
            say(f"nothing was ever live in {folder.path}, so there are no records")
        else:
            say(f"{history.seq} records, unbroken; the last is {history.sha256}")
    if findings:
        raise typer.Exit(ExitCode.FINDINGS)


def _disagreements(folder: DeploymentFolder, history: History) -> list[str]:
    """What the last commit says against what the folder says."""
    pending = history.pending_intent()
    if pending is not None:
        swap = f"record {pending.seq}: the swap to {pending.data.get('release')}"
        return [
            f"{swap} has no outcome: it is under way, or a crash cut it short and the next start settles it"
        ]
    live = folder.live()
    if (live.id if live else None) != history.live:
        return [
            f"current leads to {live.id if live else 'nothing'}, the history says {history.live or 'nothing'}"
        ]
    return []
