"""People who give the daemon orders while everything else goes on."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self

from spancat_daemon.errors import SpancatDaemonError
from tests.faults.judge import commits

if TYPE_CHECKING:
    from .actors import Actors

_EVERY_S: Final = 1.5
_ORDERS: Final = ("snapshot", "snapshot", "rollback", "pin", "unpin", "prune", "prune")
_STAYS_SMALL: Final = "small"
"""Where nothing is pinned, for its disk would be full."""


class Users:
    """Gives one order after the other; a context manager.

    Attributes:
        done: how often each order was carried out.
        refused: how often one was refused, or there was no daemon.
    """

    def __init__(self, actors: Actors, seed: int, *, every_s: float = _EVERY_S) -> None:
        self.done: Counter[str] = Counter()
        self.refused = 0
        self._actors = actors
        self._chance = random.Random(f"users {seed}")  # noqa: S311  # which order, not secrets
        self._every_s = every_s
        self._pinned: dict[str, list[str]] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._order)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _order(self) -> None:
        while not self._ends.wait(self._every_s * self._chance.uniform(0.2, 1.8)):
            rule, order, draw = (
                self._chance.choice(self._actors.place.rules),
                self._chance.choice(_ORDERS),
                self._chance.random(),
            )
            body: dict[str, Any] = {"rule": rule.name}
            if order == "snapshot":
                body["force"] = draw < 0.7
            elif order in {"pin", "unpin"}:
                pinned = self._pinned.setdefault(rule.name, [])
                order = "unpin" if len(pinned) > 1 else "pin"
                recent = [str(line["release"]) for line in commits(self._actors.place.deploy(rule))[-4:]]
                if not recent or rule.name == _STAYS_SMALL:
                    continue
                body["release"] = pinned.pop(0) if order == "unpin" else recent[int(draw * len(recent))]
                if order == "pin":
                    pinned.append(body["release"])
            try:
                self._actors.daemon.control.call("POST", f"/v1/{order}", body)
                self.done[order] += 1
            except SpancatDaemonError:
                self.refused += 1
