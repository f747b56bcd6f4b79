"""Always the live release: a new one is loaded beside the old, and takes over between two requests."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from spancat_daemon.errors import SpancatDaemonError, Vanished
from spancat_daemon.release.survey import CURRENT
from spancat_daemon.serving import forks
from spancat_daemon.serving.faults import brief
from spancat_daemon.serving.forks import locks
from spancat_daemon.serving.hindrance import Hindered, Retry, lacks
from spancat_daemon.serving.listing import absolute, hold_open, unreadable
from spancat_daemon.serving.litter import Litter
from spancat_daemon.serving.loading import read
from spancat_daemon.serving.milestone import Milestone
from spancat_daemon.serving.pulse import Pulse
from spancat_daemon.serving.served import Served
from spancat_daemon.serving.stamps import stamp_of, stamp_of_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from spacy.language import Language
    from spacy.tokens import Doc

    from spancat_daemon.release.survey import Release
    from spancat_daemon.serving.served import User
    from spancat_daemon.serving.stamps import Stamp

logger = logging.getLogger(__name__)

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_EXIT_PATIENCE_S = 30.0  # for a load under way: a thread that is killed in native code can take all down


class HotModel:
    """The live release of a deployment folder, changed under way; a context manager.

    ``hot(text)``, ``hot.pipe(texts)`` and ``with hot.use() as nlp:`` use one model from their beginning to
    their end. When another release becomes live, a thread loads it beside the one in use, lets it predict the
    warm-up texts, and puts it in its place for whoever begins after that. The old model and its lease are let
    go when its last user leaves, and its memory is collected at once.

    A release that can't be loaded changes nothing: the old one serves on, `on_error` is told once, and it is
    tried again only if a file of it, or what is live, changes. What only hindered it (no memory, descriptor
    or permission, a disk that fails) may pass: then it is tried after 1, 2, 4 … 64 s, too. Nor does a folder
    that vanishes change anything.

    Swaps are noticed in milliseconds, where the kernel tells of them; else within a second: on NFS, without
    an inotify watch to be had, or after the folder itself was moved or replaced. Reads only: it works in a
    read-only folder, and as another user.

    All methods may be called from any thread. In a forked child it goes on with what is loaded, and a thread
    of its own; a fork waits for a load under way (a minute at most). Callbacks come from that thread, one at
    a time; what they raise is logged. Whoever drops it without `close` ends it within a second.

    Args:
        folder: a rule's `deploy` folder. A relative path stays what it is when the process changes directory.
        warm_up: texts that a new model predicts before it serves.
        verify: whether to read every byte and compare its digest before each load.
        on_swap: called with the release that has taken over and the one before it (None at first).
        on_error: called with what is wrong with a release; the default logs it.
        spacy_load_kwargs: passed on to ``spacy.load``.

    Raises:
        TypeError: among them is ``vocab``, which would be changed under those who use the old model.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        warm_up: Iterable[str] = (),
        verify: bool = False,
        on_swap: Callable[[Release, Release | None], object] | None = None,
        on_error: Callable[[SpancatDaemonError], object] | None = None,
        **spacy_load_kwargs: Any,
    ) -> None:
        if "vocab" in spacy_load_kwargs:
            raise TypeError(
                "each model needs a vocab of its own: a new one is loaded while the old one serves"
            )
        self._folder: Path = absolute(folder)
        self._warm_up = tuple(warm_up)
        self._verify = verify
        self._options = spacy_load_kwargs
        self._on_swap = on_swap or _ignore
        self._on_error = on_error or _log
        self._current: Served | None = None
        self._retired: set[Served] = set()
        self._failed: Stamp | None = None
        self._error: SpancatDaemonError | None = None
        self._litter = Litter()
        self._closed = False
        self._tried, self._serving = Milestone(), Milestone()
        self._retry = Retry()
        with locks.state:  # no fork comes between
            self._start()
            forks.follow(self)

    # -- for those who predict --

    def __call__(self, text: str | Doc, **options: Any) -> Doc:
        """Do ``nlp(text)`` with the live release; raises what `use` does."""
        with self.use() as nlp:
            return nlp(text, **options)

    @overload
    def pipe(
        self, texts: Iterable[str | Doc], *, as_tuples: Literal[False] = ..., **options: Any
    ) -> Iterator[Doc]: ...

    @overload
    def pipe(
        self, texts: Iterable[tuple[str | Doc, Any]], *, as_tuples: Literal[True], **options: Any
    ) -> Iterator[tuple[Doc, Any]]: ...

    def pipe(self, texts: Iterable[Any], *, as_tuples: bool = False, **options: Any) -> Iterator[Any]:
        """Do ``nlp.pipe(texts)``, all with the release that is live when the first one is asked for.

        It is held until the iterator is exhausted, closed or garbage; raises what `use` does.
        """
        with self.use() as nlp:
            piped: Any = nlp.pipe  # its overloads know no plain bool
            yield from piped(texts, as_tuples=as_tuples, **options)

    def use(self) -> AbstractContextManager[Language]:
        """Use the live release's model, the same until the end of the ``with`` block; keep it no longer.

        Before the first attempt to load one is over, entering waits for that: in an event loop, ``await
        ready()`` first.

        Raises:
            SpancatDaemonError: on entering: none could be loaded yet, and why; or it is closed.
        """
        return self._use()

    @property
    def release(self) -> Release | None:
        """The release that serves, with its digests and labels in its manifest; None before the first."""
        with locks.state:
            return self._current.release if self._current is not None else None

    def wait(self, *, patience_s: float | None = 0.0) -> Release:
        """Wait until a release serves, and return it.

        Args:
            patience_s: seconds to wait on if the first attempt finds none that can be loaded; None: for ever.

        Raises:
            SpancatDaemonError: none could be loaded, and why; or it was closed.
        """
        self._tried.wait(None)
        if self.release is None:
            self._serving.wait(patience_s)
        return self._outcome()

    async def ready(self, *, patience_s: float | None = 0.0) -> Release:
        """Do `wait` without blocking the event loop."""
        await self._tried.reached(None)
        if self.release is None:
            await self._serving.reached(patience_s)
        return self._outcome()

    def close(self) -> None:
        """Stop watching; the model is let go as soon as nobody uses it any more. Harmless if it is closed."""
        with locks.state:
            if self._closed:
                return
            self._closed = True
            self._pulse.stop()  # before it is woken to collect what is let go: it must not load it anew
            self._replace(None)
        self._conclude()
        self.stop(None)
        self._litter.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for this package --

    def stop(self, timeout_s: float | None) -> None:
        """End the thread; a load under way comes to its end first."""
        self._pulse.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def after_fork(self) -> None:
        """Go on in a forked child: only this thread's uses last, and a thread of its own watches."""
        self._pulse.close()
        self._tried, self._serving = Milestone(), Milestone()
        with locks.state:
            for served in filter(None, [self._current, *self._retired]):
                served.forget_other_threads()
            self._tidy()
        if self._closed or self._current is not None:
            self._conclude()
        if not self._closed:
            try:
                self._start()
            except (OSError, RuntimeError) as error:  # no descriptor or no thread is left
                self._fail(SpancatDaemonError(f"can't be followed in this process: {brief(error)}"), ())

    def look(self) -> None:
        """Load what is live, if it is not what serves; called by the watching thread only."""
        self._litter.collect()
        try:
            fd = os.open(self._folder / CURRENT, _DIRECTORY)
            try:
                self._look_at(fd)
            finally:
                os.close(fd)
        except OSError as error:
            where = self._folder if isinstance(error, FileNotFoundError) else self._folder / CURRENT
            self._fail(unreadable(where, error), ((error.errno or 0,),))

    # -- the watching thread --

    def _start(self) -> None:
        self._pulse = Pulse(self._folder)
        self._thread = threading.Thread(
            target=_watch, args=(weakref.ref(self), self._pulse), name="spancat-hot-model", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            self._pulse.close()
            raise

    def _look_at(self, fd: int) -> None:
        stamp = stamp_of(fd)
        with locks.state:
            current, closed = self._current, self._closed
        if closed or (current is not None and current.stamp == stamp):
            self._failed = None
            return
        files = stamp_of_files(fd)
        if files == self._failed and not self._retry.due:
            return
        try:
            before, after = self._take_over(fd, stamp)
        except BaseException as error:  # noqa: BLE001  # a component's own code runs in it, which may exit
            if isinstance(error, Vanished) and self._moved_on(fd):
                self._pulse.wake()  # replaced and pruned meanwhile: what is live now counts
                return
            if not isinstance(error, SpancatDaemonError):
                error = SpancatDaemonError(f"can't be loaded: {brief(error)}", where=str(self._folder))
            hindered = isinstance(error, Hindered)
            if not hindered or files != self._failed:
                self._retry = Retry()
            if hindered:
                self._retry.put_off()
            self._fail(error, files)
            return
        self._failed = None
        self._conclude()
        if after is not None:
            _call(self._on_swap, after.release, before.release if before is not None else None)

    def _take_over(self, fd: int, stamp: Stamp) -> tuple[Served | None, Served | None]:
        """Load what was opened and let it take over; returns what served before and what does now."""
        with locks.loading:
            held = hold_open(self._folder, fd)
            try:
                nlp = read(held, verify=self._verify, options=self._options)
                self._warm(nlp, held.release)
            except BaseException:
                held.lease.release()
                raise
            fresh = Served(nlp, held, stamp)
            with locks.state:
                if self._closed:
                    fresh.let_go()
                    return None, None
                before = self._current
                self._replace(fresh)
                self._error = None
        return before, fresh

    def _warm(self, nlp: Language, release: Release) -> None:
        try:
            for _ in nlp.pipe(self._warm_up):
                pass
        except Exception as error:
            kind = Hindered if lacks(error) else SpancatDaemonError
            raise kind(
                f"fails to predict the warm-up texts: {brief(error)}", where=str(release.path)
            ) from error

    def _moved_on(self, fd: int) -> bool:
        with contextlib.suppress(OSError):
            return not os.path.samestat(os.fstat(fd), (self._folder / CURRENT).stat())
        return False

    def _fail(self, error: SpancatDaemonError, stamp: Stamp) -> None:
        with locks.state:
            self._error = error
        if self._failed == stamp:
            return
        self._failed = stamp
        self._conclude()
        _call(self._on_error, error)

    # -- who uses what --

    @contextlib.contextmanager
    def _use(self) -> Iterator[Language]:
        served, nlp, user = self._enter()
        try:
            yield nlp
        finally:
            del nlp
            with locks.state:
                served.leave(user)
                self._tidy()

    def _enter(self) -> tuple[Served, Language, User]:
        while True:
            with locks.state:
                if self._current is not None:
                    return (self._current, *self._current.enter())
            self.wait()

    def _replace(self, fresh: Served | None) -> None:
        """Put another one in the place of the current one; `locks.state` is held."""
        old, self._current = self._current, fresh
        if old is not None:
            old.retire()
            self._retired.add(old)
        self._tidy()

    def _tidy(self) -> None:
        """Let go of what nobody uses any more; `locks.state` is held."""
        for served in [served for served in self._retired if not served.in_use]:
            self._retired.discard(served)
            served.let_go()
            self._litter.add(served)
            self._pulse.wake()

    def _conclude(self) -> None:
        """Tell those who wait that the first attempt is over, and whether something serves."""
        self._tried.reach()
        if self._closed or self._current is not None:
            self._serving.reach()

    def _outcome(self) -> Release:
        with locks.state:
            current, error, closed = self._current, self._error, self._closed
        if current is not None:
            return current.release
        if closed or error is None:
            raise SpancatDaemonError("is closed", where=str(self._folder))
        raise SpancatDaemonError(error.reason, where=error.where, hint=error.hint) from error


def _watch(reference: weakref.ref[HotModel], pulse: Pulse) -> None:
    """Look, wait, and look again, for as long as the model is wanted."""
    hot = reference()
    while hot is not None and not pulse.stopped:
        hot.look()
        hot = None
        pulse.wait()
        hot = reference()
    pulse.close()


def _call(callback: Callable[..., object], *arguments: object) -> None:
    try:
        callback(*arguments)
    except BaseException:  # it is the application's, and must not end the watch, not even by sys.exit()
        logger.exception("a callback of HotModel failed")


def _ignore(_release: Release, _before: Release | None) -> None:
    pass


def _log(error: SpancatDaemonError) -> None:
    logger.error("what is live can't be served: %s", error)


@atexit.register
def _at_exit() -> None:
    for follower in forks.followers():
        if isinstance(follower, HotModel):
            follower.stop(_EXIT_PATIENCE_S)
