"""A real ``spacy train`` in a process of its own, that records the digest of every file of every save.

The recording is made by a ``before_to_disk`` callback, which saves the same pipeline to a folder of its own
first: what it records is what the trainer is about to write, before the first byte of it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Self

import spacy
from spacy.tokens import DocBin, Span, SpanGroup

from tests import pythons
from tests.once import once
from tests.service import PATIENCE_S, stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

Generation = dict[str, str]
"""SHA-256 of each file of one save, by relative path."""

_SENTENCES: Final = (
    ("Acme Corp opened an office in Berlin.", ((0, 2, "ORG"), (6, 7, "PLACE"))),
    ("The office in New York belongs to Globex.", ((3, 5, "PLACE"), (7, 8, "ORG"))),
    ("Globex sells doors in Paris.", ((0, 1, "ORG"), (2, 3, "GOODS"), (4, 5, "PLACE"))),
    ("Nothing of note happened today.", ()),
)

# A newer spaCy's corpus has no spans for an old one.
_OLD_CORPUS: Final = """\
import json, sys
import spacy
from spacy.tokens import DocBin, Span

nlp = spacy.blank("en")
docs = DocBin()
for text, spans in json.loads(sys.argv[2]) * 5:
    doc = nlp(text)
    doc.spans["sc"] = [Span(doc, *span) for span in spans]
    docs.add(doc)
docs.to_disk(sys.argv[1])
"""

_CALLBACKS: Final = """\
import hashlib, json, os, shutil, tempfile
from pathlib import Path
import spacy

@spacy.registry.callbacks("record.v1")
def record(journal: str):
    def before_to_disk(nlp):
        folder = Path(tempfile.mkdtemp(dir=Path(journal).parent))
        nlp.to_disk(folder)
        digests = {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*") if file.is_file()
        }
        shutil.rmtree(folder)
        with open(journal, "a") as lines:
            lines.write(json.dumps(digests) + "\\n")
        return nlp
    return before_to_disk
"""

_CONFIG: Final = """\
[paths]
data = null
journal = null

[system]
seed = 0

[nlp]
lang = "en"
pipeline = ["tok2vec","spancat"]

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.Tok2Vec.v2"

[components.tok2vec.model.embed]
@architectures = "spacy.MultiHashEmbed.v2"
width = ${components.tok2vec.model.encode.width}
attrs = ["NORM","SHAPE"]
rows = [200,100]
include_static_vectors = false

[components.tok2vec.model.encode]
@architectures = "spacy.MaxoutWindowEncoder.v2"
width = 24
depth = 1
window_size = 1
maxout_pieces = 2

[components.spancat]
factory = "spancat"

[components.spancat.model]
@architectures = "spacy.SpanCategorizer.v1"

[components.spancat.model.reducer]
@layers = "spacy.mean_max_reducer.v1"
hidden_size = 16

[components.spancat.model.scorer]
@layers = "spacy.LinearLogistic.v1"

