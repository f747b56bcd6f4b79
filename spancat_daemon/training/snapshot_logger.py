"""``spancat_daemon.SnapshotLogger.v1``: a training tells the daemon what it has saved, and saves more often.

    [training.logger]
    @loggers = "spancat_daemon.SnapshotLogger.v1"
    every_steps = 100

wraps another logger, and

- writes ``<output>/written.json`` after each save, also after the last one, which loggers are not told of,
- puts the step into the saved meta.json,
- with `every_steps` or `every_seconds`, puts whole pipelines into a spool between evaluations: ``new/`` of it
  only ever holds entries that are complete and on disk.

The training goes on as without it, to the bit, whatever happens here: what fails is said on the training's
standard error, once, and let be. It calls into the file system of the spool only from a thread of its own;
the training waits for no more than the copy of its parameters into memory.

Runs on Python 3.8 or newer with spaCy 3.2.2 or newer and needs nothing else: this file can be copied to where
the training runs and be given to it by ``spacy train --code snapshot_logger.py``.

Facts it stands on (spacy/training/loop.py and language.py, 3.2.2 to 3.8): each save is
``with nlp.use_params(optimizer.averages): before_to_disk(nlp).to_disk(output / "model-last")``; the averages
are one dictionary for the whole training; step 0 is saved; `log_step` comes after each step, once both
directories are written; the last save comes after `finalize`; components that are frozen are disabled while
the logger is set up.
"""

# No ``from __future__ import annotations``: spaCy makes the schema of [training.logger] from the real types.
import contextlib
import contextvars
import copyreg
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections import Counter, deque
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, Type

import srsly
from spacy.language import Language
from spacy.strings import StringStore
from spacy.training.loop import DIR_MODEL_BEST, DIR_MODEL_LAST
from spacy.util import registry
from thinc.api import Model

SIGNAL_FILE = "written.json"
ENTRY_FILE = "entry.json"
_STRINGS = "vocab/strings.json"
_META_KEY = "spancat_daemon"  # under it the daemon reads {"step": N} from meta.json
_SCHEMA = 1
_TIME = "%Y%m%dT%H%M%S.%fZ"
_DAY, _HOUR = "[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])", "([01][0-9]|2[0-3])([0-5][0-9]){2}"
_ENTRY = re.compile(_DAY + "T" + _HOUR + r"\.[0-9]{6}Z-[0-9]{9,}-[0-9]+")
_BENCH_LOCK = re.compile(r"bench-[0-9a-f]{16}\.lock")
_WAITING = 2  # copies in memory, beside the one that is being written
_END_S = 30.0  # how long the end of a training waits for the last of them

_LogStep = Callable[[Optional[Dict[str, Any]]], None]
_Finalize = Callable[[], None]
_Setup = Callable[..., Tuple[_LogStep, _Finalize]]


@registry.loggers("spancat_daemon.SnapshotLogger.v1")  # type: ignore[untyped-decorator]
def snapshot_logger(
    logger: Optional[Callable[..., Any]] = None,
    every_steps: int = 0,
    every_seconds: float = 0.0,
    spool: str = "spool",
    spool_keep: int = 3,
) -> Callable[..., Any]:
    """Return a logger that tells the daemon of each save, and itself saves between evaluations.

    Args:
        logger: a registered logger, which logs as without this one; None: spaCy's console logger.
        every_steps: put the pipeline into the spool whenever so many steps are done; 0: don't. It is the one
            that is trained, also where ``before_to_disk`` gives spaCy another one to save.
        every_seconds: or whenever so much time has passed since the last one; 0: don't.
        spool: its folder, relative to the training's output folder.
        spool_keep: how many entries stay in it, at least 1.
    """
    wrapped: _Setup = logger or _console_logger()

    def setup(nlp: Language, stdout: IO[str] = sys.stdout, stderr: IO[str] = sys.stderr) -> Any:
        hooks = wrapped(nlp, stdout, stderr)
        voice = _Voice(stderr)
        try:
            training = _Training(nlp, voice, every_steps, every_seconds, spool, spool_keep)
        except Exception as error:  # noqa: BLE001  # whatever it is, the training goes on
            voice.say(f"the training goes on without it: {type(error).__name__}: {error}")
            return hooks
        return training.around(*hooks)

    return setup


