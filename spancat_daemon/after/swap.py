"""What is told of a swap, as environment variables and as JSON."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

    from spancat_daemon.release.folder import DeploymentFolder
    from spancat_daemon.release.history import Record
    from spancat_daemon.release.survey import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A release that went live.

    Attributes:
        rule: the rule's name.
        release: id of the release that is live now.
        path: its directory.
        current: what leads to it, or holds it.
        deploy: the deployment folder.
        previous: id of the release that was live before; None if there was none.
        previous_path: its directory.
        trigger: why work started.
        forced: whether it was swapped in although its content might be the same.
        component: name of the span categorizer.
        model_sha256: digest of its ``model.to_bytes()``.
        content_sha256: digest of the whole release.
        labels: those of the component, in the order of the model's outputs.
        history_seq: number of the swap in the folder's history.
    """

    rule: str
    release: str
    path: Path
    current: Path
    deploy: Path
    previous: str | None
    previous_path: Path | None
    trigger: str
    forced: bool
    component: str
    model_sha256: str
    content_sha256: str
    labels: tuple[str, ...]
    history_seq: int

    @classmethod
    def of(cls, record: Record, live: Release, folder: DeploymentFolder) -> Self:
        """The swap that a commit in the folder's history tells of; `live` is its release."""
        data, manifest = record.data, live.manifest
        previous = data.get("previous_release")
        return cls(
            rule=data.get("rule", manifest.rule),
            release=live.id,
            path=live.path,
            current=folder.current,
            deploy=folder.path,
            previous=previous,
            previous_path=folder.releases_path / previous if previous else None,
            trigger=data.get("trigger", manifest.trigger),
            forced=data.get("forced", manifest.forced),
            component=manifest.component,
            model_sha256=manifest.model_sha256,
            content_sha256=manifest.content_sha256,
            labels=manifest.labels,
            history_seq=record.seq,
        )

    @property
    def id(self) -> str:
        """Names this swap among all swaps of all folders, and stays the same whenever it is told again.

        ``rule/folder/history_seq``; the folder by its digest, as a rule with wildcards has several, each
        with a history of its own.
        """
        folder = hashlib.sha256(os.fsencode(self.deploy)).hexdigest()[:8]
        return f"{self.rule}/{folder}/{self.history_seq}"

    def environment(self) -> dict[str, str]:
        """Everything but the labels, which can be longer than an environment may be; empty for what isn't."""
        return {
            "SPANCAT_RULE": self.rule,
            "SPANCAT_RELEASE": self.release,
            "SPANCAT_PATH": os.fspath(self.path),
            "SPANCAT_CURRENT": os.fspath(self.current),
            "SPANCAT_DEPLOY": os.fspath(self.deploy),
            "SPANCAT_PREVIOUS": self.previous or "",
            "SPANCAT_PREVIOUS_PATH": os.fspath(self.previous_path or ""),
            "SPANCAT_TRIGGER": self.trigger,
            "SPANCAT_FORCED": "1" if self.forced else "0",
            "SPANCAT_COMPONENT": self.component,
            "SPANCAT_MODEL_SHA256": self.model_sha256,
            "SPANCAT_CONTENT_SHA256": self.content_sha256,
            "SPANCAT_HISTORY_SEQ": str(self.history_seq),
        }

    def document(self) -> dict[str, Any]:
        """The body of a webhook; the names are those of the log's events."""
        return {
            "id": self.id,
            "event": "release.published" if self.previous is None else "release.overwrite",
            "rule": self.rule,
            "release": self.release,
            "path": self.path,
            "current": self.current,
            "deploy": self.deploy,
            "previous_release": self.previous,
            "previous_path": self.previous_path,
            "trigger": self.trigger,
            "forced": self.forced,
            "component": self.component,
            "model_sha256": self.model_sha256,
            "content_sha256": self.content_sha256,
            "labels": self.labels,
            "history_seq": self.history_seq,
        }