[components.spancat.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = ${components.tok2vec.model.encode.width}

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${paths.data}

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = ${paths.data}

[training]
seed = ${system.seed}
gpu_allocator = null
dropout = 0.1
accumulate_gradient = 1
train_corpus = "corpora.train"
dev_corpus = "corpora.dev"
patience = 0
max_epochs = 0
max_steps = 0
eval_frequency = 2

[training.optimizer]
@optimizers = "Adam.v1"

[training.batcher]
@batchers = "spacy.batch_by_sequence.v1"
size = 4

[training.before_to_disk]
@callbacks = "record.v1"
journal = ${paths.journal}
"""


class Trainer:
    """A training of ``tok2vec`` and a ``spancat`` that listens to it; a context manager, which ends it.

    Args:
        folder: where it works; made if it is missing. The checkpoints are in ``folder/output``.
        eval_frequency: steps between two saves. Step 0 saves too.
        max_steps: after how many it ends by itself; 0: never.
        more: what comes after its configuration.
        code: what comes after the code that is given to it.
        python: another interpreter, to train with its spaCy.
        environ: environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *,
        eval_frequency: int = 2,
        max_steps: int = 0,
        more: str = "",
        code: str = "",
        python: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.model_last = self.output / "model-last"
        self.model_best = self.output / "model-best"
        self._eval_frequency = eval_frequency
        self._max_steps = max_steps
        self._more = more
        self._code = code
        self._python = python
        # What has nothing of ours in it is not measured: that takes half a second of processor time.
        uncounted = {} if "spancat_daemon" in more + code else {"COVERAGE_PROCESS_CONFIG": ""}
        self._environ = {**uncounted, **(environ or {})}
        self._journal = folder / "journal" / "generations.jsonl"
        self._log = folder / "train.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.kill()

    @property
    def running(self) -> bool:
        """Whether the process lives (stopped counts)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start training; the first save comes after two or three seconds."""
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.cfg").write_text(_CONFIG + self._more)
        (self.folder / "callbacks.py").write_text(_CALLBACKS + self._code)
        overrides = {
            "paths.data": corpus(self._python),
            "paths.journal": self._journal,
            "training.eval_frequency": self._eval_frequency,
            "training.max_steps": self._max_steps,
        }
        python = str(self._python or sys.executable)
        command = [python, "-m", "spacy", "train", "config.cfg", "--output", str(self.output)]
        command += ["--code", "callbacks.py"]
        command += [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **self._environ},
            )
        return self

    def wait_for_checkpoint(
        self, name: str = "model-last", *, saves: int = 1, timeout_s: float = PATIENCE_S
    ) -> Path:
        """Wait until a checkpoint was written whole, and at least ``saves`` generations were begun."""
        checkpoint = self.output / name
        self._wait(
            lambda: (checkpoint / "vocab/lookups.bin").exists() and len(self.generations()) >= saves,
            f"{saves} saves of {name}",
            timeout_s,
        )
        return checkpoint

    def pause(self) -> None:
        """SIGSTOP, wherever it is; returns when it has stopped."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until all its threads stand still, whoever stops it."""
        pid = self._running().pid
        self._wait(lambda: stopped(pid), "the trainer to stop", timeout_s)

    def resume(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        process = self._running()
        process.kill()
        process.wait()

    def interrupt(self, timeout_s: float = PATIENCE_S) -> None:
        """SIGINT, as Ctrl-C, also if it is stopped: it ends with one more save of model-last."""
        process = self._running()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        process.wait(timeout_s)

    def wait(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait for its end (with ``max_steps``), which must be a success."""
        process = self._running()
        if process.wait(timeout_s) != 0:
            raise AssertionError(f"the training failed:\n{self._log.read_text()}")

    def said(self) -> str:
        """What it has said so far, on standard output and error."""
        return self._log.read_text()

    def generations(self) -> list[Generation]:
        """Every state it has begun to save, oldest first; what was saved twice comes twice."""
        try:
            lines = self._journal.read_text().split("\n")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines[:-1]]  # after the last line break: a line being written

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise AssertionError("the training was not started")
        return self._process

    def _wait(self, reached: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            if not self.running:
                raise AssertionError(f"the training ended before {what}:\n{self._log.read_text()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} within {timeout_s} s:\n{self._log.read_text()}")
            time.sleep(0.002)


def corpus(python: Path | None = None) -> Path:
    """Return annotated documents to train on, in spaCy's own format; in that of another interpreter's."""
    if python is None:
        return once("corpus.spacy", _corpus)

    def make(file: Path) -> None:
        done = pythons.run(str(python), "-I", "-c", _OLD_CORPUS, str(file), json.dumps(_SENTENCES))
        assert done.returncode == 0, done.stderr

    return once(f"corpus-{hashlib.sha256(bytes(python)).hexdigest()[:8]}.spacy", make)


def _corpus(file: Path) -> None:
    nlp = spacy.blank("en")
    docs = DocBin()
    for text, spans in _SENTENCES * 5:
        doc = nlp(text)
        doc.spans["sc"] = SpanGroup(doc, spans=[Span(doc, *span) for span in spans])
        docs.add(doc)
    docs.to_disk(file)
