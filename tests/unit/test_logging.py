"""Logging never raises and never blocks; a state that lasts is logged when it changes, not at every retry."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from structlog.testing import capture_logs

from gateway import logging
from gateway.line_writer import LineWriter
from gateway.logging import CHANGE_SECONDS, REPEAT_SECONDS, RateLimitedLog, StateLog
from tests.kit.waiting import until


class Clock:
    """Seconds, moved by the test."""

    now = 100.0


def test_a_state_that_lasts_is_logged_when_it_begins_changes_and_ends() -> None:
    clock = Clock()
    state = StateLog("fails", over="works again", now=lambda: clock.now, part="a")

    def logged(*reasons: str) -> list[tuple[Any, Any]]:
        """What is logged if it lasts for these reasons, a second apart."""
        with capture_logs() as lines:
            for reason in reasons:
                clock.now += 1
                state.begin(reason)
        assert all(line["part"] == "a" and line["event"] == "fails" for line in lines)
        return [(line["reason"], line.get("seconds")) for line in lines]

    assert logged("away") == [("away", None)]
    assert logged(*["away"] * 100) == []
    assert logged("slow") == [("slow", 101)]  # another reason
    assert logged(*["away", "slow"] * int(CHANGE_SECONDS)) == [("away", 112)]  # it changes all the time
    clock.now += REPEAT_SECONDS
    assert len(logged(*["slow"] * 10)) == 1  # once more, since it lasts
    with capture_logs() as lines:
        state.end()
        state.end()
    assert [line["event"] for line in lines] == ["works again"]
    assert logged("away") == [("away", None)]


def test_an_event_that_comes_with_each_message_is_logged_every_ten_seconds_and_counted() -> None:
    clock = Clock()
    rare = RateLimitedLog("refused", now=lambda: clock.now)
    with capture_logs() as lines:
        for _ in range(25):
            rare.warning(topic="t")
            clock.now += CHANGE_SECONDS / 10
    assert [line.get("not_logged") for line in lines] == [None, 9, 9]


# ---- the writer


class Pipe:
    """A pipe, and a writer to it."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.reader, self.end = os.pipe()
        self.writer = LineWriter(self.end, max_bytes)

    def read(self, number: int) -> list[bytes]:
        """The first so many lines of it."""
        text = b""
        while text.count(b"\n") < number:
            text += os.read(self.reader, 1 << 16)
        return text.splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """One; what a test leaves open is closed."""
    made = Pipe()
    yield made
    for fd in (made.reader, made.end):
        with suppress(OSError):
            os.close(fd)


def test_lines_are_written_whole_and_in_order(pipe: Pipe) -> None:
    lines = [b"%d %s" % (number, b"x" * (number % 500)) for number in range(3000)]
    for line in lines:
        pipe.writer.write(line + b"\n")
    assert pipe.read(len(lines)) == lines
    pipe.writer.close(5)
    assert pipe.writer.dropped == 0


def test_a_full_pipe_does_not_block_and_excess_lines_are_dropped_and_counted(pipe: Pipe) -> None:
    line = b"x" * 999 + b"\n"
    started = time.monotonic()
    for _ in range(5000):  # of 1 KB, where the pipe takes 64 KB and the queue 1 MB
        pipe.writer.write(line)
    pipe.writer.close(0.1)
    assert time.monotonic() - started < 2
    kept = 5000 - pipe.writer.dropped
    assert 1000 <= kept <= 1200
    assert pipe.read(kept) == [line[:-1]] * kept  # once it is read, the rest is written


def test_a_pipe_in_non_blocking_mode_loses_nothing_either(pipe: Pipe) -> None:
    os.set_blocking(pipe.end, False)
    for _ in range(300):
        pipe.writer.write(b"x" * 999 + b"\n")
    assert len(pipe.read(300)) == 300
    assert pipe.writer.dropped == 0


def test_lines_without_a_reader_are_dropped_and_counted(pipe: Pipe) -> None:
    os.close(pipe.reader)
    for number in range(100):
        pipe.writer.write(b"%d\n" % number)
    pipe.writer.close(5)
    assert pipe.writer.dropped == 100


def test_a_full_disk_drops_lines_until_there_is_room(pipe: Pipe) -> None:
    with open("/dev/full", "wb") as full:
        writer = LineWriter(full.fileno())
        writer.write(b"lost\n")
        until(lambda: writer.dropped == 1, 5)
        os.dup2(pipe.end, full.fileno())
        writer.write(b"kept\n")
        assert pipe.read(1) == [b"kept"]
        writer.close(5)
    assert writer.dropped == 1


def test_after_the_end_lines_are_dropped_and_counted(pipe: Pipe) -> None:
    pipe.writer.write(b"kept\n")
    pipe.writer.close(5)
    pipe.writer.write(b"late\n")
    assert pipe.read(1) == [b"kept"]
    assert pipe.writer.dropped == 1


# ---- nothing raises


class Unprintable:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("value", [1 << 80, "\ud800", Unprintable(), {1, 2}, b"\xff", math.nan, [Unprintable()]])
def test_no_value_makes_logging_raise(value: object) -> None:
    before = logging.dropped()
    with mock.patch.object(logging, "_writers", []):
        structlog_render = logging._render
        lines: list[str] = []

        class Log:
            """Stands for structlog's."""

            def warning(self, event: str, **fields: Any) -> None:
                lines.append(structlog_render(None, "warning", {"event": event, **fields}))

        logger = logging.Logger()
        logger._log = Log()
        logger.warning("happened", value=value)
    assert len(lines) + logging.dropped() - before == 1
    for line in lines:
        assert json.loads(line)["event"] == "happened"
