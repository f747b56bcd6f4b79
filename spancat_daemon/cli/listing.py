"""``spancat-daemon list``: the releases of a rule, or the snapshots that were rejected, newest first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from spancat_daemon.cli.moments import age_text
from spancat_daemon.cli.output import print_json, say, table
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope
from spancat_daemon.observe.render import size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from spancat_daemon.config.model import Keep
    from spancat_daemon.release.folder import DeploymentFolder, Release, Survey
    from spancat_daemon.release.retention import Verdict

_SHOWN: Final = 50
"""Releases that a table has if nobody asks for all: as many as are looked at. JSON always has all."""


def command(
    context: typer.Context,
    rule: RuleArgument,
    rejected: Annotated[
        bool,
        typer.Option("--rejected", help="The snapshots that did not go live and are kept, and why not."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help=f"All of them, not only the newest {_SHOWN}. --json: always all.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """The releases of a rule, and why each is kept. Newest first; * is live."""
    chosen = scope(context)
    target = chosen.target(rule)
    folder = chosen.folder(rule)
    now = datetime.now(UTC)
    if rejected:
        _list_rejected(folder, now, json=json)
        return
    keep = target.watch.keep
    ids = folder.ids()
    newest = frozenset(ids if everything or json else ids[:_SHOWN])
    of_all = len(newest) == len(ids)
    survey = folder.survey() if of_all else folder.survey(only=newest)
    entries = describe(folder, keep, now=now, survey=survey, of_all=of_all)
    if json:
        print_json(entries)
    elif entries:
        metric = target.watch.keep.metric
        table(
            (
                "",
                "release",
                ">age",
                "trigger",
                ">size",
                ">own",
                f">{metric}",
                "kept because",
            ),
            [_row(entry, metric, now) for entry in entries],
            spare=("own", "trigger"),
        )
    else:
        say(f"no releases yet in {folder.path}")
    if not of_all:
        _tell_of_older(ids, newest, survey.current.id, rule)
    for path, reason in survey.broken:
        say(reason if str(path) in reason else f"{path}: {reason}")
    _tell_of_rejected(folder, target.rule, live=survey.current.id)


def _tell_of_older(ids: Sequence[str], newest: AbstractSet[str], live: str | None, rule: str) -> None:
    older = len(ids) - len(newest)
    where = f"; {live}, which is live, is one of them" if live is not None and live not in newest else ""
    say(f"and {older} older release{'' if older == 1 else 's'}{where}: `list {rule} --all` shows them")


def _list_rejected(folder: DeploymentFolder, now: datetime, *, json: bool) -> None:
    entries = describe_rejected(folder)
    if json:
        print_json(entries)
    elif entries:
        table(
            ("snapshot", ">age", "trigger", ">size", ">own", "rejected because"),
            [
                (
                    entry["id"],
                    age_text(datetime.fromisoformat(entry["created_at"]), now),
                    entry["trigger"],
                    size(entry["bytes"]),
                    size(entry["bytes_unique"]),
                    entry["reason"],
                )
                for entry in entries
            ],
            spare=("own", "trigger", "size"),
        )
    else:
        say(f"no rejected snapshots are kept in {folder.path}")


def _tell_of_rejected(folder: DeploymentFolder, rule: str, *, live: str | None) -> None:
    """Say that training went on and nothing of it went live: nobody would look for that here."""
    from spancat_daemon.release.manifest import parse_release_id  # noqa: PLC0415  # as below
    from spancat_daemon.release.survey import names_in  # noqa: PLC0415  # only where a folder is read

    if not names_in(folder.rejected_path):
        return
    from spancat_daemon.release.rejects import rejected  # noqa: PLC0415  # brings what stages

    newest = (parse_release_id(live) if live else None) or 0
    newer = sum(release.sequence > newest for release in rejected(folder))
    if newer:
        which = f"{newer} {'newer ' if live else ''}snapshot{'' if newer == 1 else 's'}"
        verb = "was" if newer == 1 else "were"
        say(f"{which} {verb} rejected: `list {rule} --rejected` says why")


def describe_rejected(folder: DeploymentFolder) -> list[dict[str, Any]]:
    """The rejected snapshots of a folder as ``list --rejected --json`` prints them, newest first.

    ``gates`` are the figures of all gates, passed or not; ``bytes_unique`` is what letting it go would free.
    """
    from spancat_daemon.release.rejects import rejected  # noqa: PLC0415  # only where a folder is read

    return [
        {
            "id": release.id,
            "sequence": release.sequence,
            "created_at": release.manifest.created_at,
            "trigger": release.manifest.trigger,
            "content_sha256": release.manifest.content_sha256,
            "bytes": release.manifest.content_bytes,
            "bytes_unique": _unshared(release.path),
            "reason": str(release.manifest.verification.get("reason", "")),
            "gates": release.manifest.verification.get("gates", []),
            "path": release.path,
        }
        for release in rejected(folder)
    ]


def describe(
    folder: DeploymentFolder, keep: Keep, *, now: datetime, survey: Survey[Release], of_all: bool = True
) -> list[dict[str, Any]]:
    """The releases of a folder as ``list --json`` prints them, newest first.

    ``bytes`` is the size of a release's files (``model.bin`` is one of them by another name, and not counted
    twice), ``bytes_unique`` what removing it would free: of files that no other release shares, its manifest
    among them. ``kept_because`` is empty for a release that the next pruning removes.

    `survey` may hold the newest releases alone, not be `of_all`: what retention says of one does not
    depend on older ones, but for ``best``, which then looks at all.
    """
    from spancat_daemon.release.lease import is_leased  # noqa: PLC0415  # as above

    pinned = folder.pins()
    return [
        _entry(
            verdict.release,
            pinned=verdict.release.id in pinned,
            leased=is_leased(verdict.release.path),
            kept_because=verdict.kept_because,
        )
        for verdict in _verdicts(folder, keep, now, survey, of_all=of_all)
    ]


def _verdicts(
    folder: DeploymentFolder, keep: Keep, now: datetime, survey: Survey[Release], *, of_all: bool
) -> list[Verdict[Release]]:
    from spancat_daemon.release.retention import Verdict  # noqa: PLC0415  # as above
    from spancat_daemon.release.verdicts import verdicts_on  # noqa: PLC0415  # only where a folder is read

    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    newest = survey.releases[0] if survey.releases else None
    if of_all or not (keep.best or (newest and newest.created_at > stamp)):
        return verdicts_on(folder, keep, now, survey=survey)
    reasons = {verdict.release.id: verdict.kept_because for verdict in verdicts_on(folder, keep, now)}
    return [Verdict(release, reasons[release.id]) for release in survey.releases if release.id in reasons]


def _entry(release: Release, *, pinned: bool, leased: bool, kept_because: tuple[str, ...]) -> dict[str, Any]:
    manifest = release.manifest
    return {
        "id": release.id,
        "sequence": release.sequence,
        "live": release.live,
        "created_at": manifest.created_at,
        "trigger": manifest.trigger,
        "forced": manifest.forced,
        "changed": manifest.changed,
        "content_sha256": manifest.content_sha256,
        "model_sha256": manifest.model_sha256,
        "bytes": manifest.content_bytes,
        "bytes_unique": _unshared(release.path),
        "labels": list(manifest.labels),
        "metrics": dict(manifest.metrics),
        "verified": manifest.verification.get("passed") is True,
        "pinned": pinned,
        "leased": leased,
        "kept_because": list(kept_because),
        "path": release.path,
    }


def _unshared(path: Path) -> int:
    from spancat_daemon.release.folder import unique_bytes  # noqa: PLC0415  # only where a folder is read

    try:
        return unique_bytes(path)
    except FileNotFoundError:  # pruned at this moment
        return 0


def _row(entry: dict[str, Any], metric: str, now: datetime) -> tuple[str, ...]:
    created = datetime.fromisoformat(entry["created_at"])
    score = entry["metrics"].get(metric)
    return (
        "*" if entry["live"] else "",
        entry["id"],
        age_text(created, now),
        f"{entry['trigger']}{' forced' if entry['forced'] else ''}",
        size(entry["bytes"]),
        size(entry["bytes_unique"]),
        f"{score:.3f}" if isinstance(score, (int, float)) else "",
        ", ".join(entry["kept_because"]) or "nothing: goes next",
    )
