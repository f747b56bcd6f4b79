"""A real training with the SnapshotLogger, killed again and again, and what the daemon makes of it."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.faults.judge import judge
from tests.faults.report import tally
from tests.integration.training.running import entries
from tests.service import Daemon, configure, until
from tests.spooling import digests
from tests.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

LOGGER = """
[training.logger]
@loggers = "spancat_daemon.SnapshotLogger.v1"
every_steps = 1
spool_keep = 100000
"""
RULES = """
[[watch]]
name = "best"
source = "training/output/model-best"
deploy = "models/best"
verify = { level = "structure" }
[watch.keep]
[[watch]]
name = "last"
source = "training/output/model-last"
deploy = "models/last"
verify = { level = "structure" }
[watch.keep]
"""


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_whatever_is_published_was_saved_as_a_whole(tmp_path: Path, rounds: int) -> None:
    config = configure(
        tmp_path, source="training/output/spool", writer="spool", more="[watch.keep]", rules=RULES
    )
    chance = random.Random(rounds)  # noqa: S311  # moments, not secrets
    moment = threading.Event()
    spool = tmp_path / "training/output/spool"
    trainer = Trainer(tmp_path / "training", eval_frequency=4, more=LOGGER)
    with Daemon(config) as daemon:
        for _ in range(rounds):
            enough = len(list(spool.glob("new/*"))) + 2
            with trainer:
                until(lambda enough=enough: len(list(spool.glob("new/*"))) >= enough)  # type: ignore[misc]
                moment.wait(chance.uniform(0.0, 0.5))
                trainer.kill()
    promised = [digests(entry) for entry in entries(spool)]
    triggers: Counter[tuple[str, str]] = Counter()
    for rule, known in (
        ("products", promised),
        ("best", trainer.generations()),
        ("last", trainer.generations()),
    ):
        deploy = tmp_path / "models" / rule
        swaps = [event for event in daemon.events if event.get("rule") == rule]
        assert judge(deploy, known, log=swaps) == []
        triggers.update((rule, event["trigger"]) for event in swaps if "history_seq" in event)
    assert triggers["products", "signal"] == sum(n for (rule, _), n in triggers.items() if rule == "products")
    assert triggers["best", "signal"]
    loud = {event["event"] for event in daemon.events if event["level"] in {"error", "warning"}}
    assert loud <= {"checkpoint.torn"}
    tally("`kill -9` of a training that also fills a spool", rounds, "what is published was saved as a whole")
