"""``spancat-daemon verify``: whether releases are still what they were, and load."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spancat_daemon.cli.output import data, print_json, say, table
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope
from spancat_daemon.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spancat_daemon.release.folder import DeploymentFolder, Release


def command(
    context: typer.Context,
    rule: RuleArgument,
    release: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RELEASE", help="Which: id, start of it, number, or @1. Without it, the live one."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the rule's releases.")] = False,
    json: JsonOption = False,
) -> None:
    """Check the digests of releases, and that they load.

    They load with spaCy, in a process of its own.

    Exit code 4: something is not as the manifest says, or does not load.
    """
    folder = scope(context).folder(rule)
    results = [_verify(found) for found in _chosen(folder, release or [], everything=everything)]
    if everything:
        results += [_broken(str(path.name), reason) for path, reason in folder.broken()]
    bad = [result for result in results if not result["ok"]]
    if json:
        print_json(results)
    elif results:
        table(
            ("release", "digests", "loads", "with"),
            [
                (
                    result["id"],
                    _verdict(not result["digests"]),
                    _loads(result["load"]),
                    _versions(result["load"]),
                )
                for result in results
            ],
        )
        for result in bad:
            for complaint in complaints(result):
                data(f"{result['id']}: {complaint}")
    say(_summary(results, bad, folder))
    if bad:
        raise typer.Exit(ExitCode.FINDINGS)


def _summary(
    results: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]], folder: DeploymentFolder
) -> str:
    if not results:
        return f"no releases yet in {folder.path}"
    if not bad:
        return f"{len(results)} verified, all as they should be"
    live = folder.live()
    is_live = live is not None and any(result["id"] == live.id for result in bad)
    hint = "; the live one is among them: `rollback` makes another live" if is_live else ""
    return f"{len(bad)} of {len(results)} with findings{hint}"


def _chosen(folder: DeploymentFolder, names: Sequence[str], *, everything: bool) -> list[Release]:
    if everything and names:
        raise UsageError("RELEASE and --all don't go together", hint="use one of them")
    if everything:
        return folder.releases()
    if names:
        return list({found.id: found for found in map(folder.find, names)}.values())
    live = folder.live()
    if live is None:
        raise UsageError("nothing is live", where=str(folder.path), hint="`list` shows what there is")
    return [live]


def _verify(release: Release) -> dict[str, Any]:
    from spancat_daemon.release import lease  # noqa: PLC0415  # only here
    from spancat_daemon.verify.child import load_release  # noqa: PLC0415  # as above
    from spancat_daemon.verify.digests import digests  # noqa: PLC0415  # as above

    manifest = release.manifest
    with lease.take(release.path):  # a daemon does not prune it meanwhile
        findings = digests(release.path, manifest)
        load = load_release(
            release.path, manifest.component, manifest.model_sha256, manifest.labels, manifest.spans_key
        )
    return {
        "id": release.id,
        "ok": load.ok and not findings,
        "digests": [asdict(finding) for finding in findings],
        "load": asdict(load),
    }


def _broken(name: str, reason: str) -> dict[str, Any]:
    return {
        "id": name,
        "ok": False,
        "digests": [{"path": "", "kind": "manifest", "reason": reason}],
        "load": None,
    }


def complaints(result: dict[str, Any]) -> list[str]:
    """What is wrong with one release, a sentence each."""
    found = [
        f"{finding['path']}: {finding['reason']}" if finding["path"] else finding["reason"]
        for finding in result["digests"]
    ]
    load = result["load"]
    return found if load is None or load["ok"] else [*found, f"does not load: {load['reason']}"]


def _verdict(ok: bool) -> str:
    return "ok" if ok else "WRONG"


def _loads(load: dict[str, Any] | None) -> str:
    if load is None:
        return "not tried"
    return f"in {load['load_s']:.2f} s" if load["ok"] else "NO"


def _versions(load: dict[str, Any] | None) -> str:
    return f"spaCy {load['spacy']}, Python {load['python']}" if load and load["spacy"] else ""
