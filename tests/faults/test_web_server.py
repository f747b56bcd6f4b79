"""A real web server that follows a real daemon, asked without a pause while what is live changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import spacy

from spancat_daemon.release import lease
from tests.faults.report import tally
from tests.judgement import sound
from tests.pipelines import build, texts
from tests.service import Daemon, configure
from tests.web_server import Load, Server

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTLED = 10  # swaps until the memory of a server is what it stays
FLAT = 1.1
CONNECTIONS = 6
_ANSWER = "each is of one release as a whole, none an error, and no connection goes back to an older one"
_SWAP = "each is followed, and what is old let go of; from the tenth on memory stays within 10 %"
TEXTS = [texts()[0], texts()[3], texts()[4]]  # short, and all with spans


@dataclass(frozen=True)
class Model:
    """A checkpoint, and what the server says for each text if this is what serves."""

    path: Path
    says: list[str]

    @classmethod
    def built(cls, path: Path, *, seed: int, prefix: str) -> Model:
        nlp = spacy.load(build("default", path, seed=seed, steps=60))
        pipe: Any = nlp.get_pipe("spancat")
        pipe.cfg["labels"] = [f"{prefix}{label}" for label in pipe.cfg["labels"]]
        shutil.rmtree(path)
        nlp.to_disk(path)
        return cls(path, [_said(nlp(text)) for text in TEXTS])


def _said(doc: Any) -> str:
    group = doc.spans["sc"]
    found = [
        {"start": span.start_char, "end": span.end_char, "label": span.label_, "score": float(score)}
        for span, score in zip(group, group.attrs.get("scores", []), strict=True)
    ]
    return json.dumps({"spans": found}, separators=(",", ":"), ensure_ascii=False)[1:]


def resident_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


class Runs:
    """A directory of checkpoints, in which one of two is ``model-best``."""

    def __init__(self, folder: Path, models: Sequence[Model]) -> None:
        self._best = folder / "model-best"
        self._models = models
        self._best.parent.mkdir()
        self._which = len(models)

    def next(self) -> Model:
        """Put the other one in place."""
        if self._best.exists():
            self._best.rename(self._models[self._which % 2].path)
        self._which += 1
        model = self._models[self._which % 2]
        model.path.rename(self._best)
        return model


@pytest.mark.parametrize(
    ("swaps", "requests"),
    [
        pytest.param(25, 2_500, id="sample"),
        pytest.param(50, 50_000, id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_every_answer_is_of_one_of_the_releases_as_a_whole(tmp_path: Path, swaps: int, requests: int) -> None:
    models = [
        Model.built(tmp_path / "first", seed=0, prefix="OLD_"),
        Model.built(tmp_path / "second", seed=1, prefix="NEW_"),
    ]
    assert all(one != other for one, other in zip(models[0].says, models[1].says, strict=True))
    runs = Runs(tmp_path / "runs", models)
    deploy = tmp_path / "models/products"
    config = configure(tmp_path, more="[watch.keep]\nlast = 1\n")
    published: dict[str, Model] = {}
    memory: list[list[int]] = []

    def publish() -> str:
        since = len(daemon.events)
        model = runs.next()
        names = {"release.published", "release.overwrite"}
        (event,) = daemon.wait(lambda event: event["event"] in names, since=since)
        published[event["release"]] = model
        return str(event["release"])

    with Daemon(config) as daemon:
        first = publish()
        with (
            Server(deploy, workers=2) as server,
            Load(server.port, TEXTS, connections=CONNECTIONS) as load,
        ):
            load.all_see(first)
            pids = server.pids
            assert len(pids) == 2
            for number in range(swaps):
                load.all_see(publish())
                load.until(lambda number=number: load.asked >= requests * (number + 1) // swaps)  # type: ignore[misc]
                memory.append([resident_kb(pid) for pid in pids])
            told = load.end()
            assert server.pids == pids
            server.end()
        held = [path.name for path in (deploy / "releases").iterdir() if lease.is_leased(path)]
        assert held == []
    # Each text got from each release one answer, however often it was asked
    answers = {(which, release): said for which, release, said, _ in told["answers"]}
    assert len(answers) == len(told["answers"])
    wrong = [key for key, said in answers.items() if said != published[key[1]].says[key[0]]]
    assert wrong == []
    # Each connection came from one to the next, and never back
    assert load.seen == [list(published)] * CONNECTIONS
    asked = sum(count for *_, count in told["answers"])
    assert asked >= requests
    sound(deploy)
    assert len(list((deploy / "releases").iterdir())) <= 3
    for of_one in zip(*memory[SETTLED:], strict=True):
        assert max(of_one) <= FLAT * min(of_one), of_one
    tally("answers of a web server that is asked without a pause", asked, _ANSWER)
    tally("swaps under the web server", swaps, _SWAP)
