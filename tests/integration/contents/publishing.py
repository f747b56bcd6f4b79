"""A deployment held in this process, whose loader is kept, and what it was asked."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.deploying.deployment import Deployment
from spancat_daemon.verify.warm import WarmLoaders
from tests.service import configure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spancat_daemon.deploying.deployment import Result
    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.release.folder import Release
    from spancat_daemon.verify.child import Asked
    from spancat_daemon.verify.verdict import LoadVerdict


class Loaders(WarmLoaders):
    """Real ones."""

    def __init__(self) -> None:
        super().__init__(at_most=1)
        self.asked: list[Asked] = []

    def examine(self, asked: Asked, **terms: Any) -> LoadVerdict:
        self.asked.append(asked)
        return super().examine(asked, **terms)


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **_fields: Any) -> Self:
        return self

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = error = exception = info


class Scene:
    """A folder with a checkpoint in ``runs/model-best``, and the deployment of it."""

    def __init__(self, deployment: Deployment, log: Log) -> None:
        self.deployment = deployment
        self.log = log

    def look(self, *, force: bool = False) -> Result:
        """A snapshot, tried again as the daemon does while the checkpoint was written this very moment."""
        deadline = time.monotonic() + 120
        while True:
            result = self.deployment.snapshot("manual" if force else "change", force=force)
            if result.kind != "busy" or time.monotonic() > deadline:
                return result
            time.sleep(result.retry_after_s or 0.01)

    def publish(self, *, force: bool = False) -> Release:
        result = self.look(force=force)
        assert result.status == "published", result.reason
        return self.live

    @property
    def live(self) -> Release:
        live = self.deployment.folder.live()
        assert live is not None
        return live

    @property
    def left(self) -> list[Path]:
        """What lies in staging and in the trash."""
        folder = self.deployment.folder
        return [*folder.staging_path.iterdir(), *folder.trash_path.iterdir()]

    @property
    def rejections(self) -> list[str]:
        return [str(fields["reason"]) for event, fields in self.log.events if event == "snapshot.rejected"]


@contextmanager
def scene(folder: Path, loaders: WarmLoaders, **rule: Any) -> Iterator[Scene]:
    """Hold the deployment of a rule, whose keys are given beside the usual ones."""
    log = Log()
    (target,) = targets(load(configure(folder, **rule)))
    with Deployment(target, min_free_bytes=0, log=cast("Logger", log), loaders=loaders) as deployment:
        yield Scene(deployment, log)
