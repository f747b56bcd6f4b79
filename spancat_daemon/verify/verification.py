"""Whether a snapshot may go live: the loader's verdict and the gates, by the terms of its rule."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.verify.gates import Candidate, judge, recorded_steps, refusal
from spancat_daemon.verify.probes import read_probes
from spancat_daemon.verify.verdict import Examination, Probe, Subject, Verification

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.config.model import Watch
    from spancat_daemon.config.terms import Verify
    from spancat_daemon.release.folder import Release
    from spancat_daemon.release.manifest import Manifest
    from spancat_daemon.verify.child import Asked
    from spancat_daemon.verify.verdict import LoadVerdict
    from spancat_daemon.verify.warm import WarmLoaders

_CHUNK_BYTES: Final = 1 << 20


class CannotVerify(SpancatDaemonError):  # noqa: N818  # a state of the machine that says nothing of a snapshot
    """Nothing could be found out about a snapshot: the interpreter, the probes or the gold are at fault."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a rule asks of a snapshot, with the files it names read.

    Attributes:
        watch: the rule.
        probes: those of its file; empty without one.
        sha256: identity of all that decides: settings, the bytes of probes and gold, and what is live if
            that is compared with.
    """

    watch: Watch
    probes: tuple[Probe, ...]
    sha256: str

    @property
    def loads(self) -> bool:
        """Whether the loader is asked."""
        return self.watch.verify.effective_level in {"load", "probes"}


Stamps = tuple[tuple[int, int, int] | None, ...]


def stamps_of(watch: Watch) -> Stamps:
    """Inode, size and time of change of the files that a rule's terms come from; cheap, for comparing."""
    return tuple(_stamp(path) for path in (watch.verify.probes, watch.verify.gold, watch.verify.python))


def terms_of(watch: Watch, live: Release | None) -> Terms:
    """Read what a rule asks of a snapshot; `live` is what its gates compare with.

    Raises:
        BadProbes: its probes can't be read, or are none.
        CannotVerify: its gold documents can't be read.
    """
    verify, gate = watch.verify, watch.gate
    compares = gate.max_drop is not None or gate.max_latency_ms is not None or gate.labels != "any"
    probes = read_probes(verify.probes) if verify.probes else ()
    asked = {
        "verify": verify.model_dump(mode="json", exclude={"idle"}),
        "gate": gate.model_dump(mode="json"),
        "against": live.manifest.content_sha256 if live is not None and compares else "",
        "probes": _sha256(verify.probes),
        "gold": _sha256(verify.gold),
    }
    # Paths of a match need not be UTF-8; json escapes what orjson refuses.
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Terms(watch, probes, digest)


def verify(
    subject: Subject,
    candidate: Candidate,
    live: Release | None,
    terms: Terms,
    loaders: WarmLoaders,
    *,
    abandoned: Callable[[], bool] = lambda: False,
) -> Verification:
    """Have a snapshot loaded and examined as its rule asks, and judge what came of it.

    Args:
        subject: where it lies, and what its component must be.
        candidate: what is known about it without loading it.
        live: the release that is live, to compare with.
        terms: what its rule asks.
        loaders: who loads it.
        abandoned: asked again and again meanwhile; True gives up.

    Raises:
        CannotVerify: the interpreter can't be run or has no spaCy, or the gold documents are of no use to
            it: nothing is known about the snapshot.
        Abandoned: `abandoned` said so.
    """
    watch, level = terms.watch, terms.watch.verify.effective_level
    if level == "none":
        return Verification(level=level, passed=True, reason="", terms_sha256=terms.sha256)
    verdict = None
    if terms.loads:
        compared = watch.verify.gold is not None or watch.gate.max_latency_ms is not None
        asked = Examination(
            subject=subject,
            live=subject_of(live.path, live.manifest) if live is not None and compared else None,
            probes=terms.probes,
            gold=watch.verify.gold,
            latency=watch.gate.max_latency_ms is not None,
        )
        verdict = answer(asked, watch.verify, loaders, abandoned)
        candidate = replace(candidate, verdict=verdict, asked=asked)
    figures = judge(
        watch.gate,
        min_pass=watch.verify.min_pass,
        candidate=candidate,
        live=live.manifest if live is not None else None,
    )
    loads = verdict is None or verdict.ok
    passed = loads and all(figure.passed for figure in figures)
    said = "" if loads or verdict is None else verdict.reason or "it does not load, for no reason given"
    return Verification(
        level=level,
        passed=passed,
        reason=said or refusal(figures),
        terms_sha256=terms.sha256,
        figures=figures,
        verdict=verdict,
    )


def answer(
    asked: Asked, settings: Verify, loaders: WarmLoaders, abandoned: Callable[[], bool]
) -> LoadVerdict:
    """Ask a loader within the limits of a rule.

    Raises:
        CannotVerify, Abandoned: see `verify`.
    """
    verdict = loaders.examine(
        asked,
        python=str(settings.python or sys.executable),
        memory_bytes=settings.memory,
        timeout_s=settings.timeout,
        idle_s=settings.idle,
        abandoned=abandoned,
    )
    if verdict.fault == "verifier":
        raise CannotVerify(
            f"can't be verified: {verdict.reason}",
            where=str(settings.python or ""),
            hint="`check` tries the interpreter, and the gold documents on the live release",
        )
    return verdict


def examine_release(
    terms: Terms,
    release: Release,
    live: Release | None,
    loaders: WarmLoaders,
    *,
    abandoned: Callable[[], bool] = lambda: False,
) -> Verification:
    """Do `verify` for a release, or a rejected snapshot, by its manifest."""
    manifest = release.manifest
    if live is not None and live.id == release.id:
        live = None
    return verify(
        subject_of(release.path, manifest),
        Candidate(
            labels=manifest.labels,
            metrics=manifest.metrics,
            metrics_may_be_stale=manifest.metrics_may_be_stale,
            spans_key=manifest.spans_key,
            bytes=manifest.content_bytes,
            steps=recorded_steps(manifest),
            verdict=None,
        ),
        live,
        terms,
        loaders,
        abandoned=abandoned,
    )


def subject_of(path: Path, manifest: Manifest) -> Subject:
    """What a release in a directory must turn out to be when it is loaded."""
    return Subject(
        path=Path(os.path.realpath(path)),  # once: spaCy opens file after file, and `current` may be swapped
        component=manifest.component,
        model_sha256=manifest.model_sha256,
        labels=manifest.labels,
        spans_key=manifest.spans_key,
        threshold=manifest.threshold,
    )


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if status else None


def _sha256(path: Path | None) -> str:
    if path is None:
        return ""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise CannotVerify(
            f"can't be read: {error.strerror}", where=str(path), hint="[watch.verify] names it"
        ) from error
    return digest.hexdigest()
