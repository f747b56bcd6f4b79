"""The bytes of a span categorizer alone: out of a pipeline, and into one that is built for them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack  # type: ignore[import-untyped]  # it ships without types

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.serving.component import pipe_of, trained, unset, weights
from spancat_daemon.serving.faults import brief
from spancat_daemon.serving.forks import locks
from spancat_daemon.serving.listing import folder_of, hold, releases
from spancat_daemon.serving.loading import collector_kept, keep_while_alive, read

if TYPE_CHECKING:
    import os

    from spacy.language import Language

    from spancat_daemon.release.survey import Release
    from spancat_daemon.serving.listing import Held

_MODEL: Final = {"nodes", "attrs", "params", "shims"}


def to_bytes(nlp: Language, component: str = "auto") -> bytes:
    """Return the model of a pipeline's span categorizer as a release keeps it in ``model.bin``.

    These are its weights only. Labels, settings and, where it listens, the tok2vec that it listens to are not
    among them: `load_bytes` takes those from a release.

    Args:
        nlp: a trained pipeline.
        component: its name; ``auto``: the only one made by a factory for span categorizers, wherever it
            stands.

    Raises:
        SpancatDaemonError: there is none, there are several, or it was never initialised.
        TypeError: `nlp` is no pipeline.
    """
    pipe = pipe_of(nlp, trained(nlp, component))
    return cast("bytes", pipe.model.to_bytes())


def load_bytes(
    model_bin: bytes | bytearray | memoryview | str | os.PathLike[str],
    like: Release,
    *,
    sha256: str | None = None,
    **spacy_load_kwargs: Any,
) -> Language:
    """Build a new pipeline with the given weights in its span categorizer; all else is a release's.

    Structure, labels in their order, settings, and the tok2vec that it may listen to come from the release,
    and are loaded anew, so that nothing that is in use is touched, whether it succeeds or not. The returned
    object holds the release as that of `load` does.

    Bytes with the digest in the release's manifest are that release's model. Others must have its structure
    and sizes, and are refused if they are the model of another release of the same folder. Nothing in bytes
    tells which labels, and which tok2vec, they were trained with: of those that no release knows, that is the
    caller's word.

    Args:
        model_bin: what `to_bytes` returns, or the path of a file of it.
        like: the release they belong to, or were trained further from.
        sha256: what their digest must be, if that is known.
        spacy_load_kwargs: passed on to ``spacy.load``.

    Raises:
        SpancatDaemonError: the bytes are cut off, another thing than a model, or the model of something else;
            or the release can't be loaded. The garbage collector is then on if it was before.
        OSError: the file can't be read.
    """
    data = bytes(model_bin) if isinstance(model_bin, bytes | bytearray | memoryview) else _file(model_bin)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise SpancatDaemonError(
            f"the SHA-256 of the bytes is {digest}, not {sha256}: they are not whole, or others"
        )
    _check_kind(data, like)
    if digest != like.manifest.model_sha256:
        _check_owner(digest, like)
    with locks.loading:
        held = hold(folder_of(like), like)
        return keep_while_alive(held, lambda: _filled(held, data, spacy_load_kwargs))


def _filled(held: Held, data: bytes, options: dict[str, Any]) -> Language:
    nlp = read(held, verify=False, options=options)
    name = held.release.manifest.component
    if name not in nlp.component_names:
        raise SpancatDaemonError(f"{name!r} is excluded, so there is nothing to load the bytes into")
    model = pipe_of(nlp, name).model
    before = _forms(model)
    try:
        with collector_kept():
            model.from_bytes(data)
    except Exception as error:
        raise _of_another(name, held, brief(error)) from error
    missing = unset(model)
    if missing:
        raise SpancatDaemonError(f"the bytes are of a model that was never initialised: {missing}")
    if (after := _forms(model)) != before:  # which thinc does not look at, and fails with at the first text
        raise _of_another(name, held, next((odd for odd in after if odd not in before), "it has more layers"))
    _check_values(model)
    return nlp


def _of_another(component: str, held: Held, why: str) -> SpancatDaemonError:
    return SpancatDaemonError(
        f"the bytes are not of a model built as {component!r} of {held.release.id} is: {why}",
        hint="give `like` the release they come from, or were trained further from",
    )


def _forms(model: Any) -> list[str]:
    """Say of each array of a model's weights where it belongs, and its kind and shape."""
    return [
        f"{name} is {getattr(array, 'dtype', type(array).__name__)} of shape {getattr(array, 'shape', ())}"
        for name, array in weights(model)
    ]


def _check_values(model: Any) -> None:
    for name, array in weights(model):
        if not model.ops.xp.isfinite(array).all():
            raise SpancatDaemonError(
                f"the bytes are of a model that can't predict: {name} has values that are no finite numbers",
                hint="its training has diverged: take the weights of an earlier step",
            )


def _check_kind(data: bytes, like: Release) -> None:
    """Tell a model from all else before anything is loaded."""
    keys: set[object] = set()
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    try:
        for _ in range(unpacker.read_map_header()):
            keys.add(unpacker.unpack())
            unpacker.skip()
    except msgpack.OutOfData:
        raise SpancatDaemonError(
            f"the bytes are cut off: they end after {len(data):,},"
            f" the model of {like.id} has {like.manifest.files['model.bin'].bytes:,}",
            hint="write them whole, beside the file, and rename it then",
        ) from None
    except (msgpack.UnpackException, ValueError, TypeError):
        raise SpancatDaemonError("the bytes are no model: they are not a msgpack map") from None
    if unpacker.tell() < len(data):
        raise SpancatDaemonError("the bytes go on after the end of the model: they are a mix of two files")
    if keys >= _MODEL:
        return
    if "config.cfg" in keys or "tokenizer" in keys:
        what = "a whole pipeline (nlp.to_bytes())"
    elif "model" in keys:
        what = "a component with its settings (pipe.to_bytes())"
    else:
        what = "something else"
    raise SpancatDaemonError(
        f"the bytes are {what}, not a model", hint="to_bytes(nlp), or model.bin of a release, is one"
    )


def _check_owner(digest: str, like: Release) -> None:
    """Refuse what is known to belong to another release: its labels may be others, or in another order."""
    owners = [other for other in releases(folder_of(like)) if other.manifest.model_sha256 == digest]
    if owners:
        labels = owners[0].manifest.labels
        told = "" if labels == like.manifest.labels else f", whose labels are {list(labels)}"
        raise SpancatDaemonError(
            f"the bytes are the model of {owners[0].id}, not of {like.id}{told}",
            hint="give that one as `like`",
        )


def _file(path: str | os.PathLike[str]) -> bytes:
    return Path(path).read_bytes()
