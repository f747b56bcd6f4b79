"""A process that saves a pipeline by force, again and again.

A line for each save: the id of the release, or what refused it. Where the rule of a daemon says what is
verified, it asks for nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spacy

from spancat_daemon import save
from spancat_daemon.errors import SpancatDaemonError, UsageError

if TYPE_CHECKING:
    from spacy.language import Language

    from spancat_daemon import Release

ROOT = Path(__file__).resolve().parent.parent
REFUSED = "refused: "


def start(checkpoint: Path, folder: Path, count: int, *settings: str) -> subprocess.Popen[str]:
    """Start one; `settings` are ``name=value`` of texts."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.saver", str(checkpoint), str(folder), str(count), *settings],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )


def main(checkpoint: str, folder: str, count: str, *settings: str) -> None:
    nlp = spacy.load(checkpoint)
    chosen = dict(setting.split("=") for setting in settings)
    _say("ready")
    for _ in range(int(count)):
        try:
            _say(_save(nlp, folder, chosen).id)
        except SpancatDaemonError as error:
            _say(f"{REFUSED}{error}")


def _save(nlp: Language, folder: str, chosen: dict[str, Any]) -> Release:
    try:
        return save(nlp, folder, **chosen)
    except UsageError:
        return save(nlp, folder)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
