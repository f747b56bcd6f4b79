"""Asking an interpreter whether it can verify: which Python it is, and which spaCy it imports."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import Final

from spancat_daemon.passed_on import passed_on

OLDEST_PYTHON: Final = (3, 8)
OLDEST_SPACY: Final = (3, 2, 2)

_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_MOST_BYTES: Final = 1 << 16
_MARK: Final = "spancat-daemon-check:"
# As verify does it: isolated, and with the memory that it will have. Runs on whatever Python it is given.
_QUESTION: Final = f"""
import json, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = {{"python": ".".join(map(str, sys.version_info[:3]))}}
try:
    import spacy
    said["spacy"] = spacy.__version__
except BaseException as error:
    said["error"] = type(error).__name__ + ": " + str(error)
sys.stdout.write("\\n{_MARK}" + json.dumps(said) + "\\n")
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an interpreter said.

    Attributes:
        python: its version; empty if it is none.
        spacy: the version of its spaCy; empty if it has none.
        problem: why it can't verify; empty if it can.
    """

    python: str
    spacy: str
    problem: str


def ask(python: str, *, memory_bytes: int, timeout_s: float) -> Answer:
    """Runs an interpreter; never raises for what it does, and leaves nothing running.

    Args:
        python: its path, or a name to be found on ``$PATH``.
        memory_bytes: the address space it has for importing spaCy.
        timeout_s: how long it may take.
    """
    try:
        process = subprocess.Popen(
            [python, "-I", "-B", "-X", "utf8", "-c", _QUESTION, str(memory_bytes)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=passed_on() | _ONE_THREAD,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        return Answer("", "", f"can't be run: {error.strerror}")
    assert process.stdout is not None  # noqa: S101  # a pipe, see above
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        with process.stdout:
            said = process.stdout.read(_MOST_BYTES).decode("utf-8", "replace")
    finally:  # Ctrl-C too; and one that says too much is not waited for
        timer.cancel()
        _kill(process)
        process.wait()
    if late.is_set():
        return Answer("", "", f"does not answer within {timeout_s:g} s")
    return _judge(said)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # it was not waited for yet, so its number can't be another's
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _judge(said: str) -> Answer:
    answers = [line for line in said.splitlines() if line.startswith(_MARK)]
    if not answers:
        last = [shown for line in said.splitlines() if (shown := _printable(line))][-1:]
        return Answer("", "", f"is not a Python that can be used{f': {last[0]}' if last else ''}")
    found = json.loads(answers[-1].removeprefix(_MARK))
    python, spacy = str(found["python"]), str(found.get("spacy", ""))
    if _numbers(python) < OLDEST_PYTHON:
        problem = f"is Python {python}; verification needs {'.'.join(map(str, OLDEST_PYTHON))} or later"
    elif not spacy:
        problem = f"can't import spaCy: {_printable(str(found['error']))}"
    elif _numbers(spacy) < OLDEST_SPACY:
        problem = f"has spaCy {spacy}; verification needs {'.'.join(map(str, OLDEST_SPACY))} or later"
    else:
        problem = ""
    return Answer(python, spacy, problem)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text).strip()[:300]
