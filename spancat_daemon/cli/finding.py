"""What `check` says of one thing it looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from spancat_daemon.config.problems import Problem

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "warning" (works, but not as well as it could) or "error" (does not work).
        about: the rule, or the part of the configuration.
        text: what was found.
        hint: what to do about it; may be empty.
        where: ``file:line:column`` of what asks for it; may be empty.
    """

    level: Level
    about: str
    text: str
    hint: str = ""
    where: str = ""

    @classmethod
    def at(cls, level: Level, about: str, problem: Problem, hint: str = "") -> Finding:
        """A problem of the configuration, or of a file it names, that is no reason not to begin."""
        place = f"{problem.file}:{problem.line}:{problem.column}"
        return cls(level, about, problem.message, hint, place)

    def as_json(self) -> dict[str, Any]:
        """The finding as ``check --json`` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        """Everything but level and subject, in one line."""
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.text}{f'; {self.hint}' if self.hint else ''}"
