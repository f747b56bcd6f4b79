"""The files that a daemon.toml names: whether they are there, and are what they are said to be.

What takes snapshots looks at this before it begins, and `check` does. Whoever only lists releases or goes
back to one does not: a probes file with a slip in it must not stand in the way of a rollback.
"""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spancat_daemon.config import patterns
from spancat_daemon.config.aftermath import PostWebhook
from spancat_daemon.config.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spancat_daemon.config.located import Located
    from spancat_daemon.config.model import Watch
    from spancat_daemon.config.places import Path as KeyPath

MOST_SHOWN: Final = 20
"""Problems of one file that are shown; a file of another kind has one on every line."""

_HEAD_BYTES: Final = 4096
_LONGEST_SECRET_BYTES: Final = 4096


def problems(located: Located) -> list[Problem]:
    """What is wrong with the files that the rules name, apart from those that depend on a match."""
    rules = enumerate(located.configuration.watch)
    return [problem for index, watch in rules for problem in _of(located, index, watch, of_match=False)]


def problems_of_match(located: Located, index: int, watch: Watch) -> list[Problem]:
    """What is wrong with the files whose names have a placeholder, for one match.

    They come and go with what matches, so they are no reason not to begin.

    Args:
        located: the configuration.
        index: of the rule in it.
        watch: the rule with its placeholders filled in, as ``expand.Target`` has it.
    """
    return list(_of(located, index, watch, of_match=True))


def depends_on_match(watch: Watch, path: Path | None) -> bool:
    """Whether a path of a rule, as it is in the configuration, stands for several files."""
    return bool(path and patterns.wildcards(watch.source) and patterns.PLACEHOLDER.search(str(path)))


def unusable_program(program: str) -> str:
    """Why a program can't be run; empty if it can."""
    if "/" not in program:
        import shutil  # noqa: PLC0415  # brings what packs archives

        return "" if shutil.which(program) else f"there is no {program!r} on $PATH"
    try:
        mode = Path(program).stat().st_mode
    except OSError as error:
        return f"{program} can't be run: {error.strerror}"
    if not stat.S_ISREG(mode) or not os.access(program, os.X_OK, effective_ids=True):
        return f"{program} can't be run: it is not an executable file"
    return ""


def _of(located: Located, index: int, watch: Watch, *, of_match: bool) -> Iterator[Problem]:
    rule = located.configuration.watch[index]
    at: KeyPath = ("watch", index)
    if watch.loads:
        python = watch.verify.python
        reason = "" if python is None or of_match else unusable_program(str(python))
        if reason:
            yield located.problem((*at, "verify", "python"), f"verify.python: {reason}")
        probes, gold = watch.verify.probes, watch.verify.gold
        if probes is not None and depends_on_match(rule, rule.verify.probes) == of_match:
            yield from _of_probes(located, (*at, "verify", "probes"), probes)
        if gold is not None and depends_on_match(rule, rule.verify.gold) == of_match:
            reason = _not_gold(gold)
            if reason:
                yield located.problem((*at, "verify", "gold"), f"verify.gold: {reason}")
    if of_match:
        return
    for number, step in enumerate(watch.after):
        if isinstance(step, PostWebhook) and step.webhook.secret_file is not None:
            reason = _no_secret(step.webhook.secret_file)
            if reason:
                key = (*at, "after", number, "webhook", "secret_file")
                yield located.problem(key, f"after.webhook.secret_file: {reason}")


def _of_probes(located: Located, key: KeyPath, path: Path) -> Iterator[Problem]:
    from spancat_daemon.verify.probes import BadProbes, read_probes  # noqa: PLC0415  # only where there are some

    head = _head(path)
    if isinstance(head, str):
        yield located.problem(key, f"verify.probes: {head}")
        return
    try:
        read_probes(path)
    except BadProbes as error:
        for problem in error.problems[:MOST_SHOWN]:
            yield Problem(problem.line, problem.column, problem.message, problem.text, str(path))
        if len(error.problems) > MOST_SHOWN:
            yield located.problem(key, f"verify.probes: {path} has more problems than these {MOST_SHOWN}")


def _not_gold(path: Path) -> str:
    """Why a file can't be a DocBin, by its beginning; empty if it can."""
    head = _head(path)
    if isinstance(head, str):
        return head
    try:
        # zlib around a msgpack map, which says what its numbers are: "attrs"
        content = zlib.decompressobj().decompress(head, _HEAD_BYTES)
    except zlib.error:
        content = b""
    if content[:1] in {bytes([0x80 | size]) for size in range(3, 16)} and b"\xa5attrs" in content:
        return ""
    return f"{path} is not a .spacy file of documents; DocBin.to_disk and `spacy convert` write them"


def _no_secret(path: Path) -> str:
    head = _head(path)
    if isinstance(head, str):
        return head
    if not head.strip():
        return f"{path} is empty"
    return f"{path} is longer than a secret can be" if len(head) >= _LONGEST_SECRET_BYTES else ""


def _head(path: Path) -> bytes | str:
    """The beginning of a regular file, or why it can't be had; never waits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            return f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}"
        return os.read(fd, _HEAD_BYTES)
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    finally:
        os.close(fd)
