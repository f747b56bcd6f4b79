"""The child that loads a release with spaCy; never imported by the daemon, run as ``python -I loader.py``.

It needs the standard library and spaCy 3.2.2 or later on Python 3.8 or later, nothing of spancat-daemon, so
that it runs in the interpreter that will serve the release.

Protocol: one JSON object a line on standard input, one JSON object a line on standard output, in the same
order; the end of standard input ends it at once, whatever it is doing. What loading code prints goes to
standard error. A request holds ``path``, ``component`` and ``model_sha256``; where it also holds ``labels``
or ``spans_key`` they are compared too. The answer's keys are those of `verdict`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import platform
import queue
import resource
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

MAX_WARNINGS = 20
MAX_TEXT = 1000


def verdict() -> dict[str, Any]:
    """Return the answer to a request as it stands before anything is known."""
    return {
        "ok": False,
        "reason": "",
        "spacy": "",
        "thinc": "",
        "python": platform.python_version(),
        "numpy": "",
        "labels": [],
        "spans_key": "",
        "threshold": None,
        "model_sha256": "",
        "warnings": [],
        "load_s": 0.0,
        "peak_rss_bytes": 0,
    }


def one_line(text: object) -> str:
    """Return text fit for a log line: no line ends, not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def peak_rss_bytes() -> int:
    """Return the most memory this process has had; ru_maxrss would count its parent's before exec, too."""
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123  # pathlib costs an import here
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def check(answer: dict[str, Any], request: dict[str, Any], spacy: Any) -> str:
    """Load the release and return why it must not go live, or an empty string; fills in the answer."""
    nlp = spacy.load(request["path"])
    name = request["component"]
    if name not in nlp.component_names:
        return "it loads, but has no component {!r}, only: {}".format(name, ", ".join(nlp.component_names))
    pipe = nlp.get_pipe(name)
    answer["labels"] = [str(label) for label in pipe.labels]
    answer["spans_key"] = pipe.key
    answer["threshold"] = pipe.cfg.get("threshold")
    answer["model_sha256"] = hashlib.sha256(pipe.model.to_bytes()).hexdigest()
    if answer["model_sha256"] != request["model_sha256"]:
        return "it loads, but the model of {!r} is then not the one in model.bin".format(name)
    for key in ("labels", "spans_key"):
        if key in request and answer[key] != request[key]:
            return "it loads, but {} of {!r} are {!r}, not {!r}".format(key, name, answer[key], request[key])
    return ""


def answer_to(line: str, spacy: Any, versions: dict[str, str], import_error: str) -> dict[str, Any]:
    """Return the answer to one request line; never raises for what a release does."""
    answer = verdict()
    answer.update(versions)
    begun = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if import_error:
                answer["reason"] = import_error
            else:
                answer["reason"] = one_line(check(answer, json.loads(line), spacy))
                answer["ok"] = not answer["reason"]
        except MemoryError:
            answer["reason"] = "loading needs more memory than it may have"
        except (Exception, SystemExit) as error:  # noqa: BLE001  # any registered function may have been called
            answer["reason"] = one_line("spacy.load fails: {}: {}".format(type(error).__name__, error))
        finally:
            gc.enable()  # srsly leaves it off when bytes turn out to be damaged
            gc.collect()
    said = list(dict.fromkeys(one_line(warning.message) for warning in caught))
    answer["warnings"] = said[:MAX_WARNINGS]
    answer["load_s"] = time.monotonic() - begun
    answer["peak_rss_bytes"] = peak_rss_bytes()
    return answer


def restrain(memory_bytes: int) -> None:
    """Give way to everything else on the machine, and die first when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for give_way in (_be_nice, _be_first_to_die):
        with contextlib.suppress(OSError):  # a kernel, or a service's sandbox, that doesn't let us
            give_way()


def _be_nice() -> None:
    os.nice(10)


def _be_first_to_die() -> None:
    with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123  # as above
        score.write("800")


def read_requests(stream: TextIO, requests: queue.Queue[str]) -> None:
    """Pass lines on; when the parent is gone nobody wants the answer, so leave, even amidst a load."""
    for line in stream:
        requests.put(line)
    os._exit(0)


def import_spacy() -> tuple[Any, dict[str, str], str]:
    """Return the module, the versions that load a release, and why it can't be imported if it can't."""
    try:
        import numpy as np  # noqa: PLC0415  # after the limits are set
        import spacy  # noqa: PLC0415
        import thinc  # noqa: PLC0415
    except MemoryError:
        return None, {}, "spaCy can't be imported: it needs more memory than it may have"
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a broken installation fails in any way
        why = "{} can't import spaCy: {}: {}".format(sys.executable, type(error).__name__, error)
        return None, {}, one_line(why)
    thinc_version = getattr(thinc, "__version__", "")
    return spacy, {"spacy": spacy.about.__version__, "thinc": thinc_version, "numpy": np.__version__}, ""


def main() -> None:
    """Serve requests until standard input ends."""
    parser = argparse.ArgumentParser(description="Loads releases with spaCy, for spancat-daemon.")
    parser.add_argument("--memory-bytes", type=int, default=0)
    options = parser.parse_args()

    # Descriptors of our own: what a registered function reads or prints can't get between the lines.
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    target = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    restrain(options.memory_bytes)

    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read_requests, args=(source, requests), daemon=True).start()

    spacy, versions, import_error = import_spacy()
    while True:
        json.dump(answer_to(requests.get(), spacy, versions, import_error), target)
        target.write("\n")
        target.flush()


if __name__ == "__main__":
    main()
