"""What a viewer of the demonstration sees: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from spancat_daemon.observe.render import Style, render_event, style_for

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID


class Screen:
    """A context manager; lines appear above the progress bar."""

    def __init__(self, steps: int) -> None:
        """Prepares to show a training of so many steps."""
        self._steps = steps
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._style = Style()

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

            self._style = Style(colour=style_for(sys.stdout).colour)
            self._bar = Progress(
                TextColumn("spacy train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[score]}"),
                transient=True,
            )
            self._task = self._bar.add_task("", total=self._steps, score="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def line(self, text: str) -> None:
        """Shows a line of text."""
        if self._bar is not None:
            from rich.text import Text  # noqa: PLC0415  # only on a terminal

            self._bar.console.print(Text.from_ansi(text), soft_wrap=True)
        else:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def event(self, event: dict[str, Any]) -> None:
        """Shows an event as `logs` would."""
        self.line(render_event(event, self._style))

    def evaluated(self, step: int, score: float) -> None:
        """Shows how far the training is and how good."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, score=f"score {score:.3f}")
        else:
            self.line(f"spacy train: step {step} of {self._steps}, score {score:.3f}")

    def trained(self) -> None:
        """Shows that the training is over."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._steps)
        self.line("The training is over.")
