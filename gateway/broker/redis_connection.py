"""A connection to Redis that redis-py has opened, and that the node then reads and writes without redis-py.

redis-py resolves the name, connects and logs in: TLS, ACL, Sentinel, database, client name, role. `RedisConnection`
takes its transport over. It writes packed commands, and hands over all replies of one read from the socket at once.
redis-py awaits each reply for itself, under several layers, which costs more than all the rest of a delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from hiredis import Reader, pack_command
from redis._parsers import BaseParser
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

from gateway.broker.errors import explain

_INCOMPLETE: Final = object()


def packed(*command: Any) -> bytes:
    """A command as bytes for `RedisConnection.write`."""
    return bytes(pack_command(command))


class RedisConnection(asyncio.Protocol):
    """Takes `opened` over, which is connected and has no command in flight.

    Args:
        receive: Called with the replies that one read completed, in order. An error of Redis is an exception among
            them. If `receive` raises an exception, the connection ends with it.
    """

    def __init__(self, opened: AbstractConnection, receive: Callable[[list[Any]], None]) -> None:
        writer = opened._writer
        if writer is None:
            raise RedisConnectionError("the connection is closed")
        self.opened = opened
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # ends only with an error
        self._receive = receive
        self._closed = False  # no reply is handed over any more
        self._parser = Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._paused: asyncio.Future[None] | None = None  # ends when the transport accepts more
        self._transport = writer.transport
        self._streams = self._transport.get_protocol()  # redis-py waits for its end when it disconnects
        self._transport.set_protocol(self)

    def write(self, packed: bytes) -> None:
        """Send packed commands. On a lost connection nothing is sent; `lost` has the reason."""
        if not self.lost.done() and not self._transport.is_closing():
            self._transport.write(packed)

    async def drain(self) -> None:
        """Wait until the transport accepts more, or the connection is lost. The caller sets a deadline."""
        if self._paused is not None:
            await asyncio.wait((self._paused, self.lost), return_when=asyncio.FIRST_COMPLETED)

    def fail(self, error: Exception) -> None:
        """End the connection with `error`, unless it is lost already."""
        if not self.lost.done():
            self.lost.set_exception(error)

    def close(self) -> None:
        """Close it at once, without waiting for what is not sent yet."""
        self._closed = True
        if not self.lost.cancel():
            self.lost.exception()  # mark as retrieved
        self._transport.abort()
        self.opened._close()  # type: ignore[no-untyped-call]

    # ---- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Hand over the replies that `data` completes."""
        if self._closed:
            return
        try:
            self._parser.feed(data)
            replies = []
            while (reply := self._parser.gets()) is not _INCOMPLETE:
                replies.append(reply)
            if replies:
                self._receive(replies)
        except Exception as error:  # for the owner of `lost` to handle
            self.fail(error)
            self._closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the loss."""
        self.fail(RedisConnectionError("Connection closed by server." if exc is None else explain(exc)))
        self._streams.connection_lost(exc)

    def pause_writing(self) -> None:
        """Redis does not read what was sent."""
        self._paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Redis reads again."""
        if self._paused is not None:
            self._paused.set_result(None)
            self._paused = None