def _console_logger() -> _Setup:
    """Return the one that spaCy uses by default, or a later one, should that be gone."""
    found: Optional[_Setup] = None
    for version in ("v1", "v2", "v3"):
        # To look for one that is missing loads them all, and fails where any of them is broken
        with contextlib.suppress(Exception):
            found = found or registry.get("loggers", f"spacy.ConsoleLogger.{version}")()
    return found or _silent


def _silent(*_: Any) -> Tuple[_LogStep, _Finalize]:
    return lambda _: None, lambda: None


class _Voice:
    """Says each kind of trouble once, where the training shows it; counts the rest."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._times: Counter[str] = Counter()

    def say(self, text: str) -> None:
        with contextlib.suppress(Exception):  # a closed standard error stops no training
            print("spancat-daemon: " + text, file=self._stream, flush=True)

    def say_once(self, text: str) -> None:
        self._times[text] += 1
        if self._times[text] == 1:
            self.say(text)

    @contextlib.contextmanager
    def swallowing(self, what: str) -> Iterator[None]:
        """Let no error out of the block but those that are to end the program."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, the training goes on
            self._times[what] += 1
            if self._times[what] == 1:
                self.say(f"{what}: {type(error).__name__}: {error}")

    def total(self) -> None:
        for what, times in self._times.items():
            if times > 1:
                self.say(f"{times} times: {what}")


