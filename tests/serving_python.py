"""The interpreter of an old server: a real Python 3.10 with spaCy 3.2.2, in an environment of its own.

It is installed once per machine, outside of the repository, and kept under a name that says what is in it.
Where there is no such Python, or nothing to install from, the tests that ask for it are skipped and say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests import pythons
from tests.once import once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.pipelines import Prediction

SPACY: Final = "3.2.2"
_REQUIREMENTS: Final = (
    f"spacy=={SPACY}",
    "click<8.1",  # spaCy 3.2.2's typer imports what click 8.1 took away
    "numpy<2",  # its thinc was compiled against numpy 1
)
_OLDER: Final = {"3.8": ("typing_extensions<4.6",)}  # its pydantic does not know later ones there
_NOTHING_TO_INSTALL_FROM: Final = ("(from versions: none)", "Max retries exceeded", "ConnectTimeoutError")

_TRAIN: Final = """\
import sys
from pathlib import Path
import spacy
from spacy.cli.train import train
from spacy.tokens import DocBin, Span

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
nlp = spacy.blank("en")
annotated = [
    ("Acme Corp opened an office in Berlin.", [(0, 2, "ORG"), (6, 7, "PLACE")]),
    ("The office in New York belongs to Globex.", [(3, 5, "PLACE"), (7, 8, "ORG")]),
    ("Globex sells doors in Paris.", [(0, 1, "ORG"), (2, 3, "GOODS"), (4, 5, "PLACE")]),
    ("Nothing of note happened today.", []),
]
corpus = DocBin()
for text, spans in annotated:
    doc = nlp(text)
    doc.spans["sc"] = [Span(doc, *span) for span in spans]
    corpus.add(doc)
corpus.to_disk(folder / "corpus.spacy")
nlp.add_pipe("spancat")
config = nlp.config.copy()
model = config["components"]["spancat"]["model"]
model["reducer"]["hidden_size"] = 16
model["tok2vec"]["embed"].update(width=24, rows=[200] * 4)
model["tok2vec"]["encode"].update(width=24, depth=1)
config.to_disk(folder / "config.cfg")
train(folder / "config.cfg", folder / "output", overrides={
    "paths.train": str(folder / "corpus.spacy"),
    "paths.dev": str(folder / "corpus.spacy"),
    "system.seed": seed,
    "training.eval_frequency": 20,
    "training.max_steps": 60,
    "training.optimizer.learn_rate": 0.02,
})
"""

_PREDICT: Final = """\
import json, sys
import spacy

nlp = spacy.load(sys.argv[1])
key = nlp.get_pipe("spancat").key
answer = []
for doc in nlp.pipe(json.load(sys.stdin)):
    group = doc.spans[key]
    scores = [float(score) for score in group.attrs["scores"]] if group else []
    answer.append([(s.start, s.end, s.label_, score) for s, score in zip(group, scores)])
json.dump(answer, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class ServingPython:
    """An interpreter that serves with spaCy 3.2.2.

    Attributes:
        path: of the interpreter.
    """

    path: Path

    def train(self, checkpoint: Path, *, seed: int = 0) -> Path:
        """Let its own ``spacy train`` make a checkpoint; `checkpoint` is where its model-best is put.

        The pipeline is a spancat with a tok2vec of its own, the default there; other seeds, other weights.
        """
        trained = once(f"trained-by-{SPACY}-{seed}", lambda folder: self._run(_TRAIN, str(folder), str(seed)))
        shutil.copytree(trained / "output/model-best", checkpoint)
        return checkpoint

    def predictions(self, pipeline: Path, texts: Sequence[str]) -> list[list[Prediction]]:
        """Load a pipeline there and return, for each text, (start, end, label, exact score) of its spans."""
        answer = json.loads(self._run(_PREDICT, str(pipeline), stdin=json.dumps(texts)))
        return [[tuple(span) for span in spans] for spans in answer]

    def _run(self, script: str, *arguments: str, stdin: str = "") -> str:
        done = pythons.run(str(self.path), "-I", "-c", script, *arguments, stdin=stdin)
        assert done.returncode == 0, (
            f"{self.path} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout


def find_or_install(version: str = "3.10") -> ServingPython:
    """Return it, installed if it is not yet; skips the test where it can't be had.

    Args:
        version: of Python; 3.8 to 3.10 can have this spaCy.
    """
    base = pythons.find(version, what_for=f"spaCy {SPACY}")
    requirements = [*_REQUIREMENTS, *_OLDER.get(version, ())]
    said = "\n".join([*requirements, str(Path(base).resolve())])
    name = f"spacy-{SPACY}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    folder = once(name, lambda path: _install(base, path, requirements), under=home / "spancat-daemon-tests")
    python = folder / "bin/python"
    done = pythons.run(str(python), "-I", "-c", "import spacy; print(spacy.__version__)")
    assert done.stdout.strip() == SPACY, f"remove {folder}, it is broken: {done.stdout}{done.stderr}"
    return ServingPython(python)


def _install(base: str, folder: Path, requirements: Sequence[str]) -> None:
    made = pythons.run(base, "-I", "-m", "venv", str(folder))
    assert made.returncode == 0, made.stderr
    python = str(folder / "bin/python")
    options = ("--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=30", "--only-binary=:all:")
    done = pythons.run(python, "-I", "-m", "pip", "install", *options, *requirements, timeout_s=250)
    if done.returncode == 0:
        return
    if any(sign in done.stderr for sign in _NOTHING_TO_INSTALL_FROM):
        pytest.skip(
            f"spaCy {SPACY} is not installed and can't be: no package index: {done.stderr.splitlines()[-1]}"
        )
    raise AssertionError(f"pip could not install {requirements}:\n{done.stderr}")
