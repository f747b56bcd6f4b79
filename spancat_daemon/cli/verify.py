"""``spancat-daemon verify``: whether releases are still what they were, and still work."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from spancat_daemon.cli.output import data, print_json, say, table
from spancat_daemon.cli.scope import JsonOption, RuleArgument, scope
from spancat_daemon.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from spancat_daemon.config.model import Watch
    from spancat_daemon.release.folder import DeploymentFolder, Release
    from spancat_daemon.verify.digests import Sums
    from spancat_daemon.verify.verdict import Verification
    from spancat_daemon.verify.verification import Terms
    from spancat_daemon.verify.warm import WarmLoaders

_NOTHING = "-"


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
    """Check the digests of releases, and that they work.

    Files are read from the disk, not from the system's memory of it. Releases are loaded with spaCy, in a
    process of its own, with the rule's interpreter, limits, probes, gold documents and gates; they are seen
    to load and predict whatever level the rule asks of snapshots. Gates that compare with the live release
    are left out.

    Exit code 4: something is not as the manifest says, or does not work.
    """
    chosen = scope(context)
    folder = chosen.folder(rule)
    releases = _chosen(folder, release or [], everything=everything)
    results = _verify_all(chosen.target(rule).watch, releases)
    if everything:
        live = {folder.current, folder.releases_path / str(folder.current_state().id)}
        results += [_broken(path.name, reason, live=path in live) for path, reason in folder.broken()]
    bad = [result for result in results if not result["ok"]]
    if json:
        print_json(results)
    elif results:
        _show(results)
        for result in bad:
            for complaint in complaints(result):
                data(f"{result['id']}: {complaint}")
    say(_summary(results, bad, folder))
    if bad:
        raise typer.Exit(ExitCode.FINDINGS)


def _summary(
    results: Sequence[Mapping[str, Any]], bad: Sequence[Mapping[str, Any]], folder: DeploymentFolder
) -> str:
    if not results:
        return f"no releases yet in {folder.path}"
    if not bad:
        return f"{len(results)} verified, all as they should be"
    is_live = any(result["live"] for result in bad)
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


def _verify_all(watch: Watch, releases: Sequence[Release]) -> list[dict[str, Any]]:
    from spancat_daemon.verify.verification import terms_of  # noqa: PLC0415  # only here
    from spancat_daemon.verify.warm import WarmLoaders  # noqa: PLC0415  # as above

    if not releases:
        return []
    terms = terms_of(_loading(watch), None)
    sums: Sums = {}
    results = []
    with WarmLoaders(at_most=1) as loaders, _Progress(len(releases)) as progress:
        for release in releases:
            progress.show(release.id)
            results.append(_verify(release, terms, loaders, sums))
    return results


def _verify(release: Release, terms: Terms, loaders: WarmLoaders, sums: Sums) -> dict[str, Any]:
    from spancat_daemon.release import lease  # noqa: PLC0415  # only here
    from spancat_daemon.verify.digests import digests  # noqa: PLC0415  # as above
    from spancat_daemon.verify.verification import examine_release  # noqa: PLC0415  # as above

    with lease.take(release.path):  # a daemon does not prune it meanwhile
        findings = digests(release.path, release.manifest, sums=sums)
        # Without the live one: what is older may well be worse than what replaced it.
        verification = examine_release(terms, release, None, loaders)
    return _result(release, [asdict(finding) for finding in findings], verification)


def _result(
    release: Release, digests: Sequence[Mapping[str, Any]], verification: Verification
) -> dict[str, Any]:
    verdict = verification.verdict
    return {
        "id": release.id,
        "live": release.live,
        "ok": verification.passed and not digests,
        "digests": digests,
        "level": verification.level,
        "reason": verification.reason,
        "load": asdict(verdict) if verdict is not None else None,
        "gates": verification.gates,
    }


def _broken(name: str, reason: str, *, live: bool) -> dict[str, Any]:
    return {
        "id": name,
        "live": live,
        "ok": False,
        "digests": [{"path": "", "kind": "manifest", "reason": reason}],
        "level": None,
        "reason": "",
        "load": None,
        "gates": [],
    }


def _loading(watch: Watch) -> Watch:
    """The rule, asking for loading at least: who asks for a release wants to know whether it works."""
    if watch.verify.effective_level in {"load", "probes"}:
        return watch
    return watch.model_copy(update={"verify": watch.verify.model_copy(update={"level": "load"})})


def complaints(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with one release, a sentence each."""
    found = [
        f"{finding['path']}: {finding['reason']}" if finding["path"] else finding["reason"]
        for finding in result["digests"]
    ]
    load = result["load"]
    if load is not None and not load["ok"]:
        found.append(f"does not load: {load['reason']}")
    elif result["reason"]:
        found.append(result["reason"])
        found += load["probed"]["failures"] if load and load["probed"] else ()
    return found


def _show(results: Sequence[Mapping[str, Any]]) -> None:
    table(
        ("release", "digests", "loads", "probes", "scores", "gates", "with"),
        [
            (
                result["id"],
                "WRONG" if result["digests"] else "ok",
                _loads(result["load"]),
                _probes(result["load"]),
                _scores(result["load"]),
                _gates(result["gates"]),
                _versions(result["load"]),
            )
            for result in results
        ],
        spare=("scores", "probes", "with"),
    )


def _loads(load: Mapping[str, Any] | None) -> str:
    if load is None:
        return "not tried"
    return f"in {load['load_s']:.2f} s" if load["ok"] else "NO"


def _probes(load: Mapping[str, Any] | None) -> str:
    probed = load["probed"] if load else None
    return f"{probed['passed']} of {probed['total']}" if probed else _NOTHING


def _scores(load: Mapping[str, Any] | None) -> str:
    evaluated = load["evaluated"] if load else None
    scores = evaluated["scores"] if evaluated else {}
    whole = [f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, int | float)]
    return ", ".join(whole) or _NOTHING


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    if not gates:
        return _NOTHING
    failed = dict.fromkeys(str(gate["gate"]) for gate in gates if not gate["passed"])
    return f"NOT {', '.join(failed)}" if failed else f"{len(gates)} passed"


def _versions(load: Mapping[str, Any] | None) -> str:
    return f"spaCy {load['spacy']}, Python {load['python']}" if load and load["spacy"] else ""


class _Progress:
    """Which release is being verified, on a terminal, where there are several; a context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._count = 0
        self._shows = total > 1 and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("")

    def show(self, release: str) -> None:
        self._count += 1
        self._write(f"verifying {self._count} of {self._total}: {release}")

    def _write(self, text: str) -> None:
        if self._shows:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[K{text[: columns - 1]}")  # a line that wraps can't be taken back
            sys.stderr.flush()
