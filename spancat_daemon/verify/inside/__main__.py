"""The loader's process: reads requests, writes answers, until its standard input ends.

Protocol, one JSON object a line: first what it is, ``{"ready": true, "python", "spacy", "thinc", "numpy",
"confined"}``, or ``{"ready": false, "reason"}`` and the end; then an answer to each request, see `answers`,
with as many bytes after its line as its ``frame_bytes`` says.
What anything else prints goes to standard error.

Started with ``python -I -B -c START PARENT_FOLDER MEMORY_BYTES LIFELINE``, see `confinement.confine`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from . import confinement
from .memory import Memory
from .words import one_line, reason_for

if TYPE_CHECKING:
    from typing import BinaryIO, TextIO


def main() -> None:
    """Serve requests until standard input ends."""
    memory_bytes, lifeline = (int(argument) for argument in sys.argv[-2:])
    sys.argv = sys.argv[:1]
    source, target = _own_streams()
    memory = Memory()
    confined = confinement.confine(memory_bytes, lifeline)
    try:
        from . import answers  # noqa: PLC0415  # spaCy comes with it, within the limits
    except MemoryError:
        _write(target, _not_ready("it needs more memory than it may have"))
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a broken installation fails in any way
        _write(target, _not_ready(reason_for(error)))
        return
    confined += [name for name in confinement.forbid_processes() if name not in confined]
    examiner = answers.Examiner(confined, memory)
    ready = {"ready": True, "python": platform.python_version(), "confined": confined}
    ready.update(answers.versions())
    _write(target, ready)
    for line in source:
        _write(target, examiner.answer_to(line), examiner.frame)
        examiner.clean_up()


def _own_streams() -> tuple[TextIO, BinaryIO]:
    """Return requests and answers, on descriptors that what a release reads or prints can't get between."""
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    target = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return source, target


def _not_ready(why: str) -> dict[str, Any]:
    return {"ready": False, "reason": one_line(f"{sys.executable} can't import spaCy: {why}")}


def _write(target: BinaryIO, message: dict[str, Any], frame: bytes = b"") -> None:
    target.write(json.dumps(message).encode() + b"\n")
    target.write(frame)
    target.flush()
