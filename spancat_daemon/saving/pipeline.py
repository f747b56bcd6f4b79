"""A pipeline in memory: whether it is fit to be saved, what it is called, and writing it."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spancat_daemon.checkpoint.tree import shown
from spancat_daemon.deploying.ownership import name_of
from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.serving.component import trained, weights
from spancat_daemon.serving.faults import brief

if TYPE_CHECKING:
    from spacy.language import Language

    from spancat_daemon.release.incoming import Entry


def fit(nlp: Language, component: str) -> str:
    """Return the name of the span categorizer of a pipeline that predicts as it stands.

    Raises:
        TypeError: it is no pipeline.
        SpancatDaemonError: it lacks one, has several, or one that is not trained or not enabled.
    """
    name = trained(nlp, component)
    disabled = set(nlp.disabled)
    if name in disabled:
        raise SpancatDaemonError(
            f"{name!r} is disabled, and would be wherever the release is loaded: it would predict nothing",
            hint=f"nlp.enable_pipe({name!r}), or save after the `with nlp.select_pipes(…)`",
        )
    for other, pipe in nlp.components:
        if other in disabled and name in getattr(pipe, "listening_components", ()):
            raise SpancatDaemonError(
                f"{other!r} is disabled, and {name!r} listens to it: it would predict nothing",
                hint=f"nlp.enable_pipe({other!r}), or save after the `with nlp.select_pipes(…)`",
            )
    return name


def origin_of(entry: Entry) -> str:
    """Say where a pipeline is saved from: for people, and as nothing else was ever saved."""
    user, host = name_of(os.geteuid()), os.uname().nodename
    return shown(f"save() in {_program()} by {user} on {host} ({entry.name})")


def write(nlp: Language, entry: Entry) -> None:
    """Write all of it into an entry, as spaCy does; the pipeline stays as it is.

    Raises:
        SpancatDaemonError: one of its components can't be written, or its weights changed meanwhile: then
            what was written is of no generation, and nothing in it could tell.
        OSError: the files can't be.
    """
    before = _digests(nlp)
    try:
        nlp.to_disk(entry.path)
    except OSError:
        raise
    except Exception as error:
        raise SpancatDaemonError(f"the pipeline can't be written: {brief(error)}") from error
    after = _digests(nlp)
    changed = [name for name, digest in after.items() if before.get(name) != digest]
    if changed:
        raise SpancatDaemonError(
            f"the weights of {', '.join(map(repr, changed))} changed while they were written",
            hint="save between two updates: in the thread that trains, or under a lock that both take",
        )


def _digests(nlp: Language) -> dict[str, bytes]:
    """Digests of what each update of a training changes, by component.

    Not of the models' bytes, which need not be the same twice: thinc says nothing of those of a wrapped
    model, such as a transformer. Whoever updates that updates the span categorizer on top of it.
    """
    found = {}
    for name, pipe in nlp.components:
        model: Any = getattr(pipe, "model", None)
        with suppress(Exception):  # a component may have a model of its own kind
            digest = hashlib.sha256()
            for _, array in weights(model):
                digest.update(model.ops.to_numpy(array).tobytes())
            found[name] = digest.digest()
    return found


def _program() -> str:
    if "ipykernel" in sys.modules:
        return "a notebook"
    main: Any = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return Path(file).name if file else "an interactive session"