class _Training:
    """One training under way: which step it is at, where it saves, and with which averages."""

    def __init__(
        self,
        nlp: Language,
        voice: _Voice,
        every_steps: int,
        every_seconds: float,
        spool: str,
        spool_keep: int,
    ) -> None:
        self._nlp = nlp
        self._voice = voice
        self._every_steps = every_steps
        self._every_s = every_seconds
        self._spool_name = spool
        self._keep = max(1, spool_keep)
        self._pid = os.getpid()
        self._logged = -1  # the last step that the logger was told of
        self._final = False
        self._in_wrapped = False
        self._averages: Optional[Dict[Any, Any]] = None
        self._output: Optional[Path] = None
        self._blocks = 0  # how many use_params are open
        self._saved: Optional[Path] = None
        self._saved_step = -1
        self._spool: Optional[_Spool] = None
        self._last_s = time.monotonic()
        self._config = b""
        self._strings: List[str] = []
        self._parts, self._not_parts = _trained(nlp)
        self._kind: Type[Language] = getattr(type(nlp), "_kind", type(nlp))  # watched: it ended in mid-air
        nlp.__class__ = _watched(self._kind, self)

    # What the loop calls -----------------------------------------------------------------------------------

    def around(self, log_step: _LogStep, finalize: _Finalize) -> Tuple[_LogStep, _Finalize]:
        """Return both, each called after what is to be done here; what they raise goes through."""

        def log(info: Optional[Dict[str, Any]] = None) -> None:
            self._logged = info["step"] if info and "step" in info else self._logged + 1
            self._in_wrapped = True
            with self._voice.swallowing("could not tell the daemon of a save"):
                self._evaluated(info)
            with self._voice.swallowing("could not save between evaluations"):
                self._between(info)
            log_step(info)
            self._in_wrapped = False

        def end() -> None:
            self._final = self._in_wrapped = True
            try:
                finalize()
            except BaseException:
                self._close()  # spaCy does not save any more
                raise
            self._in_wrapped = False
            if self._logged >= 0 and self._output is None:
                self._close()  # spaCy saves nothing at all

        return log, end

    @contextlib.contextmanager
    def using(self, params: Optional[Dict[Any, Any]]) -> Iterator[None]:
        """Around each ``use_params`` of the pipeline: evaluations and saves."""
        if self._in_wrapped or os.getpid() != self._pid or self._blocks:
            yield
            return
        self._averages = params
        self._stamp()  # a copy that before_to_disk makes has it, too
        self._blocks += 1
        self._saved = None
        try:
            yield
        except BaseException:
            self._blocks -= 1
            if self._final:
                self._close()
            raise
        self._blocks -= 1
        self._tell_of_save()
        if self._final:
            self._close()

    def saving(self) -> None:
        """Before each ``to_disk`` of the pipeline."""
        if os.getpid() == self._pid:
            self._stamp()

    def saved(self, path: Any) -> None:
        """After each ``to_disk`` of the pipeline that succeeded."""
        with self._voice.swallowing("could not tell the daemon of a save"):
            folder = Path(os.path.abspath(str(path)))  # noqa: PTH100  # pathlib's would follow links
            if self._in_wrapped or os.getpid() != self._pid or folder.name != DIR_MODEL_LAST:
                return
            if self._logged < 0 or self._output == folder.parent:  # from step 0 on it is known where
                self._saved = folder
        if not self._blocks:
            self._tell_of_save()

    # The signal --------------------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        """The step that what is saved now belongs to."""
        return max(0, self._logged if self._in_wrapped or self._final else self._logged + 1)

    def _stamp(self) -> None:
        with self._voice.swallowing("could not put the step into meta.json"):
            there = self._nlp.meta.get(_META_KEY)
            others = there if isinstance(there, dict) else {}
            self._nlp.meta[_META_KEY] = {**others, "step": self._step}

    def _tell_of_save(self) -> None:
        if self._saved is None and self._final and self._output is not None:
            self._saved = self._output / DIR_MODEL_LAST  # by what before_to_disk gave instead of the pipeline
        if self._saved is None:
            return
        with self._voice.swallowing("could not tell the daemon of a save"):
            self._output, self._saved = self._saved.parent, None
            self._saved_step = self._step
            self._signal([DIR_MODEL_LAST])

    def _evaluated(self, info: Optional[Dict[str, Any]]) -> None:
        """Tell of model-best: both directories are written when the loop logs an evaluation."""
        if not info or not info.get("output_path"):
            return
        self._output = Path(os.path.abspath(info["output_path"])).parent  # noqa: PTH100  # as above
        best = info["score"] == max(info["checkpoints"])[0]  # as the loop decides
        if best or self._saved_step != self._logged:
            self._signal([DIR_MODEL_LAST, DIR_MODEL_BEST] if best else [DIR_MODEL_LAST])

    def _signal(self, checkpoints: List[str]) -> None:
        said = {
            "schema": _SCHEMA,
            "step": self._step,
            "checkpoints": checkpoints,
            "final": self._final,
            "time": _rfc3339(datetime.now(timezone.utc)),
            "pid": self._pid,
            "host": socket.gethostname(),
        }
        assert self._output is not None  # noqa: S101  # for mypy
        begun = self._output / ("." + SIGNAL_FILE + ".tmp")
        with contextlib.suppress(FileNotFoundError):
            begun.unlink()  # of a training that was killed
        with begun.open("x", encoding="utf-8") as file:  # a hint, so not synced
            file.write(json.dumps(said) + "\n")
        begun.replace(self._output / SIGNAL_FILE)

    # The spool ---------------------------------------------------------------------------------------------

    def _between(self, info: Optional[Dict[str, Any]]) -> None:
        now_s = time.monotonic()
        due = self._every_steps > 0 and self._logged > 0 and self._logged % self._every_steps == 0
        if not due and not 0 < self._every_s <= now_s - self._last_s:
            return
        self._last_s = now_s
        spool = self._opened()
        if spool is not None:
            spool.offer(self._copied(info))

    def _opened(self) -> "Optional[_Spool]":
        if self._not_parts or not self._parts:
            which = ", ".join(self._not_parts) or "anything"
            self._voice.say_once(
                f"nothing saved between evaluations: the weights of {which} are no thinc model"
            )
        elif self._output is None and not os.path.isabs(self._spool_name):  # noqa: PTH117  # it is a string
            self._voice.say_once("nothing saved between evaluations: the training has no output folder")
        elif self._spool is None:
            folder = Path(self._spool_name) if self._output is None else self._output / self._spool_name
            if self._output is not None and _lies_in_a_checkpoint(folder, self._output):
                self._voice.say_once(f"nothing saved between evaluations: spaCy itself writes in {folder}")
                return None
            constants = _Constants(self._nlp, self._kind, self._parts)
            self._spool = _Spool(folder, self._keep, constants, self._voice)
        return self._spool

    def _copied(self, info: Optional[Dict[str, Any]]) -> "_Copy":
        """Return what training changes, as ``to_disk`` would write it now: its parameters are averaged."""
        nlp = self._nlp
        files: Dict[str, bytes] = {}
        failure: Optional[BaseException] = None
        with self._kind.use_params(nlp, self._averages):
            # thinc puts the parameters back only if nothing is raised in here
            try:
                for name, model in self._parts.items():
                    files[name + "/model"] = model.to_bytes()
            except BaseException as error:  # noqa: BLE001  # raised below
                failure = error
        if failure is not None:
            raise failure
        self._config = self._config or nlp.config.to_bytes()
        if len(nlp.vocab.strings) != len(self._strings):
            self._strings = list(nlp.vocab.strings)
        meta = dict(nlp.meta)
        meta[_META_KEY] = {**(meta.get(_META_KEY) or {}), "step": self._logged}
        if info is None:
            meta["performance"] = {}  # of the last evaluation, not of these parameters
        plain = json.loads(json.dumps(meta, default=lambda number: number.item()))  # scores may be numpy's
        text = srsly.json_dumps(plain, indent=2)  # type: ignore[attr-defined]
        before = {"meta.json": text.encode("utf-8"), "config.cfg": self._config}
        return _Copy(self._logged, {**before, **files}, self._strings)

    def _close(self) -> None:
        if type(self._nlp) is not self._kind:
            self._nlp.__class__ = self._kind
        with self._voice.swallowing("could not end the spool"):
            if self._spool is not None:
                self._spool.close()
        self._voice.total()


