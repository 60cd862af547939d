"""The slot map: which Redis server has which slot, as far as the node knows.  (pure)

A Redis Cluster has 16,384 slots. The text between the first braces of a key decides its slot, and each slot belongs to
one master. A single Redis is treated as a cluster of one server that has all slots. The map may be outdated: a server
that no longer has a slot answers MOVED with the new server, and `move` records it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.crc import key_slot

from gateway.broker.errors import RedisCommand

SLOTS: Final = 16_384
ONLY_SERVER: Final = ""  # name of the server of a single Redis; the servers of a cluster are named "host:port"

_WITHOUT_KEY: Final = ("TIME", "PING")


class SlotMap:
    """The slot map. `sharded`: it describes a Redis Cluster and is empty at first."""

    def __init__(self, *, sharded: bool) -> None:
        self.sharded = sharded
        self.version = 0  # grows with every change
        self._owners: list[str | None] = [None if sharded else ONLY_SERVER] * SLOTS
        self.servers: tuple[str, ...] = () if sharded else (ONLY_SERVER,)  # those that have slots
        self.failed: frozenset[str] = frozenset()  # masters that the cluster has marked as failed
        self.suspected: frozenset[str] = frozenset()  # these, and masters that another server cannot reach
        self.uncovered = SLOTS if sharded else 0  # number of slots without a known server

    def owner(self, slot: int) -> str | None:
        """The server that has `slot`; None: unknown."""
        return self._owners[slot]

    def slot(self, command: RedisCommand) -> int:
        """The slot of a command: that of its first key or channel. All its keys must be in one slot."""
        if not self.sharded or command[0] in _WITHOUT_KEY:
            return 0
        return slot_of(command[3] if command[0] in ("EVAL", "EVALSHA") else command[1])

    def update(self, rows: Iterable[Sequence[Any]], asked: str, nodes: str = "") -> None:
        """Apply the answer of server `asked` to CLUSTER SLOTS: (first, last, (host, port, id, …), …) for each range.

        `nodes`: its answer to CLUSTER NODES, if a master may have failed: one line per server with id, address, flags.
        """
        owners: list[str | None] = [None] * SLOTS
        names: dict[str, str] = {}
        for first, last, master, *_ in rows:
            name = resolve_server(_text(master[0]), master[1], asked)
            names[_text(master[2]) if len(master) > 2 else ""] = name
            owners[first : last + 1] = [name] * (last + 1 - first)
        flags = {words[0]: words[2].split(",") for words in map(str.split, nodes.splitlines()) if len(words) > 2}
        self.failed = frozenset(name for node, name in names.items() if "fail" in flags.get(node, ()))
        self.suspected = self.failed | {name for node, name in names.items() if "fail?" in flags.get(node, ())}
        if owners != self._owners:
            self._owners = owners
            self._count()

    def move(self, slot: int, server: str) -> None:
        """Record that `server` has `slot` now, as the previous server answered."""
        if self._owners[slot] != server:
            self._owners[slot] = server
            self._count()

    def server(self, name: str | bytes) -> str | None:
        """The server that has a key or channel."""
        return self._owners[slot_of(name)] if self.sharded else ONLY_SERVER

    def name_at(self, server: str, name: str) -> str:
        """A channel name that begins with `name` and lies in a slot of `server`.

        Raises:
            LookupError: `server` has no slot.
        """
        if not self.sharded:
            return name
        if server not in self._owners:
            raise LookupError(f"{server} has no slot")
        stem = name.replace("{", "").replace("}", "")
        return next(
            f"{stem}:{{{number}}}" for number in itertools.count() if self._owners[slot_of(f"{{{number}}}")] == server
        )

    def _count(self) -> None:
        self.version += 1
        self.uncovered = self._owners.count(None)
        self.servers = tuple(dict.fromkeys(owner for owner in self._owners if owner is not None))


def slot_of(name: str | bytes) -> int:
    """The slot of a key or channel."""
    return key_slot(name.encode() if isinstance(name, str) else name)


def server_name(host: str, port: int) -> str:
    """A server's name: ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve_server(host: str, port: int, asked: str) -> str:
    """The name of a server in an answer of `asked`. An empty or unknown host ("", "?") means the host of `asked`."""
    return server_name(asked.rpartition(":")[0].strip("[]") if host in ("", "?") else host, port)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
