"""gateway.broker.redis_connection: what a transport brings reaches the owner, and its end too."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from unittest import mock

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError

from gateway.broker.redis_connection import RedisConnection, packed
from tests.unit.virtual_time import in_virtual_time, quiet


class Opened:
    """A connection of redis-py, with a transport that records what is written."""

    def __init__(self) -> None:
        self.transport = mock.Mock(spec=asyncio.Transport)
        self.transport.is_closing.return_value = False
        self.streams = self.transport.get_protocol.return_value
        self._writer: Opened | None = self

    def _close(self) -> None:
        self._writer = None


def connect(replies: list[Any]) -> tuple[Opened, RedisConnection]:
    opened = Opened()
    connection = RedisConnection(cast(Any, opened), replies.append)
    opened.transport.set_protocol.assert_called_once_with(connection)
    return opened, connection


@in_virtual_time
async def test_the_replies_of_one_read_come_together_and_errors_among_them() -> None:
    replies: list[Any] = []
    _, connection = connect(replies)
    connection.data_received(b"+OK\r\n-MOVED 5 there:1\r\n*2\r\n$1\r\na\r\n:7\r\n$3\r\nwh")
    [[ok, moved, pair]] = replies
    assert (ok, pair) == (b"OK", [b"a", 7])
    assert isinstance(moved, MovedError) and moved.slot_id == 5
    connection.data_received(b"o")
    assert len(replies) == 1, "a part of a reply is no reply"
    connection.data_received(b"\r\n:1\r\n")
    assert replies[1:] == [[b"who", 1]]
    connection.close()


@in_virtual_time
@pytest.mark.parametrize("data", [b":1\r\n", b"no reply at all\r\n"])
async def test_an_error_of_the_owner_or_the_peer_ends_it_and_nothing_more_is_handed_over(data: bytes) -> None:
    refused = ValueError("refused")
    receive = mock.Mock(side_effect=refused)
    connection = RedisConnection(cast(Any, Opened()), receive)
    connection.data_received(data)
    error = connection.lost.exception()
    assert error is refused if data == b":1\r\n" else error is not None
    calls = receive.call_count
    connection.data_received(b":2\r\n")
    assert receive.call_count == calls
    connection.close()


@in_virtual_time
@pytest.mark.parametrize(
    ("error", "reason"),
    [(None, "Connection closed by server."), (ConnectionResetError(104, "reset"), "reset")],
)
async def test_a_lost_connection_has_a_reason_and_redis_py_is_notified(error: Exception | None, reason: str) -> None:
    opened, connection = connect([])
    connection.connection_lost(error)
    lost = connection.lost.exception()
    assert isinstance(lost, RedisConnectionError) and reason in str(lost)
    opened.streams.connection_lost.assert_called_once_with(error)
    connection.write(packed("PING"))
    opened.transport.write.assert_not_called()
    connection.close()
    assert opened._writer is None and opened.transport.abort.called


@in_virtual_time
async def test_a_writer_waits_while_the_transport_is_full_and_no_longer_than_the_connection_lasts() -> None:
    opened, connection = connect([])
    connection.write(packed("PUBLISH", "a", b"b"))
    opened.transport.write.assert_called_once_with(b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$1\r\nb\r\n")
    await connection.drain()
    for end in (connection.resume_writing, lambda: connection.connection_lost(None)):
        connection.pause_writing()
        waiting = asyncio.create_task(connection.drain())
        await quiet()
        assert not waiting.done()
        end()
        await waiting
    connection.close()
