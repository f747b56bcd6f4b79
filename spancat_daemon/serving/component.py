"""The span categorizer of a loaded pipeline: found by its factory, wherever it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spancat_daemon.checkpoint.layout import FACTORIES
from spancat_daemon.errors import SpancatDaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spacy.language import Language


def trained(nlp: Language, component: str = "auto") -> str:
    """Return the name of a pipeline's span categorizer, which is ready to predict.

    Args:
        nlp: a pipeline.
        component: its name; ``auto``: the only one made by a factory for span categorizers.

    Raises:
        SpancatDaemonError: there is none, there are several, or it was never initialised.
        TypeError: `nlp` is no pipeline.
    """
    if not all(hasattr(nlp, name) for name in ("to_disk", "component_names", "components", "disabled")):
        raise TypeError(f"nlp must be a pipeline of spaCy, such as spacy.load() returns, not {type(nlp)!r}")
    found = [name for name in nlp.component_names if nlp.get_pipe_meta(name).factory in FACTORIES]
    if component != "auto":
        if component not in found:
            raise SpancatDaemonError(
                f"{component!r} is no span categorizer of the pipeline", hint=_choice(found, nlp)
            )
        found = [component]
    if len(found) != 1:
        what = "several span categorizers" if found else "no span categorizer"
        raise SpancatDaemonError(f"the pipeline has {what}", hint=_choice(found, nlp))
    pipe = pipe_of(nlp, found[0])
    missing = unset(pipe.model)
    if missing or not pipe.labels:
        raise SpancatDaemonError(
            f"{found[0]!r} was never initialised: {missing or 'it has no labels'}",
            hint="train it, or load a trained pipeline, first",
        )
    return found[0]


def pipe_of(nlp: Language, name: str) -> Any:
    """Return a component, disabled or not."""
    return next(pipe for other, pipe in nlp.components if other == name)


def unset(model: Any) -> str:
    """Return which weights were never set; empty if none are missing."""
    for node in model.walk():
        for parameter in node.param_names:
            if node.has_param(parameter) is None:
                return f"{parameter!r} of its layer {node.name!r} is missing"
    return ""


def weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each array of a model's weights that is set, always in the same order, and what to call it."""
    for node in model.walk():
        for parameter in node.param_names:
            if node.has_param(parameter):
                yield f"{parameter!r} of its layer {node.name!r}", node.get_param(parameter)


def _choice(found: list[str], nlp: Language) -> str:
    if found:
        return f"give `component` one of: {', '.join(found)}"
    return f"it has {', '.join(nlp.component_names) or 'no components'}"