def _lies_in_a_checkpoint(folder: Path, output: Path) -> bool:
    inside = os.path.relpath(str(folder), str(output))  # by the names alone: its disk may hang
    return Path(inside).parts[:1] in {(DIR_MODEL_LAST,), (DIR_MODEL_BEST,)}


def _trained(nlp: Language) -> Tuple[Dict[str, Any], List[str]]:
    """Return the models that this training updates, by component, and the components that hide theirs."""
    parts: Dict[str, Any] = {}
    others: List[str] = []
    for name, component in nlp.pipeline:
        model = getattr(component, "model", None)
        if not getattr(component, "is_trainable", False) or model in (True, False, None):
            continue
        if isinstance(model, Model) and hasattr(component, "to_disk"):
            parts[name] = model
        else:
            others.append(name)
    return parts, others


def _watched(kind: Type[Language], training: _Training) -> Type[Language]:
    """Return a subclass that tells a training of its saves; copies of its one instance are of `kind` again.

    An attribute of the instance would go along into copies, and make them save the original.
    """

    def to_disk(self: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        training.saving()
        kind.to_disk(self, path, *args, **kwargs)
        training.saved(path)

    @contextlib.contextmanager
    def use_params(self: Any, params: Optional[Dict[Any, Any]]) -> Iterator[None]:
        with training.using(params), kind.use_params(self, params):
            yield

    def reduce_ex(self: Any, protocol: Any) -> Any:
        reduced = kind.__reduce_ex__(self, protocol)
        if reduced[0] is not copyreg.__newobj__ or reduced[1] != (type(self),):  # type: ignore[attr-defined]
            return reduced  # its class has a way of its own
        return (object.__new__, (kind,), *reduced[2:])

    space = {
        "to_disk": to_disk,
        "use_params": use_params,
        "__reduce_ex__": reduce_ex,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "_kind": kind,
    }
    return type(kind.__name__, (kind,), space)


class _Copy(NamedTuple):
    """What training changed, in memory.

    Attributes:
        step: the step after which it was so.
        files: content by relative path.
        strings: of the vocabulary.
    """

    step: int
    files: Dict[str, bytes]
    strings: List[str]


class _Constants:
    """The files that training does not change, written once, and copied into each entry."""

    def __init__(self, nlp: Language, kind: Type[Language], parts: Dict[str, Any]) -> None:
        self._nlp = nlp
        self._kind = kind
        self._parts = parts
        self._strings: Optional[List[str]] = None
        self.files: Dict[str, Dict[str, Any]] = {}

    def write(self, folder: Path, strings: List[str]) -> None:
        """Have them in a folder, whole, with these strings."""
        if not self.files:
            shutil.rmtree(str(folder), ignore_errors=True)
            nlp = self._nlp
            self._kind.to_disk(nlp, folder, exclude=["meta", "config", "vocab", *self._parts])
            for name in self._parts:
                nlp.get_pipe(name).to_disk(folder / name, exclude=["vocab", "model"])  # type: ignore[attr-defined]
            nlp.vocab.to_disk(folder / "vocab", exclude=["strings"])
            self.files = {path: _digest(folder / path) for path in _files(folder)}
            self._strings = None
        if self._strings is not strings:
            StringStore(strings).to_disk(folder / _STRINGS)
            self.files[_STRINGS] = _digest(folder / _STRINGS)
            self._strings = strings

    def forget(self) -> None:
        """Have them written anew the next time."""
        self.files = {}


class _Spool:
    """Writes copies to a folder, from a thread of its own; holds few, and drops the oldest when full."""

    def __init__(self, folder: Path, keep: int, constants: _Constants, voice: _Voice) -> None:
        self._folder = folder
        self._keep = keep
        self._constants = constants
        self._voice = voice
        self._queue: Deque[_Copy] = deque()
        self._bench = _Bench(folder / "tmp")
        self._changed = threading.Condition()
        self._closed = False
        self._thread: Optional[threading.Thread] = None
        self._counts: Counter[str] = Counter()

    def offer(self, copy: _Copy) -> None:
        """Give a copy to be written; never waits for that."""
        with self._changed:
            self._queue.append(copy)
            if len(self._queue) > _WAITING:
                step = self._queue.popleft().step
                self._counts["dropped"] += 1
                if self._counts["dropped"] == 1:
                    self._voice.say(f"the spool is too slow: dropped step {step}, the oldest that waited")
            self._changed.notify()
        if self._thread is None or not self._thread.is_alive():
            if self._thread is not None:
                self._voice.say_once("the spool's thread had ended: started another one")
            # In this context thinc knows its device; without, it would choose anew, for all threads
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._run,), name="spool", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until what waits is written, but not for ever, and say what came of it all."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_END_S)
            if self._thread.is_alive():
                self._voice.say(f"the spool is still being written after {_END_S:.0f} s: left it")
        counts = self._counts
        self._voice.say(
            f"spool {self._folder}: {counts['written']} written, {counts['kept']} of them kept; "
            f"{counts['removed']} older ones removed, {counts['dropped']} dropped unwritten, "
            f"{counts['failed']} failed"
        )

    def _run(self) -> None:
        self._constants.forget()
        with self._voice.swallowing("could not clean the spool"):
            self._bench.clear_others()
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    break
                copy = self._queue.popleft()
            failed = self._counts["failed"] = self._counts["failed"] + 1
            with self._voice.swallowing("could not write a snapshot to the spool"):
                self._write(copy)
                self._counts["failed"] = failed - 1
                self._counts["written"] += 1
            with self._voice.swallowing("could not remove old snapshots from the spool"):
                self._prune()
        with self._voice.swallowing("could not clean the spool"):
            self._bench.leave()

    def _write(self, copy: _Copy) -> None:
        bench, new = self._bench.take(), self._folder / "new"
        new.mkdir(exist_ok=True)
        moment = self._moment(new)
        name = f"{moment.strftime(_TIME)}-{copy.step:09d}-{os.getpid()}"
        base, begun = bench / "constant", bench / name
        try:
            self._constants.write(base, copy.strings)
            files = dict(self._constants.files)
            files.update((path, _digest_of(content)) for path, content in copy.files.items())
            # In spaCy's order, by which the daemon tells whether a checkpoint is whole
            order = sorted(
                files, key=lambda path: (path == "vocab/lookups.bin", path.startswith("vocab/"), path)
            )
            for path in order:
                (begun / path).parent.mkdir(parents=True, exist_ok=True)
                if path in copy.files:
                    _put(begun / path, copy.files[path])
                else:
                    shutil.copyfile(str(base / path), str(begun / path))
                    _sync(begun / path)
            entry = {"schema": _SCHEMA, "step": copy.step, "time": _rfc3339(moment), "files": files}
            _put(begun / ENTRY_FILE, json.dumps(entry, indent=1).encode("utf-8"))
            for folder, _, _ in os.walk(str(begun), topdown=False):
                _sync(Path(folder))
            begun.rename(new / name)
        except BaseException:
            self._constants.forget()
            shutil.rmtree(str(begun), ignore_errors=True)
            raise
        _sync(new)

    @staticmethod
    def _moment(new: Path) -> datetime:
        """Return now, or a moment after the newest entry's, should the clock have been set back."""
        now = datetime.now(timezone.utc)
        for name in reversed(_entries(new)):
            with contextlib.suppress(ValueError, OverflowError):  # the 30th of February, the end of time
                newest = datetime.strptime(name.split("-")[0], _TIME).replace(tzinfo=timezone.utc)
                return max(now, newest + timedelta(microseconds=1))
        return now

    def _prune(self) -> None:
        new = self._folder / "new"
        names = _entries(new)
        self._counts["kept"] = min(len(names), self._keep, self._counts["written"])
        for name in names[: -self._keep]:
            gone = self._bench.take() / (name + ".gone")  # who lists new/ finds whole ones only
            with contextlib.suppress(FileNotFoundError):  # another training was quicker
                (new / name).rename(gone)
                shutil.rmtree(str(gone))
                self._counts["removed"] += 1
                if self._counts["removed"] == 1:
                    self._voice.say(f"the spool keeps {self._keep}: removed the oldest, {name}")


