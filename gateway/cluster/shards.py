"""Which server has which slot, as far as is known.  (pure)

A Redis Cluster has 16,384 slots. A key's is told by what stands between its first braces, and each slot is given to one
of the masters. A single Redis is a cluster of one server, which has them all and is never asked. What is known may be
old: a server that is asked for a slot which it has no more names who has it, and that is noted here (`move`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.crc import key_slot

from gateway.cluster.answers import Command

SLOTS: Final = 16_384
ONLY: Final = ""  # the name of the server that is the only one; others are called "host:port"

_WITHOUT_KEY: Final = ("TIME", "PING")


class Shards:
    """The map of slots. `sharded`: of a Redis Cluster, of which nothing is known yet."""

    def __init__(self, *, sharded: bool) -> None:
        self.sharded = sharded
        self.version = 0  # another one whenever something has changed
        self._owners: list[str | None] = [None if sharded else ONLY] * SLOTS
        self.servers: tuple[str, ...] = () if sharded else (ONLY,)  # those that have slots
        self.failed: frozenset[str] = frozenset()  # masters that have failed in the eyes of the cluster
        self.suspected: frozenset[str] = frozenset()  # these, and those that one of the others does not reach
        self.uncovered = SLOTS if sharded else 0  # so many slots nobody has, as far as is known

    def owner(self, slot: int) -> str | None:
        """The server that has `slot`; None: nobody is known to."""
        return self._owners[slot]

    def slot(self, command: Command) -> int:
        """The slot of `command`: that of its first key, or channel. All other keys must have the same."""
        if not self.sharded or command[0] in _WITHOUT_KEY:
            return 0
        return slot_of(command[3] if command[0] in ("EVAL", "EVALSHA") else command[1])

    def learn(self, rows: Iterable[Sequence[Any]], asked: str, nodes: str = "") -> None:
        """Take in what `asked` answers to CLUSTER SLOTS: (first, last, (host, port, id, …), …) of each range.

        `nodes`: its answer to CLUSTER NODES, if some masters may have failed: a line for each, with id, address, flags.
        """
        owners: list[str | None] = [None] * SLOTS
        names: dict[str, str] = {}
        for first, last, master, *_ in rows:
            name = named(_text(master[0]), master[1], asked)
            names[_text(master[2]) if len(master) > 2 else ""] = name
            owners[first : last + 1] = [name] * (last + 1 - first)
        flags = {words[0]: words[2].split(",") for words in map(str.split, nodes.splitlines()) if len(words) > 2}
        self.failed = frozenset(name for node, name in names.items() if "fail" in flags.get(node, ()))
        self.suspected = self.failed | {name for node, name in names.items() if "fail?" in flags.get(node, ())}
        if owners != self._owners:
            self._owners = owners
            self._count()

    def move(self, slot: int, server: str) -> None:
        """Note that `server` has `slot` now: who had it said so."""
        if self._owners[slot] != server:
            self._owners[slot] = server
            self._count()

    def server(self, name: str | bytes) -> str | None:
        """The server that has a key or channel."""
        return self._owners[slot_of(name)] if self.sharded else ONLY

    def name_at(self, server: str, name: str) -> str:
        """A channel's name that begins as `name` does and lies in a slot of `server`.

        Raises:
            LookupError: It has none.
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


def address(host: str, port: int) -> str:
    """A server's name: ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def named(host: str, port: int, asked: str) -> str:
    """The server that `asked` names; one that does not know its own host, or shall not tell it, means: where I am."""
    return address(asked.rpartition(":")[0].strip("[]") if host in ("", "?") else host, port)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
