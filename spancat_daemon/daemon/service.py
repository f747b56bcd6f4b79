"""The service: start, loop, stop.

Everything that other threads and signals have to say is a flag and a wake-up; the loop of :class:`Service`
alone decides. That keeps reload, stop and new run directories free of races by construction.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import sys
import time
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from spancat_daemon import __version__
from spancat_daemon.config.expand import targets
from spancat_daemon.config.load import load
from spancat_daemon.config.problems import ConfigurationError
from spancat_daemon.daemon.control import ControlServer
from spancat_daemon.daemon.dispatch import Dispatcher
from spancat_daemon.daemon.holdings import Holdings
from spancat_daemon.daemon.requests import Requests
from spancat_daemon.daemon.scrub import Scrubber
from spancat_daemon.daemon.sparing import give_back
from spancat_daemon.daemon.watching import Lookout
from spancat_daemon.errors import ExitCode, SpancatDaemonError, UsageError
from spancat_daemon.observe import logs, systemd
from spancat_daemon.release import manifest
from spancat_daemon.verify.warm import WarmLoaders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import FrameType

    from spancat_daemon.config.model import Configuration
    from spancat_daemon.daemon.holdings import Held
    from spancat_daemon.deploying.deployment import Deployment
    from spancat_daemon.release.folder import Release
    from spancat_daemon.verify.digests import Finding

CHECK_EVERY_S = 2.0
"""How often watches and clocks are checked for the faults that no event tells of."""

CANARY_EVERY_S = 10.0

STOP_WITHIN_S = 8.0
"""What a snapshot under way gets to end or give up after SIGTERM; the whole stop must take less than 10 s."""


def serve(configuration_path: Path | None) -> int:
    """Runs the service until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: the configuration can't be used.
        UsageError: the state directory, the control socket or the log file can't be had.
    """
    configuration = load(configuration_path, references=True)
    _allow_descriptors()
    return Service(configuration, logs.configure(configuration.log)).run()


class Service:
    """The daemon of one configuration file."""

    def __init__(self, configuration: Configuration, output: logs.LogOutput) -> None:
        """Takes the configuration as loaded, and the log as configured from it."""
        self.configuration = configuration
        self.started_at = datetime.now(UTC)
        self.log = logs.get_logger()
        self._output = output
        self._inbox: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awake = False
        self._stop_signal = ""
        self._reopen = False
        self._reload_refused = False
        self._reloads: queue.SimpleQueue[Future[dict[str, Any]]] = queue.SimpleQueue()
        self._next_check_s = self._next_canary_s = self._next_reconcile_s = self._next_feed_s = 0.0
        self._ended_at_check = 0
        self._given_back = -1  # after so many snapshots; what the start itself freed goes back, too
        interval_s = systemd.watchdog_interval_s()
        self._feed_every_s = interval_s / 3 if interval_s else None
        self._loaders = WarmLoaders(at_most=_loaders_for(configuration))
        self.holdings = Holdings(
            log=self.log,
            has_logged=self._has_logged,
            loaders=self._loaders,
            wake=self.wake,
            state_dir=configuration.daemon.state_dir,
            control=configuration.daemon.control_socket,
        )
        self.dispatcher = Dispatcher(
            workers=configuration.daemon.workers, monotonic=time.monotonic, wake=self.wake, log=self.log
        )
        self._lookout = Lookout(wake=self.wake, log=self.log, state_dir=configuration.daemon.state_dir)
        self.schedule = self._lookout.schedule
        self._scrubber = Scrubber(
            deployments=self.holdings.opened,
            state_path=configuration.daemon.state_dir / "scrub.json",
            on_corrupted=self._corrupted,
            on_unreadable=self._unreadable_release,
            log=self.log,
        )
        self._requests = Requests(self)
        self._control: ControlServer | None = None

    def run(self) -> int:
        """Startup, loop, shutdown; returns the exit code."""
        with ExitStack() as ending:
            ending.callback(self._close_log)
            self._catch_signals(ending)
            self._start(ending)
            while not self._stop_signal:
                self._turn()
            systemd.notify_stopping(f"stopping after {self._stop_signal}")
        return ExitCode.DONE

    # -- what other threads may call ------------------------------------------------------------------------

    def wake(self) -> None:
        """Makes the loop turn at once; safe from any thread and from signal handlers."""
        if not self._awake:
            self._awake = True
            self._inbox.put(None)

    def reload(self) -> dict[str, Any]:
        """Has the loop take over the configuration file as it is now; waits for it.

        Raises:
            ConfigurationError: it can't be used; the old one goes on.
            SpancatDaemonError: something it names can't be had; the old one goes on.
        """
        answer: Future[dict[str, Any]] = Future()
        self._reloads.put(answer)
        self.wake()
        return answer.result()

    def _has_logged(self, rule: str, history_sha256: str) -> bool:
        return self._output.has_history(rule, history_sha256)

    def _corrupted(self, deployment: Deployment, release: Release, findings: Sequence[Finding]) -> None:
        faults = [str(finding) for finding in findings]
        heal = self.configuration.daemon.heal
        deployment.corrupted(release.id, release.path, faults, live=release.live, heal=heal)

    def _unreadable_release(self, deployment: Deployment, path: Path, reason: str, live: bool) -> None:
        release = (deployment.recorded_live if live else None) or path.name
        heal = self.configuration.daemon.heal
        deployment.corrupted(release, path, [reason], live=live, heal=heal)

    # -- startup --------------------------------------------------------------------------------------------

    def _catch_signals(self, ending: ExitStack) -> None:
        def stop(number: int, _frame: FrameType | None) -> None:
            self._stop_signal = signal.Signals(number).name
            self.wake()

        def reopen(_number: int, _frame: FrameType | None) -> None:
            self._reopen = True
            self.wake()

        for number, handler in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reopen)):
            ending.callback(signal.signal, number, signal.signal(number, handler))

    def _start(self, ending: ExitStack) -> None:
        configuration = self.configuration
        _make_directory(configuration.daemon.state_dir)
        self._control = self._listen(configuration)  # first: a second daemon has nothing to say in this log
        ending.callback(self._stop_listening)
        self.log.info(
            "daemon.started", version=__version__, pid=os.getpid(), configuration=configuration.path
        )
        ending.push(self._ended)
        ending.callback(self._loaders.close)
        ending.callback(self._release_folders)
        self._lookout.start(ending)
        ending.callback(self._end_work)  # the first to go, so that whoever waits at the socket has an answer
        self._scrubber.start()
        ending.callback(self._scrubber.stop)
        self._follow(hold=False)
        for deployment in self.holdings.all():
            self.dispatcher.flag(deployment.target.rule, "startup", routine=True)
        self._lookout.ask_overdue()
        self.dispatcher.turn()
        self.log.info("daemon.ready", rules=len(self.holdings), pid=os.getpid())
        systemd.notify_ready(self._summary())

    def _listen(self, configuration: Configuration) -> ControlServer:
        path = configuration.daemon.control_socket
        _make_directory(path.parent)
        control = ControlServer(path, self._requests.answer)
        control.start()
        return control

    # -- the loop -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        if self._reopen:
            self._reopen = False
            self._output.reopen()
        self._answer_reloads()
        self._raise_flags()
        if now >= self._next_check_s:
            self._next_check_s = now + CHECK_EVERY_S
            self._lookout.check()
            self._loaders.reap()
            self._give_back_if_at_rest()
        if now >= self._next_reconcile_s:
            if self._next_reconcile_s:
                self._follow(hold=False)
                for deployment in self.holdings.all():
                    if deployment.target.watch.on_change:
                        self._flag_changed(deployment.target.rule, routine=True)
            self._next_reconcile_s = now + self.configuration.daemon.reconcile_every
        if now >= self._next_canary_s:
            self._next_canary_s = now + CANARY_EVERY_S
            self._lookout.touch_canary()
        self._feed_watchdog(now)
        due_in_s = self.dispatcher.turn()
        ticks = [self._next_check_s, self._next_reconcile_s, self._next_canary_s]
        if self._feed_every_s:
            ticks.append(self._next_feed_s)
        wait_s = min(tick - time.monotonic() for tick in ticks)
        self._wait(wait_s if due_in_s is None else min(wait_s, due_in_s))

    def _give_back_if_at_rest(self) -> None:
        """What a burst of snapshots took of memory, once none has ended since the last check."""
        ended, before = self.dispatcher.ended, self._ended_at_check
        self._ended_at_check = ended
        if ended == before != self._given_back and self.dispatcher.at_rest:
            self._given_back = ended
            manifest.forget()
            give_back()

    def _wait(self, timeout_s: float) -> None:
        try:
            self._inbox.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return
        finally:
            self._awake = False

    def _raise_flags(self) -> None:
        asked = self._lookout.asked()
        if asked.matches:
            for deployment in self._follow(hold=False, vanished="stay"):
                self._flag_changed(deployment.target.rule)
        for rule in asked.changed:
            self._flag_changed(rule)
        for rule, force in asked.due:
            self.dispatcher.flag(rule, "schedule", forced=force)

    def _flag_changed(self, rule: str, *, routine: bool = False) -> None:
        self.dispatcher.flag(rule, self._lookout.trigger(rule), routine=routine)

    def _feed_watchdog(self, now: float) -> None:
        if self._feed_every_s is None or now < self._next_feed_s:
            return
        self._next_feed_s = now + self._feed_every_s
        stale = self.stale()
        if stale:
            systemd.notify_status(f"not well: {stale}")
        else:
            systemd.notify_watchdog()
            systemd.notify_status(self._summary())

    def stale(self) -> str:
        """Which trigger shows no sign of life; empty if all do."""
        return self._lookout.stale()

    def dropped_log_lines(self) -> int:
        """Lines of the log that were lost and not told of yet."""
        return self._output.dropped

    def _summary(self) -> str:
        held = self.holdings
        refused = "; the last reload was refused" if self._reload_refused else ""
        return f"watching {len(held)} checkpoint{'' if len(held) == 1 else 's'}{refused}"

    # -- configuration --------------------------------------------------------------------------------------

    def _follow(
        self,
        *,
        hold: bool,
        configuration: Configuration | None = None,
        vanished: Literal["stay", "go"] = "go",
    ) -> Sequence[Held]:
        """Makes what is watched, scheduled and deployed agree with a configuration; the new before the old.

        Args:
            hold: take each new folder now, and change nothing if one can't be taken.
            configuration: a new one; None: as before.
            vanished: what becomes of matches of a glob that are not there now. They "stay" where the reason
                to look was an event: `spacy train` takes model-best away whenever it replaces it.

        Returns:
            The deployments that are new or changed.
        """
        chosen = configuration or self.configuration
        wanted = targets(chosen, unreadable=self._lookout.tidings.unreadable)
        if vanished == "stay":
            present = {target.rule for target in wanted}
            held = [deployment.target for deployment in self.holdings.all()]
            wanted += [target for target in held if target.rule not in present]
        changed, dropped = self.holdings.follow(wanted, min_free_bytes=chosen.daemon.min_free, hold=hold)
        self.configuration = chosen
        self._scrubber.configure(every_s=chosen.daemon.scrub_every, rate_bytes=chosen.daemon.scrub_rate)
        self._lookout.follow(chosen, wanted)
        self.dispatcher.keep(self.holdings.all())
        for deployment in dropped:
            deployment.abandon()
            deployment.close()
            self.log.info("watch.ended", rule=deployment.target.rule, source=deployment.target.source)
        return changed

    def _answer_reloads(self) -> None:
        while not self._reloads.empty():
            answer = self._reloads.get()
            try:
                answer.set_result(self._reload())
            except (SpancatDaemonError, OSError) as error:
                self._tell_refused(error)
                self._reload_refused = True
                systemd.notify_ready(self._summary())
                answer.set_exception(error)

    def _tell_refused(self, error: SpancatDaemonError | OSError) -> None:
        if isinstance(error, ConfigurationError):
            problems = [f"{at.file}:{at.line}:{at.column}: {at.message}" for at in error.problems]
            reason = problems[0] if len(problems) == 1 else f"{len(problems)} problems"
            self.log.error("daemon.reload_refused", reason=reason, problems=problems)
        else:
            self.log.error("daemon.reload_refused", reason=str(error))

    def _reload(self) -> dict[str, Any]:
        systemd.notify_reloading()
        fresh = load(self.configuration.path, references=True)
        old = self.configuration
        if fresh.daemon.state_dir != old.daemon.state_dir:
            raise UsageError(
                f"state_dir changed from {old.daemon.state_dir} to {fresh.daemon.state_dir}",
                where=str(fresh.path),
                hint="that takes a restart",
            )
        with ExitStack() as undo:
            control = None
            if fresh.daemon.control_socket != old.daemon.control_socket:
                control = self._listen(fresh)
                undo.callback(control.close)
            if fresh.log != old.log:
                self._output = logs.configure(fresh.log)
                undo.callback(self._relog, old)
            changed = self._follow(hold=True, configuration=fresh)
            undo.pop_all()
        if control is not None:
            self.holdings.reachable_at(control.path)
            self._stop_listening()
            self._control = control
        self.dispatcher.resize(fresh.daemon.workers)
        self._loaders.resize(_loaders_for(fresh))
        self._next_reconcile_s = min(self._next_reconcile_s, time.monotonic() + fresh.daemon.reconcile_every)
        for deployment in changed:
            self.dispatcher.flag(deployment.target.rule, "startup")
        rules = [deployment.target.rule for deployment in self.holdings.all()]
        self.log.info("daemon.reloaded", configuration=fresh.path, rules=len(rules))
        self._reload_refused = False
        systemd.notify_ready(self._summary())
        return {"rules": rules}

    def _relog(self, configuration: Configuration) -> None:
        self._output = logs.configure(configuration.log)

    # -- shutdown -------------------------------------------------------------------------------------------

    def _stop_listening(self) -> None:
        if self._control is not None:
            self._control.close()

    def _end_work(self) -> None:
        until_s = time.monotonic() + STOP_WITHIN_S
        stuck = set(self.dispatcher.stop(STOP_WITHIN_S))
        while not self._reloads.empty():
            self._reloads.get().set_exception(SpancatDaemonError("the daemon stops"))
        for held in self.holdings.all():
            if not held.comes_to_rest(max(until_s - time.monotonic(), 0.0)):
                stuck.add(held.target.rule)
        if stuck:
            # The next start's recovery removes what they leave; waiting longer would get us killed anyway
            self.log.warning("daemon.stopped", signal=self._stop_signal, abandoned=sorted(stuck))
            self._output.close()
            sys.stdout.flush()
            os._exit(ExitCode.DONE)

    def _release_folders(self) -> None:
        for deployment in self.holdings.all():
            deployment.close()

    def _close_log(self) -> None:
        self._output.close()  # the one in use now: a reload exchanges it

    def _ended(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is not None:
            self.log.error("daemon.failed", reason=str(error) or repr(error), error=error)
        self.log.info("daemon.stopped", signal=self._stop_signal)


def _loaders_for(configuration: Configuration) -> int:
    """How many snapshots are loaded at once: one that hangs until its limit must not keep all others."""
    return max(configuration.daemon.workers, 2)


def _allow_descriptors() -> None:
    """Each folder that is held takes two, and the usual soft limit of 1,024 is there for select(2) alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a sandbox that doesn't let us: fewer folders, then
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise UsageError(
            f"can't make this directory: {error.strerror}",
            where=str(path),
            hint="create it, or name another one in [daemon]",
        ) from error
