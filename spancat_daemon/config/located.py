"""A configuration together with the places of what its file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spancat_daemon.config.problems import Problem

if TYPE_CHECKING:
    from spancat_daemon.config.model import Configuration
    from spancat_daemon.config.places import Path as KeyPath
    from spancat_daemon.config.places import Places


@dataclass(frozen=True, slots=True)
class Located:
    """A configuration, and where its file says what.

    Attributes:
        configuration: the configuration.
        file: the file as the user named it.
        places: of its keys and values.
    """

    configuration: Configuration
    file: str
    places: Places

    def problem(self, path: KeyPath, message: str, *, at_key: bool = False) -> Problem:
        """Something that is wrong with the value, or the key, at a path."""
        place = self.places.key(path) if at_key else self.places.value(path)
        return Problem(place.line, place.column, message, self.places.line(place.line), self.file)
