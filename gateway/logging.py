"""Structured logs: one JSON line per event on standard output, from this package, uvicorn and all libraries.

In a program that only publishes, which does not call `configure`, events go to the logger ``gateway`` of `logging`.
Logging never raises and never blocks: `configure` starts a thread that writes the lines (line_writer.py). A line that
cannot be encoded or written is dropped and counted (`gateway_log_lines_dropped_total`).
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.line_writer import LineWriter

if TYPE_CHECKING:
    import structlog

CLOSE_SECONDS: Final = 2.0  # how long the end of the process waits for queued lines
# Shortest time between two lines of a lasting state: if the reason changes, and if it stays the same.
CHANGE_SECONDS: Final = 10.0
REPEAT_SECONDS: Final = 600.0

_writers: list[LineWriter] = []  # of standard output and standard error, after `configure`
_failed = 0  # lines that a `Logger` could not encode


def dropped() -> int:
    """Number of lines that this process dropped."""
    return _failed + sum(writer.dropped for writer in _writers)


class _StandardLogger:
    """Writes events to the logger ``gateway`` of the standard library."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        number = logging.getLevelNamesMapping()[level.upper()]
        return lambda event, **fields: self._log(number, event, **fields)

    def _log(self, level: int, event: str, *, exc_info: bool = False, **fields: Any) -> None:
        about = "".join(f" {name}={value!r}" for name, value in fields.items())
        logging.getLogger("gateway").log(level, "%s%s", event, about, exc_info=exc_info)


_make_logger: Callable[[], Any] = _StandardLogger


def use_structlog() -> None:
    """Write events with structlog from now on."""
    global _make_logger
    import structlog

    _make_logger = structlog.get_logger


class Logger:
    """A logger whose methods never raise, so that logging cannot break the work that it reports."""

    def __init__(self) -> None:
        self._log = _make_logger()

    def debug(self, event: str, **fields: Any) -> None:
        """Log for developers."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log normal operation."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log a problem that operators should know about."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a failure."""
        self._write("error", event, fields)

    def critical(self, event: str, **fields: Any) -> None:
        """Log a failure that ends the process."""
        self._write("critical", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log a failure with the traceback of the exception that is being handled."""
        self._write("error", event, {"exc_info": True, **fields})

    def _write(self, method: str, event: str, fields: dict[str, Any]) -> None:
        global _failed
        try:
            getattr(self._log, method)(event, **fields)
        except Exception:
            _failed += 1


def logger() -> Logger:
    """A logger of this process."""
    return Logger()


class _StructlogSink:
    """Sink of structlog's lines."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        """Queue a line."""
        self._writer.write(line.encode(errors="backslashreplace") + b"\n")

    debug = info = warning = error = critical = msg


class _LoggingHandler(logging.Handler):
    """Handler for the loggers of the standard library."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        try:
            self._writer.write(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:
            self._writer.drop()


class _StderrWriter(io.TextIOBase):
    """Standard error that does not block: Python and libraries print to it."""

    encoding = "utf-8"

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The descriptor of standard error."""
        return 2

    def write(self, text: str) -> int:
        """Queue a piece of text."""
        self._writer.write(text.encode(errors="backslashreplace"))
        return len(text)


def _render(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):  # an integer over 64 bits, a lone surrogate, a cycle
        shown = {str(name): value if isinstance(value, str) else repr(value) for name, value in event.items()}
        return json.dumps(shown)


def configure(level: str, **bound: Any) -> Logger:
    """Set up logging for the process and return its logger; the fields `bound` (the node's name) are in each line."""
    import structlog  # here, because it loads slowly and publishers do without it

    use_structlog()
    number = logging.getLevelNamesMapping()[level.upper()]
    for fd in (0, 1, 2):
        _open_if_closed(fd)
    out, err = LineWriter(1), LineWriter(2)
    _writers[:] = [out, err]
    atexit.register(close)
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
        logger_factory=lambda *_: _StructlogSink(out),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
    handler = _LoggingHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        )
    )
    logging.captureWarnings(True)  # for example PyJWT's warning of a short key, as one JSON line
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries log only problems
    sys.stderr = _StderrWriter(err)
    return logger()


def bind_request(request_id: str) -> None:
    """Add the load balancer's id of a request, `request_id`, to the lines that the current task logs."""
    import structlog

    structlog.contextvars.bind_contextvars(request=request_id)


def request_bound(request_id: str) -> AbstractContextManager[None]:
    """As `bind_request`, for the lines that are logged within a ``with``."""
    import structlog

    return structlog.contextvars.bound_contextvars(request=request_id)


def close() -> None:
    """Write the queued lines, for at most two seconds; later lines are dropped."""
    for writer in _writers:
        writer.close(CLOSE_SECONDS / len(_writers))


def _open_if_closed(fd: int) -> None:
    """Open a standard stream that is closed at the start; otherwise the next socket would get its number."""
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)


class StateLog:
    """Logs a lasting state when it begins, when its reason changes and when it ends, not at every retry.

    `event` and `over` are the events of the first and the last line, `about` their fields. `now` gives seconds.
    """

    def __init__(self, event: str, *, over: str, now: Callable[[], float] = time.monotonic, **about: Any) -> None:
        self._event = event
        self._over = over
        self._now = now
        self._about = about
        self._reason: str | None = None  # the last logged reason; None: the state is over
        self._began = self._logged = -math.inf

    def begin(self, reason: str, **more: Any) -> None:
        """Report that the state lasts because of `reason`; `more` are fields of the line."""
        now = self._now()
        if self._reason is None:
            self._began = now
        elif now - self._logged < (REPEAT_SECONDS if reason == self._reason else CHANGE_SECONDS):
            return
        self._reason, self._logged = reason, now
        lasts = {"seconds": round(now - self._began)} if now > self._began else {}
        logger().warning(self._event, **self._about, reason=reason, **lasts, **more)

    def end(self) -> None:
        """Report that the state is over."""
        if self._reason is not None:
            self._reason = None
            logger().info(self._over, **self._about, seconds=round(self._now() - self._began, 1))


class RateLimitedLog:
    """Logs a frequent event at most every ten seconds, with the number of events that were skipped.

    `now` gives seconds.
    """

    def __init__(self, event: str, now: Callable[[], float] = time.monotonic) -> None:
        self._event = event
        self._now = now
        self._logged = -math.inf
        self._skipped = 0

    def warning(self, **fields: Any) -> None:
        """Report one event."""
        now = self._now()
        if now - self._logged < CHANGE_SECONDS:
            self._skipped += 1
            return
        skipped, self._skipped, self._logged = self._skipped, 0, now
        logger().warning(self._event, **fields, **({"not_logged": skipped} if skipped else {}))
