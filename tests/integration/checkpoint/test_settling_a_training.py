"""Whatever a real trainer does and wherever it stops: what is accepted is exactly one generation."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from spancat_daemon.checkpoint.settle import Settled, Unsettled, examine, file_clock_ns
from spancat_daemon.checkpoint.tree import Source
from spancat_daemon.errors import Moved, Rejected, Vanished
from tests.service import PATIENCE_S, until
from tests.trainer import Generation, Trainer

if TYPE_CHECKING:
    from pathlib import Path

_PAUSES = 24


def _copy(checkpoint: Path) -> Generation | str:
    """Take a copy as the daemon does: the digests of what was accepted, or why nothing was."""
    try:
        with Source.open(checkpoint) as source:
            settled = examine(source, writer="spacy", settle_s=0, now_ns=file_clock_ns)
            if isinstance(settled, Unsettled):
                return settled.kind
            return _accepted(settled)
    except (Moved, Rejected, Vanished) as error:
        return type(error).__name__


def _accepted(settled: Settled) -> Generation:
    copied = {}
    try:
        for file in settled.tree.files:
            proof, digest = settled.proofs[file.path](), hashlib.sha256()
            fd = settled.source.open_file(file)
            try:
                while chunk := os.read(fd, 64 << 10):
                    proof.feed(chunk)
                    digest.update(chunk)
            finally:
                os.close(fd)
            proof.finish()
            copied[file.path] = digest.hexdigest()
    finally:
        settled.source.unchanged(settled.tree)
    return copied


def test_every_accepted_copy_is_exactly_one_generation(tmp_path: Path) -> None:
    dice = random.Random(3)  # noqa: S311  # where to stop, not a secret
    outcomes: dict[str, Counter[str]] = {"model-last": Counter(), "model-best": Counter()}
    copies: dict[str, list[Generation]] = {"model-last": [], "model-best": []}
    finished = threading.Event()
    looks = pauses = 0

    def copy_on() -> None:
        nonlocal looks
        while not finished.is_set():
            looks += 1
            for name, found in copies.items():
                result = _copy(trainer.output / name)
                if isinstance(result, str):
                    outcomes[name][result] += 1
                elif not found or found[-1] != result:
                    found.append(result)

    with Trainer(tmp_path) as trainer:
        trainer.wait_for_checkpoint("model-best")
        copier = threading.Thread(target=copy_on)
        copier.start()
        try:
            # Also that it accepts: nearly every generation stands still long enough to be copied.
            while pauses < _PAUSES or min(map(len, copies.values())) < _PAUSES / 2:
                assert pauses < 20 * _PAUSES, outcomes
                pauses += 1
                time.sleep(dice.uniform(0.02, 0.3))  # lets the trainer get anywhere
                trainer.pause()
                until(lambda before=looks: looks > before + 3)  # type: ignore[misc]  # copies of what it left there
                trainer.resume()
        finally:
            finished.set()
            copier.join()
        trainer.kill()
        generations = trainer.generations()
    for name, found in copies.items():
        assert [copy for copy in found if copy not in generations] == [], (name, outcomes)
        assert outcomes[name]["Rejected"] == 0, outcomes


def test_the_end_of_a_training_is_accepted(tmp_path: Path) -> None:
    with Trainer(tmp_path, max_steps=4) as trainer:
        trainer.wait()
        generations = trainer.generations()
    assert _patient_copy(trainer.model_last) == generations[-1]
    assert _patient_copy(trainer.model_best) in generations


def test_ctrl_c_saves_once_more_and_that_is_accepted(tmp_path: Path) -> None:
    with Trainer(tmp_path, eval_frequency=4) as trainer:
        trainer.wait_for_checkpoint(saves=2)
        trainer.interrupt()
        assert _patient_copy(trainer.model_last) == trainer.generations()[-1]


def _patient_copy(checkpoint: Path) -> Generation | str:
    """Copy once the tick of the last write is over."""
    deadline = time.monotonic() + PATIENCE_S
    while (result := _copy(checkpoint)) == "busy" and time.monotonic() < deadline:
        time.sleep(0.001)
    return result
