"""Why a release could not be loaded, in one sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from spancat_daemon.errors import SpancatDaemonError
from spancat_daemon.serving.hindrance import Hindered, lacks
from spancat_daemon.verify.digests import digests_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spancat_daemon.serving.listing import Held
    from spancat_daemon.verify.digests import Finding

MISSING_CODE: Final = re.compile(r"\[E(?:002|892|893)\]")
"""In a message of spaCy's: a factory, a registry or a function in one that it does not know."""

_LONGEST = 300


def check_digests(held: Held) -> None:
    """Read every file of a held release; raise SpancatDaemonError unless each is what its manifest says."""
    findings = digests_at(held.lease.directory_fd, held.release.manifest)
    if any(finding.damage for finding in findings):
        raise _damaged(held, [finding for finding in findings if finding.damage])
    if findings:
        raise _unreadable(held, findings)


def explain(error: Exception, held: Held, spacy: Any) -> SpancatDaemonError:
    """Say what spaCy's error in loading a held release comes from.

    Reads the release once more: damage explains most of what can happen, and must not be taken for anything
    else.
    """
    where = str(held.release.path)
    if isinstance(error, MemoryError):
        return Hindered(
            "there is not enough memory to load it", where=where, hint="the one before it is still there"
        )
    findings = digests_at(held.lease.directory_fd, held.release.manifest)
    damage = [finding for finding in findings if finding.damage]
    if damage:
        return _damaged(held, damage)
    if findings:
        return _unreadable(held, findings)
    said = brief(error)
    if lacks(error):
        return Hindered(f"can't be loaded: {said}", where=where)
    wanted = held.release.manifest.spacy_version
    if spacy.util.is_compatible_version(spacy.__version__, wanted) is False:
        return SpancatDaemonError(
            f"was made for spaCy {wanted}, and this is {spacy.__version__}, which can't load it: {said}",
            where=where,
            hint="let the rule's `verify.python` name this interpreter, and such releases won't go live",
        )
    if MISSING_CODE.search(str(error)):
        return SpancatDaemonError(
            f"needs code that is not here: {said}",
            where=where,
            hint="import the package that registers it before you load",
        )
    return SpancatDaemonError(f"can't be loaded: {said}", where=where)


def brief(error: BaseException) -> str:
    """Return an error's name and message in one line of bearable length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _damaged(held: Held, damage: Sequence[Finding]) -> SpancatDaemonError:
    more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
    return SpancatDaemonError(
        f"is damaged: {damage[0]}{more}",
        where=str(held.release.path),
        hint="go back to a whole one: spancat-daemon rollback",
    )


def _unreadable(held: Held, findings: Sequence[Finding]) -> SpancatDaemonError:
    return Hindered(f"can't be read: {findings[0]}", where=str(held.release.path))
