"""Trainings in this process, small enough to run one per test, that are the same to the bit each time."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spacy import util
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from spacy.util import registry
from thinc.api import Adam, Config, Optimizer

from tests import trainer
from tests.service import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from spacy.language import Language

    Info = dict[str, Any] | None
    Block = dict[str, Any]

NAME: Final = "spancat_daemon.SnapshotLogger.v1"
STEPS: Final = 11
EVERY: Final = 4  # steps between two evaluations


class Watcher:
    """What a test puts into a training: a logger to be wrapped, a callback before each save, an optimizer."""

    def __init__(self) -> None:
        self.nlp: Language
        self.optimizer: Optimizer = Adam(0.01)
        self.steps: list[Info] = []
        self.on_setup: Callable[[], object] = lambda: None
        self.on_step: Callable[[Info], object] = lambda _info: None
        self.on_final: Callable[[], object] = lambda: None
        self.before_to_disk: Callable[[Language], Language] = lambda nlp: nlp

    def logger(self, nlp: Language, *_streams: object) -> tuple[Callable[[Info], None], Callable[[], None]]:
        self.nlp = nlp
        self.on_setup()

        def log_step(info: Info) -> None:
            self.steps.append(info)
            self.on_step(info)

        return log_step, lambda: (self.on_final(), None)[1]


@contextmanager
def registered(watcher: Watcher) -> Iterator[None]:
    """Have its parts under the names that `trained` gives them."""
    registry.loggers("test.watcher")(lambda: watcher.logger)
    registry.callbacks("test.watcher")(lambda: watcher.before_to_disk)
    registry.optimizers("test.watcher")(lambda: _fresh(watcher))
    yield


def _fresh(watcher: Watcher) -> Optimizer:
    watcher.optimizer = Adam(0.01, use_averages=watcher.optimizer.averages is not None)
    return watcher.optimizer


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that is over.

    Attributes:
        nlp: what it returned; None if it raised.
        raised: what it raised.
        stderr: what it wrote there.
        output: where it saved.
    """

    nlp: Language | None
    raised: BaseException | None
    stderr: str
    output: Path

    def result(self) -> dict[str, str]:
        """What it left in its output: digest by path, without what says how quick it was, and the logger."""
        found = {}
        for file in sorted(self.output.glob("model-*/**/*")):
            if file.is_file():
                found[file.relative_to(self.output).as_posix()] = _digest(file)
        return found


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if file.name == "meta.json":
        meta = json.loads(content)
        meta.pop("spancat_daemon", None)
        content = json.dumps(meta).encode()
    if file.name == "config.cfg":
        config = util.load_config(file)
        del config["training"]["logger"]
        content = config.to_bytes()
    return hashlib.sha256(content).hexdigest()


def trained(
    output: Path | None,
    watcher: Watcher,
    settings: Block | None = None,
    *,
    change: Callable[[Any], object] = lambda _config: None,
    stderr: Any = None,
) -> Trained:
    """Train, with our logger around the watcher's if it has settings, else with the watcher's alone."""
    config = Config().from_str(trainer._CONFIG, interpolate=False)
    config["paths"]["data"] = str(trainer.corpus())
    training = config["training"]
    training.update(max_steps=STEPS, eval_frequency=EVERY)
    training["optimizer"] = {"@optimizers": "test.watcher"}
    training["before_to_disk"] = {"@callbacks": "test.watcher"}
    logger = {"@loggers": "test.watcher"}
    training["logger"] = logger if settings is None else {"@loggers": NAME, "logger": logger, **settings}
    change(config)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    err = io.StringIO() if stderr is None else stderr
    nlp, raised = None, None
    with registered(watcher):
        ready = init_nlp(config)
        try:
            nlp, _ = train(ready, output, stdout=io.StringIO(), stderr=err)
        except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt, too
            raised = error
    said = err.getvalue() if isinstance(err, io.StringIO) and not err.closed else ""
    return Trained(nlp, raised, said, output or trainer.corpus())


def signal(output: Path) -> Block | None:
    """What the signal file says now."""
    try:
        said: Block = json.loads((output / "written.json").read_bytes())
    except FileNotFoundError:
        return None
    return said


def wait_for_entry(spool: Path, step: int) -> None:
    """Wait until the entry of a step is there, so that none is dropped on a machine that is busy."""
    until(lambda: any(spool.glob(f"new/*-{step:09d}-*")), what=f"no entry of step {step}")


def entries(spool: Path) -> list[Path]:
    """Each entry of a spool, oldest first; asserts that it is exactly what its entry.json says."""
    found = sorted((spool / "new").iterdir())
    for entry in found:
        whole(entry)
    return found


def whole(entry: Path) -> Block:
    """Asserts that an entry is exactly what its entry.json says, which is returned."""
    said: Block = json.loads((entry / "entry.json").read_bytes())
    there = {file.relative_to(entry).as_posix() for file in entry.rglob("*") if file.is_file()}
    assert there == {*said["files"], "entry.json"}
    for path, digest in said["files"].items():
        content = (entry / path).read_bytes()
        assert digest == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}, path
    return said
