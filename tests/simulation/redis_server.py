"""A Redis in memory that runs the gateway's own Lua scripts, on a simulated network and clock.

It is faithful in what the gateway relies on: types, TTLs, transactions, WRONGTYPE, number formats between Lua and
Redis, and the order of messages and replies on a connection. `test_redis_server.py` compares it with a real
redis-server, command by command.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from tests.simulation.network import Address, Network
from tests.simulation.redis_commands import OK, Args, Commands
from tests.simulation.redis_data import Dataset, RedisError, Status
from tests.simulation.redis_lua import run_script

WRITES: Final = frozenset(
    {
        "SET", "INCR", "INCRBY", "DEL", "UNLINK", "EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "HSET", "HDEL",
        "HINCRBY", "ZADD", "ZREM", "ZREMRANGEBYSCORE", "XADD", "XDEL", "XTRIM", "FLUSHALL",
    }
)  # fmt: skip


def encode(reply: Any) -> bytes:
    """A reply in RESP2."""
    match reply:
        case None:
            return b"$-1\r\n"
        case Status():
            return f"+{reply}\r\n".encode()
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            return b":%d\r\n" % reply
        case RedisError():
            return f"-{reply}\r\n".encode()
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(encode, reply))
    raise TypeError(f"{reply!r} is no reply")


class RedisServer:
    """A server on a network in memory, under several addresses, so that one way to it can be broken.

    It counts commands by name in `counts`; `refuse_writes` is the error that each write is refused with.
    """

    def __init__(self, network: Network, addresses: Sequence[Address], now_us: Callable[[], int]) -> None:
        self.data = Dataset(now_us)
        self.commands = Commands(self.data)
        self.refuse_writes: str | None = None
        self.counts: dict[str, int] = {}
        self.published: Callable[[bytes, bytes], None] = lambda _channel, _payload: None  # called for each PUBLISH
        self.run_id = ""
        self.scripts: dict[bytes, bytes] = {}
        self.channels: dict[bytes, set[_Client]] = {}
        self._network = network
        self._addresses = addresses
        self._starts = 0
        self._saved = self.data.state()
        self.start()

    # ---- faults

    def start(self) -> None:
        """Accept connections."""
        self._starts += 1
        self.run_id = hashlib.sha1(f"start {self._starts}".encode(), usedforsecurity=False).hexdigest()
        self._listen()

    def save(self) -> None:
        """Write everything to disk: a crash from now on loses only what comes later."""
        self._saved = self.data.state()

    def stop(self, *, lose_tail: bool) -> None:
        """End the process. With `lose_tail` what was written since the last `save` is gone."""
        for address in self._addresses:
            self._network.refuse(address)
            self._network.cut(address)
        if lose_tail:
            self.data.restore(self._saved)
        self.channels.clear()
        self.scripts.clear()

    def disconnect(self) -> None:
        """Cut all connections."""
        for address in self._addresses:
            self._network.cut(address)

    def freeze(self, *, frozen: bool) -> None:
        """Stop or continue the process; connections stay open."""
        for address in self._addresses:
            if frozen:
                self._network.refuse(address)
            self._network.freeze(address, frozen=frozen)
        if not frozen:
            self._listen()

    def listen(self, address: Address) -> None:
        """Accept connections to one of the addresses."""
        self._network.listen(address, lambda: _Client(self))

    def _listen(self) -> None:
        for address in self._addresses:
            self.listen(address)

    # ---- commands

    def run(self, command: Args) -> Any:
        """The reply to a command that belongs to no connection; an error is returned."""
        try:
            return self.execute(command)
        except RedisError as error:
            return error

    def execute(self, command: Args) -> Any:
        """The reply to a command.

        Raises:
            RedisError: It is refused.
        """
        name = command[0].decode().upper()
        self.counts[name] = self.counts.get(name, 0) + 1
        if name in ("EVAL", "EVALSHA"):
            return self._eval(name, command)
        if name == "PUBLISH":
            return self.publish(command[1], command[2])
        if self.refuse_writes is not None and name in WRITES:
            raise RedisError(self.refuse_writes)
        other = getattr(self, f"_do_{name.lower()}", None)
        return other(command[1:]) if other is not None else self.commands.run(command)

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Send a message to the subscribers of `channel`; how many there are."""
        self.published(channel, payload)
        subscribers = self.channels.get(channel, set())
        for client in sorted(subscribers, key=lambda one: one.number):
            client.send([b"message", channel, payload])
        return len(subscribers)

    def _eval(self, name: str, command: Args) -> Any:
        source = command[1]
        if name == "EVALSHA":
            found = self.scripts.get(command[1].lower())
            if found is None:
                raise RedisError("NOSCRIPT No matching script. Please use EVAL.")
            source = found
        else:
            self.scripts[hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()] = source
        count = int(command[2])
        return run_script(source, command[3 : 3 + count], command[3 + count :], self.execute)

    def _do_script(self, args: Args) -> Any:
        if args[0].upper() == b"LOAD":
            digest = hashlib.sha1(args[1], usedforsecurity=False).hexdigest().encode()
            self.scripts[digest] = args[1]
            return digest
        return [int(digest.lower() in self.scripts) for digest in args[1:]]

    def _do_ping(self, args: Args) -> Any:
        return args[0] if args else Status("PONG")

    def _do_client(self, _args: Args) -> Status:
        return OK

    def _do_select(self, _args: Args) -> Status:
        return OK

    def _do_wait(self, _args: Args) -> int:
        return 0

    def _do_role(self, _args: Args) -> list[Any]:
        return [b"master", 0, []]

    def _do_info(self, _args: Args) -> bytes:
        lines = (
            f"run_id:{self.run_id}", "redis_version:7.0.15", "role:master", "used_memory:1000000", "maxmemory:0",
            "loading:0", "aof_enabled:1", "maxmemory_policy:noeviction", "evicted_keys:0",
            f"cmdstat_flushall:calls={self.counts.get('FLUSHALL', 0)},usec=1",
        )  # fmt: skip
        return "\r\n".join(("# Server", *lines, "")).encode()


