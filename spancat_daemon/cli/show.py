"""``spancat-daemon show``: the manifest of a release."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer  # noqa: TC002  # Typer reads the annotations

from spancat_daemon.cli.moments import local_text
from spancat_daemon.cli.output import data, table
from spancat_daemon.cli.scope import JsonOption, ReleaseArgument, RuleArgument, scope
from spancat_daemon.observe.render import size

if TYPE_CHECKING:
    from spancat_daemon.release.folder import Release


def command(
    context: typer.Context, rule: RuleArgument, release: ReleaseArgument, json: JsonOption = False
) -> None:
    """What a release is and where it came from. --json prints its release.json as it is."""
    found = scope(context).folder(rule).find(release)
    if json:
        sys.stdout.flush()
        sys.stdout.buffer.write((found.path / "release.json").read_bytes())
        return
    facts = _facts(found)
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        data(f"{name.ljust(width)}  {text}")
    data()
    table(
        ("file", ">bytes", "sha256"),
        [(path, str(digest.bytes), digest.sha256) for path, digest in sorted(found.manifest.files.items())],
    )


def _facts(release: Release) -> list[tuple[str, str]]:
    manifest = release.manifest
    return [
        ("release", f"{manifest.id}{' (live)' if release.live else ''}"),
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
        ("verified", _verdict(manifest.verification, manifest.verifier)),
        ("metrics", _metrics(manifest.metrics, stale=manifest.metrics_may_be_stale)),
    ]


def _verdict(verification: Any, verifier: Any) -> str:
    """What was looked at before it went live, and by what."""
    if not verification:
        return "no"
    verdict = "passed" if verification.get("passed") is True else "NOT passed"
    rest = {name: value for name, value in verification.items() if name not in {"level", "passed"}}
    about = ", ".join(f"{name} {value}" for name, value in {**rest, **(verifier or {})}.items())
    return " ".join(
        filter(None, (str(verification.get("level", "")), verdict, f"({about})" if about else ""))
    )


def _metrics(metrics: Any, *, stale: bool) -> str:
    numbers = [
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return (", ".join(numbers) or "none") + (" (may be those of an earlier state)" if stale else "")
