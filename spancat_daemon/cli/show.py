"""``spancat-daemon show``: the manifest of a release, or of a rejected snapshot."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer  # noqa: TC002  # Typer reads the annotations

from spancat_daemon.cli.moments import local_text
from spancat_daemon.cli.output import data, table
from spancat_daemon.cli.scope import JsonOption, ReleaseArgument, RuleArgument, scope
from spancat_daemon.cli.verdict import facts, show_gates
from spancat_daemon.observe.render import size

if TYPE_CHECKING:
    from spancat_daemon.release.folder import DeploymentFolder, Release


def command(
    context: typer.Context, rule: RuleArgument, release: ReleaseArgument, json: JsonOption = False
) -> None:
    """What a release is, where it came from, and how it was verified.

    Of a rejected snapshot too, by its id or number. --json prints its release.json as it is.
    """
    folder = scope(context).folder(rule)
    found = _find(folder, release)
    if json:
        sys.stdout.flush()
        sys.stdout.buffer.write((found.path / "release.json").read_bytes())
        return
    said = _facts(found, rejected=found.path.parent == folder.rejected_path)
    width = max(len(name) for name, _ in said)
    for name, text in said:
        data(f"{name.ljust(width)}  {text}".rstrip())
    data()
    if show_gates(found.manifest.verification):
        data()
    table(
        ("file", ">bytes", "sha256"),
        [(path, str(digest.bytes), digest.sha256) for path, digest in sorted(found.manifest.files.items())],
    )


def _find(folder: DeploymentFolder, name: str) -> Release:
    """The release of that name, else the rejected snapshot."""
    from spancat_daemon.release.folder import NoSuchRelease  # noqa: PLC0415  # only where a folder is read
    from spancat_daemon.release.rejects import find_rejected  # noqa: PLC0415  # as above

    try:
        return folder.find(name)
    except NoSuchRelease as error:
        if any(release.id.startswith(name) for release in folder.releases()):
            raise  # it fits several of them
        try:
            return find_rejected(folder, name)
        except NoSuchRelease:
            raise error from None


def _facts(release: Release, *, rejected: bool) -> list[tuple[str, str]]:
    manifest = release.manifest
    state = " (rejected)" if rejected else " (live)" if release.live else ""
    return [
        ("snapshot" if rejected else "release", f"{manifest.id}{state}"),
        ("path", str(release.path)),
        ("rule", manifest.rule),
        ("created at", local_text(datetime.fromisoformat(manifest.created_at))),
        ("trigger", f"{manifest.trigger}{', forced' if manifest.forced else ''}"),
        ("content", f"{manifest.content_sha256}{'' if manifest.changed else ' (as the one before it)'}"),
        ("model.bin", manifest.model_sha256),
        ("size", size(manifest.content_bytes)),
        ("previous", manifest.previous or "none"),
        ("source", manifest.source),
        ("contents", manifest.contents),
        ("component", f"{manifest.component} ({manifest.factory})"),
        ("labels", ", ".join(manifest.labels)),
        ("spans key", manifest.spans_key),
        ("threshold", "none" if manifest.threshold is None else f"{manifest.threshold:g}"),
        ("language", manifest.lang),
        ("pipeline", ", ".join(manifest.pipeline)),
        ("spaCy", manifest.spacy_version),
        ("metrics", _metrics(manifest.metrics, stale=manifest.metrics_may_be_stale)),
        *facts(manifest.verification, manifest.verifier),
    ]


def _metrics(metrics: Any, *, stale: bool) -> str:
    numbers = [
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return (", ".join(numbers) or "none") + (" (may be those of an earlier state)" if stale else "")
