"""The terms of a save into a folder that no daemon holds: those of a rule, where nothing else is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from pydantic import ValidationError

from spancat_daemon.checkpoint.contents import Contents
from spancat_daemon.config.expand import Target
from spancat_daemon.config.model import Keep, Verify, Watch
from spancat_daemon.errors import UsageError
from spancat_daemon.release import rejects

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spancat_daemon.release.folder import DeploymentFolder

Level = Literal["none", "structure", "load"]
_REJECTED_KEPT: Final = 3


@dataclass(frozen=True, slots=True)
class Terms:
    """What the caller asks for.

    Attributes:
        contents: what of the pipeline; None: as what is live has it, or all of it.
        keep: which releases stay; None: all of them.
        level: how it is seen to work; None: by loading it.
    """

    contents: Contents | None
    keep: Keep | None
    level: Level | None

    @classmethod
    def checked(cls, contents: str | None, keep: Mapping[str, Any] | Keep | None, level: str | None) -> Terms:
        """Take what a caller wrote.

        Raises:
            UsageError: it makes no sense.
        """
        for name, value, known in (
            ("contents", contents, get_args(Contents)),
            ("verify", level, get_args(Level)),
        ):
            if value is not None and value not in known:
                raise UsageError(f"{name} = {value!r} is none of {', '.join(map(repr, known))}")
        return cls(cast("Contents | None", contents), _kept(keep), cast("Level | None", level))

    @property
    def of_a_rule(self) -> tuple[str, ...]:
        """Which of them are a rule's to say, where there is one."""
        return (*(("keep",) if self.keep else ()), *(("verify",) if self.level else ()))

    def target(self, folder: DeploymentFolder, source: Path) -> Target:
        """What a rule for it would be, as the folder is now."""
        live, current = folder.live(), folder.current_state()
        watch = Watch(
            name="save",
            source="saved",  # nothing looks at it: `Target.source` is what is read
            deploy="here",
            contents=self.contents or cast("Contents", live.manifest.contents if live else "pipeline"),
            swap="exchange" if current.kind == "directory" else "symlink",
            keep=self.keep or Keep(last=0),
            keep_rejected=max(len(rejects.rejected(folder)), _REJECTED_KEPT),
            verify=Verify(level=self.level or "load"),
        )
        rule = live.manifest.rule if live else folder.path.name
        return Target(rule=rule, watch=watch, source=source, deploy=folder.path)


def _kept(keep: Mapping[str, Any] | Keep | None) -> Keep | None:
    if keep is None or isinstance(keep, Keep):
        return keep
    try:
        return Keep.model_validate(dict(keep) or {"last": 0})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"keep: {key}: {first['msg'].removeprefix('Value error, ')}",
            hint=f"its keys are {', '.join(Keep.model_fields)}, as in [watch.keep] of daemon.toml",
        ) from error