class _Bench:
    """A folder of this training alone in ``tmp/`` of a spool, for what is not in ``new/`` yet, or no more.

    As long as its lock is held no other training takes it for one of a training that was killed. Process
    numbers could not tell: trainings in two containers may have the same.
    """

    def __init__(self, tmp: Path) -> None:
        self._tmp = tmp
        self._lock: Optional[IO[bytes]] = None

    def take(self) -> Path:
        """Return it, made if it is not there."""
        if self._lock is None or not _is_at(self._lock, Path(self._lock.name)):
            if self._lock is not None:
                self._lock.close()
                self._lock = None
            self._lock = self._locked()
        folder = Path(self._lock.name).with_suffix("")
        folder.mkdir(exist_ok=True)
        return folder

    def leave(self) -> None:
        """Remove it, with all that is in it."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            with lock:
                _remove_bench(Path(lock.name))

    def clear_others(self) -> None:
        """Remove those of trainings that have ended without doing so."""
        for name in _names(self._tmp):
            path = self._tmp / name
            if not _BENCH_LOCK.fullmatch(name) or (self._lock is not None and path == Path(self._lock.name)):
                continue
            with contextlib.suppress(OSError), path.open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or it is in use, or nobody can tell
                _remove_bench(path)

    def _locked(self) -> IO[bytes]:
        self._tmp.mkdir(parents=True, exist_ok=True)
        while True:
            path = self._tmp / f"bench-{secrets.token_hex(8)}.lock"
            lock = path.open("xb")
            with contextlib.suppress(OSError):  # where files can't be locked, others can't clear either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, path):
                return lock
            lock.close()  # cleared away before it was locked


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove_bench(lock: Path) -> None:
    shutil.rmtree(str(lock.with_suffix("")), ignore_errors=True)
    if not lock.with_suffix("").exists():  # else the next training tries again
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()


def _names(folder: Path) -> List[str]:
    try:
        return os.listdir(str(folder))  # noqa: PTH208  # names are what is wanted
    except FileNotFoundError:
        return []


def _entries(new: Path) -> List[str]:
    return sorted(name for name in _names(new) if _ENTRY.fullmatch(name))


def _files(folder: Path) -> Set[str]:
    return {
        (Path(where) / name).relative_to(folder).as_posix()
        for where, _, names in os.walk(str(folder))
        for name in names
    }


def _put(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _digest(path: Path) -> Dict[str, Any]:
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while True:
            part = file.read(1 << 20)
            if not part:
                return {"sha256": sha256.hexdigest(), "bytes": size}
            sha256.update(part)
            size += len(part)


def _digest_of(content: bytes) -> Dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
