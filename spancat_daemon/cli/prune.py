"""``spancat-daemon prune``: retention, now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spancat_daemon.cli.acting import act
from spancat_daemon.cli.output import print_json, say, table
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope

if TYPE_CHECKING:
    from spancat_daemon.cli.scope import Scope


def command(
    context: typer.Context,
    rule: RuleArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and why the rest stays.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Apply retention now. Shows each release, and why it stays."""
    chosen = scope(context)
    if dry_run:
        verdicts = _planned(chosen, rule)
    else:
        verdicts = act(chosen, "prune", rule, {}, here=lambda deployment: deployment.keeping.prune())
    if json:
        print_json(verdicts)
        return
    if not verdicts:
        say(f"no releases yet in {chosen.target(rule).deploy}")
        return
    gone = "would go" if dry_run else "removed"
    table(
        ("release", "verdict", "because"),
        [
            (
                verdict["id"],
                "kept" if verdict["kept_because"] else gone if verdict["pruned"] or dry_run else "in use",
                ", ".join(verdict["kept_because"]) or "nothing in [watch.keep] wants it",
            )
            for verdict in verdicts
        ],
    )
    going = sum(not verdict["kept_because"] for verdict in verdicts)
    say(f"{going} of {len(verdicts)} {'would go' if dry_run else 'removed'}")


def _planned(chosen: Scope, rule: str) -> list[dict[str, Any]]:
    """What retention would do; only reads, so that it needs neither the daemon nor a right to write."""
    from spancat_daemon.release.verdicts import verdicts_on  # noqa: PLC0415  # only where a folder is read

    keep = chosen.target(rule).watch.keep
    return [
        {
            "id": verdict.release.id,
            "kept_because": list(verdict.kept_because),
            "pruned": not verdict.kept_because,
        }
        for verdict in verdicts_on(chosen.folder(rule), keep, datetime.now(UTC))
    ]
