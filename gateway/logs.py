"""Structured logs: one JSON line an event, on standard output, for our own words and for uvicorn's."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog

# Of a state that lasts: how often its reason is logged at most when it changes, and when it stays.
CHANGE_SECONDS: Final = 10.0
REPEAT_SECONDS: Final = 600.0


def _render(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(level: str, **bound: Any) -> structlog.typing.FilteringBoundLogger:
    """Set up logging for the process and give its logger; `bound` (the node's name) stands in each line."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("event"),
    ]
    structlog.configure(
        processors=[*shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        )
    )
    logging.captureWarnings(True)  # PyJWT, for one, warns of a short key: one line, like all else
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries speak only when something is wrong
    return logger()


def logger() -> structlog.typing.FilteringBoundLogger:
    """The process's logger."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return log


class StateLog:
    """Logs a state that lasts when it begins, when its reason changes, and when it is over; not at every retry.

    `event` and `over` are the two lines' events, `about` the fields of both. `now` gives seconds.
    """

    def __init__(self, event: str, *, over: str, now: Callable[[], float] = time.monotonic, **about: Any) -> None:
        self._event = event
        self._over = over
        self._now = now
        self._about = about
        self._reason: str | None = None  # that was logged last; None: the state does not last
        self._began = self._logged = -math.inf

    def begin(self, reason: str, **more: Any) -> None:
        """The state lasts, for `reason`; `more` are fields of the line."""
        now = self._now()
        if self._reason is None:
            self._began = now
        elif now - self._logged < (REPEAT_SECONDS if reason == self._reason else CHANGE_SECONDS):
            return
        self._reason, self._logged = reason, now
        lasts = {"seconds": round(now - self._began)} if now > self._began else {}
        logger().warning(self._event, **self._about, reason=reason, **lasts, **more)

    def end(self) -> None:
        """The state does not last."""
        if self._reason is not None:
            self._reason = None
            logger().info(self._over, **self._about, seconds=round(self._now() - self._began, 1))
