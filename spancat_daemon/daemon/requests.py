"""What the control socket can be asked for."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

from spancat_daemon import __version__
from spancat_daemon.checkpoint.contents import Contents
from spancat_daemon.checkpoint.tree import shown
from spancat_daemon.config.expand import find_target
from spancat_daemon.daemon.control import NoSuchRoute
from spancat_daemon.deploying.refusal import Refused
from spancat_daemon.deploying.saves import Saved
from spancat_daemon.errors import Rejected, SpancatDaemonError, UsageError
from spancat_daemon.release import incoming
from spancat_daemon.release import manifest as manifests
from spancat_daemon.release.folder import FolderBusy
from spancat_daemon.release.staging import Abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from spancat_daemon.config.expand import Target
    from spancat_daemon.config.model import Configuration
    from spancat_daemon.daemon.dispatch import Dispatcher
    from spancat_daemon.daemon.holdings import Held, Holdings
    from spancat_daemon.deploying.deployment import Deployment
    from spancat_daemon.triggers.schedule import ScheduleTrigger


class Serving(Protocol):
    """What requests need of the service; all of it may be used from any thread."""

    configuration: Configuration
    started_at: datetime
    holdings: Holdings
    dispatcher: Dispatcher
    schedule: ScheduleTrigger

    def reload(self) -> dict[str, Any]:
        """Takes over the configuration file as it is now, or raises."""

    def stale(self) -> str:
        """Which trigger shows no sign of life; empty if all do."""

    def dropped_log_lines(self) -> int:
        """Lines of the log that were lost and not told of yet."""


class Requests:
    """Answers requests in the control server's threads."""

    def __init__(self, service: Serving) -> None:
        """Answers for `service`."""
        self._service = service
        self._routes: dict[tuple[str, str], Callable[[Mapping[str, Any]], Any]] = {
            ("GET", "/v1/status"): self._status,
            ("POST", "/v1/snapshot"): self._snapshot,
            ("POST", "/v1/save"): self._save,
            ("POST", "/v1/rollback"): lambda body: self._on_folder(
                body,
                lambda held: held.rollback(
                    _text(body, "release", optional=True), leaving=_text(body, "leaving", optional=True)
                ),
            ),
            ("POST", "/v1/promote"): self._promote,
            ("POST", "/v1/pin"): lambda body: self._on_folder(
                body, lambda held: held.keeping.pin(_text(body, "release"))
            ),
            ("POST", "/v1/unpin"): lambda body: self._on_folder(
                body, lambda held: held.keeping.unpin(_text(body, "release"))
            ),
            ("POST", "/v1/prune"): lambda body: self._on_folder(
                body, lambda held: held.keeping.prune(dry_run=_flag(body, "dry_run"))
            ),
            ("POST", "/v1/reload"): lambda _body: self._service.reload(),
        }

    def answer(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """The result of one request, fit for JSON.

        Raises:
            UsageError: there is no such route, rule or release, or the body lacks something.
            SpancatDaemonError: it could not be done.
        """
        route = self._routes.get((method, path))
        if route is None:
            raise NoSuchRoute(f"no such request: {method} {path}")
        return route(body)

    def _snapshot(self, body: Mapping[str, Any]) -> dict[str, Any]:
        rule = _text(body, "rule")
        target = find_target(self._service.configuration, rule)
        waiter = self._service.dispatcher.flag(target.rule, "manual", forced=_flag(body, "force"))
        result = waiter.result()
        return {"status": result.status, "release": result.release, "reason": result.reason}

    def _promote(self, body: Mapping[str, Any]) -> Any:
        release, force, reason = _text(body, "release"), _flag(body, "force"), _text(body, "reason")
        promoted = self._on_folder(body, lambda held: held.promote(release, force=force, reason=reason))
        self._service.dispatcher.mended(_text(body, "rule"))
        return promoted

    def _save(self, body: Mapping[str, Any]) -> dict[str, Any]:
        folder, contents = Path(_text(body, "deploy")), _text(body, "contents", optional=True)
        if contents not in {None, *get_args(Contents)}:
            raise UsageError(f"contents = {contents!r} is none of {', '.join(get_args(Contents))}")
        component, origin, name = (_text(body, key) for key in ("component", "origin", "incoming"))
        held = self._service.holdings.by_folder(folder)
        if held is None:
            raise FolderBusy("is not this daemon's any more", where=str(folder))
        with _explained(held.target), incoming.take(held.folder.incoming_path, name) as entry:
            saved = Saved(
                path=entry.path,
                origin=shown(origin),
                component=component,
                contents=cast("Contents | None", contents),
                force=_flag(body, "force"),
                again=_flag(body, "again"),
            )
            try:
                made = held.save(saved)
            except Abandoned as error:
                raise FolderBusy("the daemon stops", where=error.where) from error
            except Refused as error:  # with the findings of its own, which the asker gets as text
                raise Rejected(error.reason, where=error.where, hint=error.hint) from error
        self._service.dispatcher.mended(held.target.rule)
        return {
            "published": made.published,
            "release": made.release.id,
            "path": str(made.release.path),
            "manifest": manifests.dump(made.release.manifest).decode(),
        }

    def _on_folder(self, body: Mapping[str, Any], act: Callable[[Deployment], Any]) -> Any:
        service = self._service
        target = find_target(service.configuration, _text(body, "rule"))
        held = service.holdings.by_rule(target.rule)
        with _explained(target):
            if held is not None:
                return act(held)
            # A match of a glob whose source is gone: its folder is nobody's until somebody asks
            with service.holdings.open(
                target, min_free_bytes=service.configuration.daemon.min_free
            ) as opened:
                return act(opened)

    def _status(self, _body: Mapping[str, Any]) -> dict[str, Any]:
        service = self._service
        return {
            "daemon": {
                "pid": os.getpid(),
                "version": __version__,
                "configuration": str(service.configuration.path),
                "started_at": _instant(service.started_at),
                "uptime_s": round((datetime.now(UTC) - service.started_at).total_seconds(), 1),
                "unwell": service.stale(),
                "log_lines_dropped": service.dropped_log_lines(),
            },
            "rules": [self._rule_status(held) for held in service.holdings.all()],
        }

    def _rule_status(self, held: Held) -> dict[str, Any]:
        target = held.target
        lane = self._service.dispatcher.status(target.rule)
        next_run = self._service.schedule.next_run(target.rule)
        return {
            "rule": target.rule,
            "source": str(target.source),
            "deploy": str(target.deploy),
            "live": held.live_id(),
            "state": lane.state,
            "waiting": lane.waiting,
            "last_success": _ago(lane.last_success_s),
            "last_failure": _ago(lane.last_failure_s),
            "last_reason": lane.last_reason,
            "failures": lane.failures,
            "next_run": _instant(next_run) if next_run else None,
        }


@contextmanager
def _explained(target: Target) -> Iterator[None]:
    """Tells the asker of what the system refused."""
    try:
        yield
    except OSError as error:
        raise SpancatDaemonError(
            error.strerror or str(error), where=os.fsdecode(error.filename or target.deploy)
        ) from error


def _text(body: Mapping[str, Any], name: str, *, optional: bool = False) -> Any:
    value = body.get(name)
    if (isinstance(value, str) and "\0" not in value) or (optional and value is None):
        return value
    raise UsageError(f"the request needs {name!r}, a string" + " without NUL" * isinstance(value, str))


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if isinstance(value, bool):
        return value
    raise UsageError(f"{name!r} must be true or false")


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _ago(monotonic_s: float | None) -> str | None:
    """The wall-clock time of a monotonic one, by the wall clock as it is now."""
    if monotonic_s is None:
        return None
    return _instant(datetime.fromtimestamp(time.time() - (time.monotonic() - monotonic_s), tz=UTC))
