"""Paths as they are written become absolute, and the empty ones what they stand for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.config import patterns
from spancat_daemon.config.model import DaemonSettings
from spancat_daemon.config.problems import Finding
from spancat_daemon.config.tables import subject

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from spancat_daemon.config.places import Path

_CONTROL_SOCKET: Final = "control.sock"


def resolve(
    document: dict[str, Any], folder: pathlib.Path, environ: Mapping[str, str], bad: AbstractSet[Path]
) -> list[Finding]:
    """Changes the document's paths; values of other types are left for the model to refuse.

    Args:
        document: the file's content with variables filled in.
        folder: what relative paths are relative to.
        environ: ``$STATE_DIRECTORY`` and ``$RUNTIME_DIRECTORY`` of it win.
        bad: the paths of what is already known to be wrong; they are left alone.

    Returns:
        What can't be a path; it is left as it is.
    """
    resolving = _Resolving(str(folder), bad)
    resolving.daemon(document.setdefault("daemon", {}), environ)
    resolving.at(document.get("log"), ("log", "file"), empty="none")
    watch = document.get("watch")
    for index, table in enumerate(watch if isinstance(watch, list) else ()):
        if isinstance(table, dict):
            resolving.rule(table, ("watch", index))
    return resolving.findings


class _Resolving:
    def __init__(self, folder: str, bad: AbstractSet[Path]) -> None:
        self.folder = folder
        self.bad = bad
        self.findings: list[Finding] = []

    def daemon(self, table: Any, environ: Mapping[str, str]) -> None:
        if not isinstance(table, dict):
            return
        table.setdefault("state_dir", str(DaemonSettings.model_fields["state_dir"].default))
        self.at(table, ("daemon", "state_dir"), empty="refuse")
        state = _first(environ.get("STATE_DIRECTORY"))
        if state:
            table["state_dir"] = state
        if table.get("control_socket", "") == "":
            folder = _first(environ.get("RUNTIME_DIRECTORY")) or table["state_dir"]
            if isinstance(folder, str):
                table["control_socket"] = os.path.join(folder, _CONTROL_SOCKET)  # noqa: PTH118  # stays text
        else:
            self.at(table, ("daemon", "control_socket"))

    def rule(self, table: dict[str, Any], path: Path) -> None:
        self.at(table, (*path, "source"), pattern=True)
        self.at(table, (*path, "deploy"))
        verify = table.get("verify")
        self.at(verify, (*path, "verify", "python"), empty="none", program=True)
        self.at(verify, (*path, "verify", "probes"), empty="none")
        self.at(verify, (*path, "verify", "gold"), empty="none")
        after = table.get("after")
        for index, step in enumerate(after if isinstance(after, list) else ()):
            if isinstance(step, dict):
                here = (*path, "after", index)
                self.at(step.get("command"), (*here, "command", 0), program=True)
                self.at(step.get("signal"), (*here, "signal", "pidfile"), empty="refuse")
                self.at(step.get("webhook"), (*here, "webhook", "secret_file"), empty="none")
        health = table.get("health")
        if isinstance(health, dict):
            self.at(health.get("command"), (*path, "health", "command", 0), program=True)

    def at(
        self,
        holder: Any,
        path: Path,
        *,
        pattern: bool = False,
        empty: str = "",
        program: bool = False,
    ) -> None:
        """Makes the path that a table, or a list, holds absolute.

        Args:
            holder: the table or list; anything else holds none.
            path: where it stands in the file; its last part is the key or the index.
            pattern: it may hold wildcards.
            empty: what an empty one is: "none", which is as if it were not written, "refuse"d, or left.
            program: a name without a slash is looked up on $PATH when it is run.
        """
        key: Any = path[-1]
        if isinstance(holder, dict):
            held = key in holder
        else:
            held = isinstance(holder, list) and isinstance(key, int) and key < len(holder)
        if not held or path in self.bad or not isinstance(holder[key], str):
            return
        value = holder[key]
        reason = ""
        if not value and empty == "refuse":
            reason = f"{subject(path)} must not be empty"
        elif "\0" in value:
            reason = f"{subject(path)} must not hold a NUL character"
        elif value == "~" or value.startswith("~/"):
            reason = f"{subject(path)}: '~' is not filled in; write ${{HOME}} instead"
        if reason:
            self.findings.append(Finding(path, reason))
        elif not value and empty == "none":
            del holder[key]
        elif value and not (program and "/" not in value):
            try:
                holder[key] = _absolute(value, self.folder, pattern=pattern)
            except ValueError:  # a pattern that the model refuses, with the reason
                return


def _absolute(value: str, base: str, *, pattern: bool) -> str:
    """An absolute path without ``.``, doubled slashes and, where it has no wildcards, ``..``.

    ``..`` goes where the kernel would go, which is elsewhere than the text says where it follows a link.
    """
    folder = patterns.escape(base) if pattern else base
    whole = value if value.startswith("/") else f"{folder}/{value}"
    components = [component for component in patterns.split(whole) if component != "."]
    if ".." in components:
        head = len(components) - components[::-1].index("..")
        names = [patterns.literal(name) if pattern else name for name in components[:head]]
        if None in names:
            raise ValueError("'..' behind a wildcard")
        real = os.path.realpath("/" + "/".join(name or "" for name in names))
        components[:head] = patterns.split(patterns.escape(real) if pattern else real)
    return "/" + "/".join(components)


def _first(folders: str | None) -> str:
    """The first of several folders, which systemd separates by colons."""
    return folders.split(":")[0] if folders else ""
