"""What the history and the log say of a swap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from spancat_daemon.config.model import Watch
    from spancat_daemon.release.manifest import Manifest

UNMEASURED: Final = {"swap_s": None, "total_s": None}
"""What a commit says until its end is known, and for good if recovery has to make it from the intent."""


def measured(monotonic: Callable[[], float], since_s: float) -> Callable[[float], dict[str, float]]:
    """What becomes of `UNMEASURED` at the end of a swap: a function of the seconds of the swap itself.

    Args:
        monotonic: seconds that never step.
        since_s: when all of it began, by that.
    """
    return lambda swap_s: {"swap_s": round(swap_s, 6), "total_s": round(monotonic() - since_s, 6)}


def follow_up(watch: Watch, *, back: bool = False) -> dict[str, Any]:
    """What the history says of a swap that somebody is to be told of, or that is to be seen to do well.

    What brings an earlier release `back` is not to be seen to.
    """
    if not watch.after and watch.health is None:
        return {}
    asked = watch.health is not None or any(after.required for after in watch.after)
    return {"follow_up": True} | ({"probation": True} if asked and not back else {})


def overwrite_details(manifest: Manifest, previous: Manifest | None) -> dict[str, Any]:
    """What ``release.overwrite`` and the history say of a swap, without its figures of time.

    The fields are a contract (DESIGN section 6).
    """
    before = set(previous.labels) if previous else set()
    return {
        "rule": manifest.rule,
        "release": manifest.id,
        "previous_release": previous.id if previous else None,
        "trigger": manifest.trigger,
        "forced": manifest.forced,
        "changed": previous is None or previous.content_sha256 != manifest.content_sha256,
        "component": manifest.component,
        "model_sha256": manifest.model_sha256,
        "previous_model_sha256": previous.model_sha256 if previous else None,
        "content_sha256": manifest.content_sha256,
        "previous_content_sha256": previous.content_sha256 if previous else None,
        "bytes": manifest.content_bytes,
        "labels_added": [label for label in manifest.labels if label not in before],
        "labels_removed": sorted(before - set(manifest.labels)),
        "metrics": dict(manifest.metrics),
        "source": manifest.source,
        "verified": manifest.verification.get("level", "none"),
        "gates": list(manifest.verification.get("gates", ())),
    }
