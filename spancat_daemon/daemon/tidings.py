"""What triggers and the search for matches have to tell, as events of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.observe.logs import Logger
    from spancat_daemon.triggers.filesystem import WatchEvent
    from spancat_daemon.triggers.schedule import ScheduleEvent

_GOOD: Final = frozenset({"watch.started", "watch.restored"})


class Tidings:
    """Logs them; from any thread, but for `unreadable`, which is the searching one's."""

    def __init__(self, log: Logger) -> None:
        """Tells `log`."""
        self._log = log
        self._unreadable: dict[Path, int | None] = {}

    def watch(self, event: WatchEvent) -> None:
        """Something happened to a watch."""
        level = self._log.info if event.event in _GOOD else self._log.warning
        level(event.event, **_told(event))

    def schedule(self, event: ScheduleEvent) -> None:
        """Something went wrong with a schedule."""
        self._log.warning(event.event, **_told(event))

    def signal_ignored(self, rule: str, path: Path, reason: str) -> None:
        """What lies where a trainer says what it wrote is no such file."""
        self._log.warning(
            "watch.signal_ignored",
            rule=rule,
            path=path,
            reason=reason,
            hint="checkpoints are deployed all the same, as their files change",
        )

    def unreadable(self, path: Path, error: OSError) -> None:
        """A folder can't be searched for matches; told once for each reason."""
        if self._unreadable.get(path) != error.errno:
            self._log.warning(
                "watch.degraded", path=path, reason=error.strerror, hint="let the daemon list it"
            )
        self._unreadable[path] = error.errno


def _told(event: WatchEvent | ScheduleEvent) -> dict[str, Any]:
    """A trigger's event as fields of the log; some concern no rule in particular."""
    return {**({"rule": event.key} if event.key else {}), **event.fields}
