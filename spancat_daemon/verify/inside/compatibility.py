"""Which versions of spaCy a checkpoint is for, by its own meta.json."""

from __future__ import annotations

import json
import os

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

_AT_LEAST = (">=", ">", "==", "===", "~=")


def wanted_range(path: str) -> str:
    """Return the range in a pipeline's meta.json, such as ``>=3.8.7,<3.9.0``; empty if it names none."""
    try:
        with open(os.path.join(path, "meta.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return ""
    wanted = found.get("spacy_version") if isinstance(found, dict) else None
    return wanted if isinstance(wanted, str) else ""


def is_within(version: str, wanted: str) -> bool:
    """Whether a version is in a range; yes if either says nothing that can be compared."""
    try:
        specifiers = _specifiers(wanted)
        specifiers.prereleases = True
        return not wanted or Version(version) in specifiers
    except (InvalidSpecifier, InvalidVersion):
        return True


def is_for_a_newer(version: str, wanted: str) -> bool:
    """Whether a range begins at a later minor version than the given one.

    Within a minor version spaCy promises that any patch loads what another one saved. Older checkpoints are
    no matter: spaCy warns of them (W095) and loads them.
    """
    try:
        given = Version(version)
        lowest = [
            Version(specifier.version.replace(".*", ""))
            for specifier in _specifiers(wanted)
            if specifier.operator in _AT_LEAST
        ]
    except (InvalidSpecifier, InvalidVersion):
        return False
    return any((least.major, least.minor) > (given.major, given.minor) for least in lowest)


def _specifiers(wanted: str) -> SpecifierSet:
    # As spaCy reads it: a lone version means exactly that one.
    return SpecifierSet("==" + wanted if wanted[:1].isdigit() else wanted)
