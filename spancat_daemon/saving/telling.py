"""What happens to the folder, told to a logger of the caller's, or to nobody."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import structlog

if TYPE_CHECKING:
    from spancat_daemon.observe.logs import Logger


def telling(logger: logging.Logger | None) -> Logger:
    """Return what events can be told to, as lines of ``event key=value …``.

    It never raises, and leaves alone how the caller's program configured logging and structlog.
    """
    render = structlog.processors.LogfmtRenderer(key_order=["event", "rule"], bool_as_flag=False)

    def as_line(_logger: Any, _method: str, event: structlog.typing.EventDict) -> str:
        return str(render(None, "", {key: value for key, value in event.items() if value is not None}))

    return cast(
        "Logger",
        structlog.wrap_logger(
            _Guarded(logger),
            processors=[structlog.processors.format_exc_info, as_line],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            context_class=dict,
        ),
    )


class _Guarded:
    """The caller's logger, whose filters may raise; None: nobody hears anything."""

    def __init__(self, logger: logging.Logger | None) -> None:
        self._logger = logger

    def __getattr__(self, method: str) -> Any:
        def tell(*arguments: Any) -> None:
            if self._logger is not None:
                with suppress(Exception):
                    getattr(self._logger, method)(*arguments)

        return tell
