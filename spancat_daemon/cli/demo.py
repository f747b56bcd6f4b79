"""``spancat-daemon demo``: the main job, for real, in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import spancat_daemon
from spancat_daemon.cli.output import data, say
from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from spancat_daemon.cli.demonstration.processes import Service, Trainer
    from spancat_daemon.cli.demonstration.screen import Screen

RULE = "products"  # of daemon.toml, as are the two folders
OUTPUT = Path("runs/products")
DEPLOY = Path("models/products")

EVALUATIONS = 12
READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 600.0
_LONGEST_PLACE_BYTES = 60  # of the 107 that the path of a socket can have
TEXT = "Ivo sent the Belkor road bike and a kettle from Lisbon to Bergen ."

_MADE_LIVE = {"release.published", "release.overwrite"}
_TROUBLE = {"warning", "error", "critical"}


def command(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder there, to look around in.")] = False,
    steps: Annotated[int, typer.Option("--steps", min=2, metavar="N", help="How long to train.")] = 300,
) -> None:
    """Train a tiny spancat and deploy it while it trains.

    All of it is real: spacy train, this daemon, and spaCy loading the result. It takes about half a minute
    and touches nothing outside of a temporary folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="spancat-daemon-demo-", dir=_place())).resolve()
    with _ended_by_signals():
        try:
            _demonstrate(folder, steps)
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
    if keep:
        data()
        data(f"Kept: {folder}")
        data(f"Look around: spancat-daemon -c {folder}/daemon.toml list {RULE}")
    else:
        data()
        data("The folder is gone again; with --keep it stays, to look around in.")


def _place() -> str:
    """Where the temporary folder goes: where it is wanted, unless a socket has too long a path there."""
    wanted = tempfile.gettempdir()
    return wanted if len(os.fsencode(os.path.realpath(wanted))) <= _LONGEST_PLACE_BYTES else "/tmp"  # noqa: S108


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end the demonstration as Ctrl-C does, its processes and folder with it."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _demonstrate(folder: Path, steps: int) -> None:
    from spancat_daemon.cli.demonstration.processes import Service, Trainer  # noqa: PLC0415  # only here
    from spancat_daemon.cli.demonstration.screen import Screen  # noqa: PLC0415  # as above

    _prepare(folder)
    with ExitStack() as running:
        service = running.enter_context(Service(folder))
        with Screen(steps) as screen:
            screen.line(
                f"A trainer writes {OUTPUT}/model-best, the daemon deploys it to {DEPLOY}. Both are real."
            )
            _until_ready(service)
            screen.line("The daemon is ready; the training starts.")
            trainer = running.enter_context(
                Trainer(folder, folder / OUTPUT, steps=steps, evaluations=EVALUATIONS)
            )
            _watch(service, trainer, screen)
            trainer.stop()
        _show_and_roll_back(folder)
        code = service.stop()
        if code != 0:
            raise SpancatDaemonError(f"the daemon ended with exit code {code}\n{service.last_words()}")
    _predict(folder / DEPLOY / "current")


def _prepare(folder: Path) -> None:
    """Puts what the two processes read into the folder."""
    ours = Path(__file__).parent / "demonstration"
    for name in ("config.cfg", "corpus.py"):
        shutil.copyfile(ours / name, folder / name)
    # In the repository a link to the one at its top, in a wheel that file itself
    shutil.copyfile(Path(spancat_daemon.__file__).parent / "daemon.toml", folder / "daemon.toml")
    (folder / OUTPUT).mkdir(parents=True)


def _until_ready(service: Service) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s:
        event = service.event(timeout_s=0.5)
        if event is not None and event.get("event") == "daemon.ready":
            return
    raise SpancatDaemonError(
        f"the daemon was not ready within {READY_WITHIN_S:.0f} s\n{service.last_words()}"
    )


def _watch(service: Service, trainer: Trainer, screen: Screen) -> None:
    """Shows trainer and daemon at work until the training is over and its last model-best is live."""
    releases = 0
    deadline_s = time.monotonic() + ENDS_WITHIN_S
    while not trainer.ended():
        if time.monotonic() > deadline_s:
            raise SpancatDaemonError(f"the training did not end within {ENDS_WITHIN_S:.0f} s")
        releases += _show(service, screen, wait_s=0.05)
        for evaluation in trainer.evaluations():
            screen.evaluated(evaluation["step"], evaluation["score"])
    for evaluation in trainer.evaluations():
        screen.evaluated(evaluation["step"], evaluation["score"])
    screen.trained()
    # Whatever of the last model-best was not live yet is live when this returns
    answer = _ask(service.folder, "snapshot", RULE, "--json")
    releases += _show(service, screen, wait_s=0.2)
    if releases == 0:
        raise SpancatDaemonError(f"no release was made: {answer['status']}: {answer['reason']}")


def _show(service: Service, screen: Screen, *, wait_s: float) -> int:
    """Shows what the daemon said; returns how many releases went live."""
    made_live = 0
    while (event := service.event(timeout_s=wait_s)) is not None:
        if event.get("event") in _MADE_LIVE or event.get("level") in _TROUBLE:
            screen.event(event)
        made_live += event.get("event") in _MADE_LIVE
    return made_live


def _show_and_roll_back(folder: Path) -> None:
    """What an operator would do next, with the commands that they would type."""
    _run(folder, "list", RULE)
    listed = _ask(folder, "list", RULE, "--json")
    newest = listed[0]["id"]
    if len(listed) > 1:
        _run(folder, "rollback", RULE)
        _run(folder, "rollback", RULE, newest)
    _run(folder, "history", RULE, "--verify")


def _run(folder: Path, *arguments: str) -> None:
    from spancat_daemon.cli.demonstration.processes import environment, program  # noqa: PLC0415  # only here

    data()
    data(f"$ spancat-daemon {' '.join(arguments)}")
    sys.stdout.flush()
    code = subprocess.run([*program(folder), *arguments], env=environment(), check=False).returncode
    if code != 0:
        raise SpancatDaemonError(f"`{' '.join(arguments)}` failed (exit code {code})")


def _ask(folder: Path, *arguments: str) -> Any:
    from spancat_daemon.cli.demonstration.processes import environment, program  # noqa: PLC0415  # only here

    answer = subprocess.run(
        [*program(folder), *arguments], env=environment(), check=False, capture_output=True
    )
    try:
        return json.loads(answer.stdout)
    except ValueError:
        reason = answer.stderr.decode("utf-8", "replace").strip()
        raise SpancatDaemonError(f"`{' '.join(arguments)}` failed: {reason}") from None


def _predict(current: Path) -> None:
    """Loads what is live as a server would, in a process of its own, and lets it predict."""
    from spancat_daemon.cli.demonstration.processes import environment  # noqa: PLC0415  # only here

    script = Path(__file__).parent / "demonstration" / "predict.py"
    answer = subprocess.run(
        [sys.executable, str(script), str(current), TEXT], env=environment(), check=False, capture_output=True
    )
    if answer.returncode != 0:
        raise SpancatDaemonError(
            f"the live release does not load\n{answer.stderr.decode('utf-8', 'replace').strip()}"
        )
    found = json.loads(answer.stdout)
    data()
    data(f"A server loads {current}")
    data(
        f"  now {current.resolve().name}, loaded with spacy.load in {found['load_s']:.2f} s, without a daemon"
    )
    data(f"  {TEXT}")
    for span in found["spans"]:
        data(f"  {span['label']:8}  {span['score']:.2f}  {span['text']}")
    if not found["spans"]:
        say("it found no spans: it was trained too little (see --steps)")
