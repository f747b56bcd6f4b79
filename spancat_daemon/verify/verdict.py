"""What is asked about a snapshot, what the loader says of it, and what that comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Level = Literal["none", "structure", "load", "probes"]


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a probe: characters from `start` up to, not including, `end`, and a label."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A text, and what it must, or must not, give.

    Attributes:
        text: what is predicted on.
        spans: those it must give; empty: it must give none at all; None: the probe doesn't say.
        absent: those it must not give.
        line: of the probes' file, from 1.
    """

    text: str
    spans: tuple[Span, ...] | None
    absent: tuple[Span, ...]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A directory to load, and what its manifest says of the component in it.

    Attributes:
        path: the pipeline's directory.
        component: name of the span categorizer.
        model_sha256: what its ``model.to_bytes()`` must hash to.
        labels: what its labels must be, in order; None: not compared.
        spans_key: what its key must be; None: not compared.
        threshold: what its threshold must be, as near as spaCy keeps it; None: not compared.
    """

    path: Path
    component: str
    model_sha256: str
    labels: tuple[str, ...] | None = None
    spans_key: str | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that one verification asks of the loader.

    Attributes:
        subject: the snapshot.
        live: the live release, evaluated and timed beside it; None: nothing to compare with.
        probes: texts with what they must give.
        gold: a ``.spacy`` file to evaluate on; None: none.
        latency: time the snapshot and the live release side by side, on the texts of probes and gold.
    """

    subject: Subject
    live: Subject | None = None
    probes: tuple[Probe, ...] = ()
    gold: Path | None = None
    latency: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grafting:
    """Asks the loader for the model of a component with its own copy of what it listens to.

    Attributes:
        subject: a pipeline of that component and its upstream, and no others.
        upstream: the pipe that it listens to.
        listener: path of its listener in its configuration, such as ``model.tok2vec``.
        config: config.cfg of the pipeline that consists of the result alone; has a place for the copy.
        texts: what both must predict the same on, besides those that the loader knows by itself.
        most_bytes: an answer with a larger model is none.
    """

    subject: Subject
    upstream: str
    listener: str
    config: str
    texts: tuple[str, ...]
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Probed:
    """How the probes went.

    Attributes:
        total: how many there are.
        passed: how many passed.
        spans: spans that were predicted over all texts.
        failures: of the first that failed, a sentence each, with their lines.
    """

    total: int
    passed: int
    spans: int
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Scores on the gold documents.

    Attributes:
        documents: how many.
        scores: ``spans_<key>_f/p/r``, and ``spans_<key>_per_type``: ``{label: {p, r, f}}``.
    """

    documents: int
    scores: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds a document takes, at the median of several passes; the two were timed in turns.

    Attributes:
        documents: how many texts.
        snapshot_ms: the snapshot's.
        live_ms: the live release's; None if there is none, or it can't be loaded.
    """

    documents: int
    snapshot_ms: float
    live_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadVerdict:
    """What came of loading a release, and of whatever else was asked.

    Attributes:
        ok: it loaded, is what the manifest says, and predicts. Probes, scores and times have no part in it.
        reason: why not, in one line; empty if ok.
        fault: whose it is if not ok: the ``release``'s own; a ``limit``, which it exceeded (time, memory,
            processes) or died at; the ``verifier``'s, which could not be run or has no spaCy, so that
            nothing is known about the release. Empty if ok.
        spacy: version that loaded it; empty if it didn't come to that, as are the following.
        thinc: likewise.
        python: likewise.
        numpy: likewise.
        labels: those of the component, in the order of the model's outputs.
        spans_key: where in ``doc.spans`` the component writes.
        threshold: from which score on it does.
        model_sha256: digest of the loaded component's ``model.to_bytes()``.
        warnings: what Python warned of while it loaded and predicted, each once.
        confined: what was taken from the loader, as far as the machine allows: ``memory`` (it has a limit),
            ``network`` (it has none), ``files`` (it writes none), ``processes`` (it starts none).
        probed: how the probes went; None without probes.
        evaluated: the snapshot's scores; None without gold.
        live_evaluated: the live release's on the same documents.
        timed: how long documents take; None if that was not asked.
        live_reason: why there is nothing of the live release to compare with, though it was asked.
        load_s: seconds within the child, without importing spaCy.
        peak_rss_bytes: the most memory the child had meanwhile.
        total_s: seconds from asking the child to its verdict, its start included if it was started for this.
    """

    ok: bool
    reason: str
    fault: Literal["", "release", "limit", "verifier"] = ""
    spacy: str = ""
    thinc: str = ""
    python: str = ""
    numpy: str = ""
    labels: tuple[str, ...] = ()
    spans_key: str = ""
    threshold: float | None = None
    model_sha256: str = ""
    warnings: tuple[str, ...] = ()
    confined: tuple[str, ...] = ()
    probed: Probed | None = None
    evaluated: Evaluated | None = None
    live_evaluated: Evaluated | None = None
    timed: Timed | None = None
    live_reason: str = ""
    load_s: float = 0.0
    peak_rss_bytes: int = 0
    total_s: float = 0.0

    @property
    def verifier(self) -> dict[str, str]:
        """The versions that loaded it, as the manifest keeps them."""
        return {"spacy": self.spacy, "thinc": self.thinc, "python": self.python, "numpy": self.numpy}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grafted(LoadVerdict):
    """What came of a `Grafting` that succeeded: the pipelines before and after it predict the same.

    Attributes:
        model: ``model.to_bytes()`` of the component, whose digest is `model_sha256`.
    """

    model: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One gate, and how it went.

    Attributes:
        gate: the key in ``[watch.gate]``, or ``min_pass``.
        passed: whether it lets the snapshot through.
        value: the snapshot's figure; None if there is none.
        limit: what the configuration asks for.
        live: the live release's figure, where the gate compares with it.
        of: what was measured: a metric's name, a label.
        source: where `value` is from: ``gold``, ``meta.json``, ``probes``, ``timing``, ``files``,
            ``checkpoint``.
        note: what else there is to say, such as why nothing could be compared.
    """

    gate: str
    passed: bool
    value: Any
    limit: Any
    live: Any = None
    of: str = ""
    source: str = ""
    note: str = ""

    def __str__(self) -> str:
        """Says it in half a sentence, for a reason."""
        of = f" of {self.of}" if self.of else ""
        live = f", live {self.live}" if self.live is not None else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.gate}{of}: {self.value}, limit {self.limit}{live}{note}"


_KEPT: Final = (
    "fault confined warnings probed evaluated live_evaluated timed live_reason load_s peak_rss_bytes total_s"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a verification came to; what a manifest keeps of it is `document`.

    Attributes:
        level: how deep it went.
        passed: whether the snapshot may go live.
        reason: why not; empty if it may.
        terms_sha256: identity of what was asked: the same content need not be asked the same twice.
        figures: every gate, passed or not.
        verdict: what the loader said; None where it was not asked.
    """

    level: Level
    passed: bool
    reason: str
    terms_sha256: str
    figures: tuple[Figure, ...] = ()
    verdict: LoadVerdict | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The manifest's ``verification``: JSON values only."""
        found: dict[str, Any] = {
            "level": self.level,
            "passed": self.passed,
            "reason": self.reason,
            "terms_sha256": self.terms_sha256,
            "gates": self.gates,
        }
        if self.verdict is not None:
            said = asdict(self.verdict)
            found |= {key: said[key] for key in _KEPT.split() if said[key] not in (None, "")}
        return found

    @property
    def verifier(self) -> dict[str, str] | None:
        """The versions that loaded it; None if nothing did."""
        return self.verdict.verifier if self.verdict is not None else None

    @property
    def gates(self) -> list[dict[str, Any]]:
        """The figures as the log and the manifest have them."""
        return [
            {key: value for key, value in asdict(figure).items() if value not in (None, "")}
            for figure in self.figures
        ]