class _Client(asyncio.Protocol):
    """The server's end of one connection."""

    _count = 0

    def __init__(self, server: RedisServer) -> None:
        _Client._count += 1
        self.number = _Client._count
        self._server = server
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._channels: set[bytes] = set()
        self._queued: list[Args] | None = None  # commands of the transaction that is open
        self._refused = False  # one of them was

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            self._handle(command)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for channel in self._channels:
            self._server.channels.get(channel, set()).discard(self)
        self._channels.clear()

    def send(self, reply: Any) -> None:
        """Send a reply or a message."""
        if self._transport is not None:
            self._transport.write(encode(reply))

    def _handle(self, command: list[bytes]) -> None:
        name = command[0].upper()
        match name:
            case b"SUBSCRIBE" | b"UNSUBSCRIBE":
                for channel in command[1:]:
                    self._subscribe(name == b"SUBSCRIBE", channel)
            case b"MULTI":
                self._queued, self._refused = [], False
                self.send(OK)
            case b"EXEC":
                queued, self._queued = self._queued or [], None
                if self._refused:
                    self.send(RedisError("EXECABORT Transaction discarded because of previous errors."))
                else:
                    self.send([self._server.run(one) for one in queued])
            case b"PING" if self._channels:
                self.send([b"pong", b""])
            case _ if self._queued is not None:
                self._queued.append(command)
                self.send(Status("QUEUED"))
            case _:
                self.send(self._server.run(command))

    def _subscribe(self, joins: bool, channel: bytes) -> None:
        subscribers = self._server.channels.setdefault(channel, set())
        if joins:
            self._channels.add(channel)
            subscribers.add(self)
        else:
            self._channels.discard(channel)
            subscribers.discard(self)
        if not subscribers:
            del self._server.channels[channel]
        self.send([b"subscribe" if joins else b"unsubscribe", channel, len(self._channels)])
