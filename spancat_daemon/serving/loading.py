"""Loading a release: resolved once, read as it was published, held for as long as it is used."""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from typing import TYPE_CHECKING, Any

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.release.survey import RELEASES
from spancat_daemon.serving.faults import check_digests, explain
from spancat_daemon.serving.forks import locks
from spancat_daemon.serving.listing import absolute, folder_of, hold

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from spacy.language import Language

    from spancat_daemon.release.survey import Release
    from spancat_daemon.serving.listing import Held


def load(
    folder: str | os.PathLike[str],
    *,
    release: str | int | Release | None = None,
    verify: bool = False,
    **spacy_load_kwargs: Any,
) -> Language:
    """Load the live release of a deployment folder, or another one.

    What is live is resolved once, and every file is read from that one release, whatever is published
    meanwhile. The release stays on the disk for as long as the returned object lives: the process holds two
    descriptors of it, and a shared lock on its ``release.json``, until the object is garbage, or the process
    ends, however it ends. An object that lives on in a forked child is held by the child too. Whoever keeps
    only a part of it (a component, the vocabulary) holds nothing.

    ``nlp.path`` is where the release lies by its name. Loads of one process take turns, and a fork waits
    for them.

    Args:
        folder: a rule's `deploy` folder.
        release: a release, or its id, the start of it, its sequence number, or ``@1`` for the one before the
            live one.
        verify: whether to read every byte and compare its digest first.
        spacy_load_kwargs: passed on to ``spacy.load``: ``disable``, ``exclude``, ``config``, ….

    Raises:
        SpancatDaemonError: there is no release, it is damaged, does not fit this spaCy, needs code that is
            not here, or lacks its component; says which, and what to do. The garbage collector is then on if
            it was before, which ``spacy.load`` does not see to.
        TypeError: ``spacy.load`` has no such argument.
    """
    with locks.loading:
        held = hold(absolute(folder), release)
        return keep_while_alive(held, lambda: read(held, verify=verify, options=spacy_load_kwargs))


def keep_while_alive(held: Held, make: Callable[[], Language]) -> Language:
    """Make something of a held release that holds it while it lives; if that fails, let the release go."""
    try:
        nlp = make()
        weakref.finalize(nlp, held.lease.release)
    except BaseException:
        held.lease.release()
        raise
    return nlp


def read(held: Held, *, verify: bool, options: Mapping[str, Any]) -> Language:
    """Load a held release; `locks.loading` is held. See `load` for what it raises."""
    if verify:
        check_digests(held)
    spacy = _spacy()
    if not held.directory.exists():
        raise SpancatDaemonError("needs /proc to read one release whatever is published", hint="mount it")
    inspect.signature(spacy.load).bind(held.directory, **options)
    try:
        with collector_kept():
            nlp: Language = spacy.load(held.directory, **options)
    except Exception as error:
        raise explain(error, held, spacy) from error
    # Else the path of a descriptor, which is another file's once it is closed
    vars(nlp)["_path"] = folder_of(held.release) / RELEASES / held.release.id
    _check_component(nlp, held.release, options)
    return nlp


@contextlib.contextmanager
def collector_kept() -> Iterator[None]:
    """Leave the garbage collector on if it was: srsly switches it off, and on again only if it can read."""
    collecting = gc.isenabled()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _spacy() -> Any:
    try:
        import spacy  # noqa: PLC0415  # a second; whoever only lists releases does without
    except ImportError as error:
        raise SpancatDaemonError(
            f"can't import spaCy: {error}", hint="install it into this Python"
        ) from error
    return spacy


def _check_component(nlp: Language, release: Release, options: Mapping[str, Any]) -> None:
    manifest = release.manifest
    excluded = options.get("exclude", ())
    if manifest.component in ([excluded] if isinstance(excluded, str) else list(excluded)):
        return
    if manifest.component not in nlp.component_names:
        found = ", ".join(nlp.component_names) or "none at all"
        raise SpancatDaemonError(
            f"lacks the component {manifest.component!r} that its manifest names; it has {found}",
            where=str(release.path),
        )
    pipe: Any = next(pipe for name, pipe in nlp.components if name == manifest.component)
    labels = tuple(getattr(pipe, "labels", ()))
    if labels != manifest.labels:
        raise SpancatDaemonError(
            f"labels of {manifest.component!r} are {list(labels)}, its manifest says {list(manifest.labels)}",
            where=str(release.path),
        )
