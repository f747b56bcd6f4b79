"""``${VAR}`` and ``${VAR:-default}`` in the strings of daemon.toml."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN: Final = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|\$\{")


class BadVariable(ValueError):  # noqa: N818  # describes the value, like the ValueError it is
    """A ``${…}`` that stands for nothing.

    Attributes:
        offset: where in the text it begins.
        written: its text, as far as it could be read.
    """

    def __init__(self, reason: str, *, offset: int, written: str) -> None:
        self.offset = offset
        self.written = written
        super().__init__(reason)


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """The text with its variables filled in; what they hold is not looked at again.

    ``${VAR}`` is the variable's value, ``${VAR:-default}`` the default if it is unset or empty (as in a
    shell), and ``$${`` a literal ``${``. A ``$`` before anything else is itself.

    Raises:
        BadVariable: a variable is not set, is not UTF-8 or is not written as above.
    """

    def value(match: re.Match[str]) -> str:
        written = match[0]
        if written == "$${":
            return "${"
        name = match["name"]
        if name is None:
            raise BadVariable(
                "'${' begins no variable; write ${NAME}, ${NAME:-default}, or $${ for a literal ${",
                offset=match.start(),
                written=written,
            )
        found = environ.get(name, "")
        if not found and match["default"] is not None:
            return match["default"][2:]
        if name not in environ:
            raise BadVariable(
                f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}",
                offset=match.start(),
                written=written,
            )
        if not found.isascii() and any("\ud800" <= character <= "\udfff" for character in found):
            raise BadVariable(
                f"the environment variable {name} is not UTF-8", offset=match.start(), written=written
            )
        return found

    return _TOKEN.sub(value, text)
