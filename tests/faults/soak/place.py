"""What a soak works on: its folder, the rules of its daemon and where everything lies."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL_BYTES: Final = 6 << 20


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, or one match of a glob.

    Attributes:
        name: as the daemon's log calls it.
        source: the checkpoint or spool, relative to the folder of the soak.
        deploy: the deployment folder, relative too.
        contents: what of the checkpoint is released.
        writer: who writes the source: the real training, its logger's spool, or a `writer` process.
    """

    name: str
    source: str
    deploy: str
    contents: Literal["pipeline", "component", "standalone"]
    writer: Literal["training", "spool", "rewritten"]


RULES: Final = (
    Rule("best", "training/output/model-best", "models/best", "pipeline", "training"),
    Rule("last", "training/output/model-last", "models/last", "component", "training"),
    Rule("spool", "training/output/spool", "models/spool", "pipeline", "spool"),
    Rule("runs/alpha", "runs/alpha/model-best", "served/alpha", "pipeline", "rewritten"),
    Rule("runs/beta", "runs/beta/model-best", "served/beta", "pipeline", "rewritten"),
    Rule("alone", "others/alone/model-last", "models/alone", "standalone", "rewritten"),
    Rule("small", "others/small/model-last", "small/models", "pipeline", "rewritten"),
)
_LIGHT: Final = {"runs/alpha", "runs/beta", "small"}
SAVED: Final = "served/alpha"
"""The folder that `save()` is called on besides."""

_TOML: Final = """\
[daemon]
state_dir = "var"
workers = 2
min_free = "64KiB"
reconcile_every = "10s"

[log]
level = "debug"
format = "json"
file = "daemon.log"

[[watch]]
name = "best"
source = "training/output/model-best"
deploy = "models/best"
verify = {{ level = "load", idle = "2s" }}

[[watch]]
name = "last"
source = "training/output/model-last"
deploy = "models/last"
contents = "component"
swap = "exchange"
verify = {{ level = "structure" }}
keep = {{ last = 3 }}

[[watch]]
name = "spool"
source = "training/output/spool"
deploy = "models/spool"
writer = "spool"
verify = {{ level = "structure" }}
schedule = [{spool_schedule}]

[[watch]]
name = "runs"
source = "runs/*/model-best"
deploy = "served/{{1}}"
verify = {{ level = "structure" }}
keep = {{ last = {last} }}
schedule = [{runs_schedule}]

[[watch]]
name = "alone"
source = "others/alone/model-last"
deploy = "models/alone"
contents = "standalone"
verify = {{ level = "load", idle = "2s" }}
keep = {{ last = 2 }}

[[watch]]
name = "small"
source = "others/small/model-last"
deploy = "small/models"
swap = "exchange"
poll = "500ms"
verify = {{ level = "structure" }}
keep = {{ last = 2 }}
keep_rejected = 1
"""
_MISTAKE: Final = "\n[[watch]]\nname = 7\nsauce = 'runs'\n"


class Place:
    """The folder of a soak; a context manager that mounts its small disk, as root, and unmounts it."""

    def __init__(self, folder: Path, *, light: bool = False) -> None:
        """Nothing is made yet.

        Args:
            folder: an empty directory.
            light: leave out the training and all that needs a loader, which import spaCy for seconds.
        """
        self.folder = folder
        self.light = light
        self.rules = tuple(rule for rule in RULES if not light or rule.name in _LIGHT)
        self.config = folder / "daemon.toml"
        self.log = folder / "daemon.log"
        self.control = folder / "var/control.sock"
        self.small = folder / "small"
        self.reports = folder / "reports"
        self.has_small_disk = os.geteuid() == 0

    def __enter__(self) -> Self:
        for part in ("training", "runs", "others", "small", "reports", "journals"):
            (self.folder / part).mkdir()
        if self.has_small_disk:
            options = f"size={SMALL_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "soak", self.small], check=True)
        self.configure(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.has_small_disk:
            subprocess.run(["umount", "--lazy", self.small], check=True)

    def configure(self, variant: int, *, wrong: bool = False, scheduled: bool = True) -> None:
        """Write daemon.toml, one of many; or one that is to be refused, or one without schedules."""
        forced = str(variant % 2 == 0).lower()
        text = _TOML.format(
            last=1 + variant % 3,
            runs_schedule=f'{{ every = "{3 + variant % 5}s", force = {forced} }}' if scheduled else "",
            spool_schedule='{ every = "7s", force = true }' if scheduled else "",
        )
        begun = self.config.with_suffix(".new")
        begun.write_text(text + (_MISTAKE if wrong else ""))
        begun.replace(self.config)

    def source(self, rule: Rule) -> Path:
        return self.folder / rule.source

    def deploy(self, rule: Rule) -> Path:
        return self.folder / rule.deploy

    def journal(self, rule: Rule) -> Path:
        """Where a `writer` says what it writes."""
        return self.folder / "journals" / f"{rule.name.replace('/', '-')}.jsonl"

    def logs(self) -> Iterator[Path]:
        """The log files, the oldest first."""
        yield from sorted(self.folder.glob("daemon.log.*"))
        if self.log.exists():
            yield self.log
