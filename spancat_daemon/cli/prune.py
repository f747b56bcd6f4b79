"""``spancat-daemon prune``: retention, now."""

from __future__ import annotations

from typing import Annotated

import typer

from spancat_daemon.cli.acting import act
from spancat_daemon.cli.output import print_json, say, table
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope


def command(
    context: typer.Context,
    rule: RuleArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and why the rest stays.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Apply retention now. Shows each release, and why it stays."""
    verdicts = act(
        scope(context),
        "prune",
        rule,
        {"dry_run": dry_run},
        here=lambda deployment: deployment.prune(dry_run=dry_run),
    )
    if json:
        print_json(verdicts)
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
