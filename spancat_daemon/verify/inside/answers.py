"""The answer to one request: whatever goes wrong on the way is an answer, too.

A request is an `Examination` as JSON, paths as strings, or a `Grafting`, all of it but its subject under
``graft``; the answer's keys are the fields of a `LoadVerdict`, ``held_bytes``, the memory of this process
before the request, and ``frame_bytes``, the length of the model that follows if one was asked for.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import spacy
import thinc

from . import deriving, loading, probing, scoring, timing
from .compatibility import is_for_a_newer, is_within, wanted_range
from .confinement import left_processes, note_attempts
from .words import one_line, reason_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .memory import Memory

_MOST_WARNINGS = 20
_FORBIDDEN = "; nothing that is loaded may write files, start processes or use the network"


def versions() -> dict[str, str]:
    """Return what loads a release."""
    return {
        "spacy": spacy.about.__version__,
        "thinc": getattr(thinc, "__version__", ""),
        "numpy": np.__version__,
    }


class Examiner:
    """Answers requests, one after the other.

    Args:
        confined: what is taken from this process, see `confinement`.
        memory: its memory.

    Attributes:
        frame: the bytes that follow the last answer; none until it is given, and after `clean_up`.
    """

    def __init__(self, confined: Sequence[str], memory: Memory) -> None:
        self._confined = list(confined)
        self._memory = memory
        self._attempts: list[str] = []
        self.frame = b""
        note_attempts(self._attempts)
        # Those that libraries have started are no release's.
        self._has_processes = left_processes()
        # What is there now stays: no collection needs to look at it ever again.
        gc.collect()
        gc.freeze()

    def answer_to(self, line: str) -> dict[str, Any]:
        """Return the answer to one request; never raises."""
        self._memory.forget_peak()
        held = self._memory.now_bytes()
        self._attempts.clear()
        begun = time.monotonic()
        examined = _Examined()
        caught: list[warnings.WarningMessage] = []
        try:
            request = _request(line)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                examined.run(request)
        except BaseException as error:  # noqa: BLE001  # any registered function may have been called
            examined.fail(error)
        if not self._has_processes and left_processes():
            examined.blame("limit", "it leaves processes running" + _FORBIDDEN)
        gc.enable()  # srsly leaves it off when bytes turn out to be damaged
        said = [f"it tries to start a process ({how})" for how in self._attempts]
        said += [one_line(warning.message) for warning in caught]
        answer = examined.answer
        answer["confined"] = self._confined
        answer["warnings"] = list(dict.fromkeys(said))[:_MOST_WARNINGS]
        answer["load_s"] = time.monotonic() - begun
        answer["held_bytes"] = held
        self.frame = examined.model if answer["ok"] else b""
        answer["frame_bytes"] = len(self.frame)
        answer["peak_rss_bytes"] = self._memory.peak_bytes()
        return answer

    def clean_up(self) -> None:
        """Give back what the last answer needed; pipelines hold themselves in circles."""
        self.frame = b""
        gc.collect()


def _request(line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        subjects = [request["subject"], *([request["live"]] if request.get("live") else [])]
        for subject in subjects:
            for key in ("path", "component", "model_sha256"):
                subject[key] = str(subject[key])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise loading.Unusable("this is not a request: " + reason_for(error)) from error
    return dict(request)


class _Examined:
    """One examination, as far as it has come.

    Attributes:
        answer: the fields of its `LoadVerdict`.
        model: the one that was asked for; empty if none was.
    """

    def __init__(self) -> None:
        self.model = b""
        self.answer: dict[str, Any] = {
            "ok": False,
            "reason": "",
            "fault": "",
            "labels": [],
            "spans_key": "",
            "threshold": None,
            "model_sha256": "",
            "probed": None,
            "evaluated": None,
            "live_evaluated": None,
            "timed": None,
            "live_reason": "",
        }
        self._path = ""
        self._failing = ""

    def run(self, request: dict[str, Any]) -> None:
        """Do all that is asked, in order; raises whatever it raises."""
        subject, live = request["subject"], request.get("live")
        probes, gold, latency = request.get("probes") or [], request.get("gold"), request.get("latency")
        self._path, self._failing = subject["path"], "spacy.load fails"
        nlp, pipe, found = loading.load(subject, spacy)
        self._refuse_newer()
        self.answer.update(found)
        self._failing = "it loads, but does not predict"
        loading.check_predicts(nlp, pipe)
        if request.get("graft"):
            self._failing = "it loads, but its listener can't be replaced"
            self.model = deriving.grafted(nlp, subject["component"], request["graft"])
            self.answer["model_sha256"] = hashlib.sha256(self.model).hexdigest()
        if probes:
            self._failing = "it loads, but fails on the probes"
            self.answer["probed"] = probing.probe(nlp, pipe, probes)
        if gold:
            self._failing = "the gold documents can't be read"
            gold = scoring.Gold(gold)
        self._failing = "it loads, but not together with the live release"
        live_nlp, live_pipe = self._load_live(live) if live and (gold or latency) else (None, None)
        if gold:
            self._failing = "it loads, but fails on the gold documents"
            self.answer["evaluated"] = scoring.evaluate(nlp, pipe, gold)
            if live_nlp is not None:
                self._evaluate_live(live_nlp, live_pipe, gold)
        if latency:
            self._failing = "it loads, but fails while it is timed"
            self._time(nlp, live_nlp, timing.texts_of(probes, gold, nlp))
        self.answer["ok"] = True

    def fail(self, error: BaseException) -> None:
        """Say why it ended there, and whose fault that is."""
        if isinstance(error, loading.Unfit):
            self.blame("release", str(error))
        elif isinstance(error, loading.Unusable):
            self.blame("verifier", str(error))
        elif isinstance(error, MemoryError):
            self.blame("limit", self._failing + ": it needs more memory than it may have")
        elif (refused := _refusal(error)) is not None:
            said = f"{self._failing}: {reason_for(refused)}{_place(refused)}{_FORBIDDEN}"
            self.blame("limit", said)
        else:
            self.blame("release", self._explained(f"{self._failing}: {reason_for(error)}"))

    def blame(self, fault: str, reason: str) -> None:
        """Make it a failed one."""
        self.answer.update(ok=False, fault=fault, reason=one_line(reason))

    def _refuse_newer(self) -> None:
        version, wanted = spacy.about.__version__, wanted_range(self._path)
        if is_for_a_newer(version, wanted):
            raise loading.Unfit(_needs(version, wanted))

    def _explained(self, reason: str) -> str:
        """Say it in plain words where the version is the likely cause."""
        version, wanted = spacy.about.__version__, wanted_range(self._path)
        if is_for_a_newer(version, wanted):
            return f"{_needs(version, wanted)}; {reason}"
        if is_within(version, wanted):
            return reason
        return f"{reason}; it was made for spaCy {wanted}, {sys.executable} has {version}"

    def _load_live(self, live: dict[str, Any]) -> tuple[Any, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nlp, pipe, _ = loading.load(live, spacy)
                return nlp, pipe
        except MemoryError:
            raise  # or a hungry snapshot would get rid of what it is compared with
        except BaseException as error:  # noqa: BLE001  # what the live one does is not held against this one
            self._no_live("load", error)
            return None, None

    def _evaluate_live(self, nlp: Any, pipe: Any, gold: scoring.Gold) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.answer["live_evaluated"] = scoring.evaluate(nlp, pipe, gold)
        except MemoryError:
            raise  # as above
        except BaseException as error:  # noqa: BLE001  # as above
            self._no_live("be evaluated", error)

    def _time(self, nlp: Any, live_nlp: Any, texts: list[str]) -> None:
        if live_nlp is not None:
            try:
                self.answer["timed"] = timing.time_both(nlp, live_nlp, texts)
            except timing.LiveFails as error:
                self._no_live("be timed", error.__cause__ or error)
            else:
                return
        self.answer["timed"] = timing.time_both(nlp, None, texts)

    def _no_live(self, what: str, error: BaseException) -> None:
        why = str(error) if isinstance(error, (loading.Unfit, loading.Unusable)) else reason_for(error)
        self.answer["live_reason"] = one_line(f"the live release can't {what}: {why}")


def _needs(version: str, wanted: str) -> str:
    return f"the checkpoint needs spaCy {wanted} (its meta.json says so), and {sys.executable} has {version}"


def _refusal(error: BaseException | None) -> PermissionError | None:
    """Return the refused call that an error is, or comes from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, PermissionError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _place(error: BaseException) -> str:
    """Return where an error was raised, for a reason."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].name} at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
