"""The registry of nodes, their clients and their topics in Redis.

A node's memory is the truth. `touch_client` and `touch_topic` mark a row as changed; the registry reads the row from
memory only when it writes it, so a late write never contains an old value. The changes of a fifth of a second share one
round trip; under heavy load, those of half a second.

All rows belong to the node's lease, which `beat` renews. If the lease is gone, because the node was frozen or Redis was
flushed, the registry writes every row again. The rows of a node whose lease has ended are invisible at once; another
node removes them (reaper.py).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from gateway.broker import rows
from gateway.broker.client import RedisClient, Script, Unavailable, WrongType
from gateway.broker.hash_reader import HashReader
from gateway.broker.keys import Keys, node_of
from gateway.cluster.listings import Listings, topic_row
from gateway.logging import StateLog, logger
from gateway.metrics import Metrics

FLUSH_SECONDS: Final = 0.2
# Pause after a write, for each row in it, so that more changes share the next write: two a second under heavy load.
ROW_SECONDS: Final = 0.001
BURST_SECONDS: Final = 0.3
SCRIPT_ROWS: Final = 1000  # keys in one UNLINK, so that a command is short
# Rows, and about the bytes, of one write, so that the node spends at most milliseconds on each.
WRITE_ROWS: Final = 250
WRITE_BYTES: Final = 256 << 10
MAX_NODES: Final = 1000  # nodes that a query reads
MAX_EXPIRED: Final = 100  # dead nodes that one call of `enroll` finds
MAX_FIELD_BYTES: Final = 1000  # largest field of a node's row, or count of a topic
# The answer of write_rows.lua. A smaller one: keys of another type were removed; a larger one: the write's number.
_NO_LEASE: Final = 0
_TEXTS: Final = ("name", "address", "path", "version", "started")
# More changes than this are cheaper to write as everything there is.
MAX_DIRTY: Final = 50_000


@dataclass(frozen=True, slots=True)
class LocalState:
    """Functions by which the registry reads the node's memory."""

    node_row: Callable[[], Mapping[str, str | int]]  # fields of the node's own row
    client_row: Callable[[str], bytes | None]  # a client's row as JSON; None: it is gone
    client_ids: Callable[[], Iterable[str]]
    subscriber_count: Callable[[str], int]  # local subscribers; 0: none
    topics: Callable[[], Iterable[str]]
    # Receives the topics of outdated rows that a Redis which lost writes still has, about `PAGE_FIELDS` per turn.
    rows_dropped: Callable[[Iterable[str]], None] = lambda _: None


class Registry:
    """Writes the rows of this node and reads those of all nodes."""

    def __init__(
        self,
        redis: RedisClient,
        keys: Keys,
        node_id: str,
        *,
        lease_seconds: float,
        local_state: LocalState,
        metrics: Metrics,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._node_id = node_id
        self._lease_ms = int(lease_seconds * 1000)
        self._local_state = local_state
        self._metrics = metrics
        self._log = logger()
        self._rows = [keys.node(node_id), keys.clients(node_id), keys.topics(node_id)]
        self._clients: set[str] = set()  # changed since the last write
        self._topics: set[str] = set()
        self._everything = True
        self._enrolled = False  # in the index since the lease was taken; without that no reaper finds the rows
        self._unsure = False  # the outcome of the last heartbeat is unknown
        self._came_back = False  # Redis came back with rows of an earlier time under a valid lease
        self._writes = 0  # number of the last write that Redis has confirmed under this lease
        self._wake = asyncio.Event()
        self._renew_lease, self._index_node, self._live_nodes = (
            redis.script("renew_lease"),
            redis.script("index_node"),
            redis.script("live_nodes"),
        )
        self._node_rows = HashReader(redis, "node", MAX_FIELD_BYTES)
        self._topic_rows = HashReader(redis, "topic", MAX_FIELD_BYTES)
        self._write_rows = redis.script("write_rows")
        self.listings = Listings(redis, keys, self.live_nodes)

    # ---- changes

    def touch_client(self, client_id: str) -> None:
        """Note that a client connected, left or changed."""
        self._clients.add(client_id)
        self._wake.set()

    def touch_topic(self, topic: str) -> None:
        """Note that a topic's number of local subscribers changed."""
        self._topics.add(topic)
        self._wake.set()

    # ---- the lease

    async def renew_lease(self) -> bool:
        """Take or renew the lease. Returns whether Redis still has all rows; if not, all are written again.

        Rows are missing if the lease had ended, or may have ended unnoticed, or if Redis has lost its last writes.

        Raises:
            Unavailable: Redis did not confirm; the current lease is still valid until it expires.
        """
        fields = list(itertools.chain.from_iterable(self._local_state.node_row().items()))
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            confirmed = self._writes
            writes = await self._redis.execute(*self._renew_lease(self._rows, [self._lease_ms, *fields]))
        except Unavailable:
            # A frozen Redis executes the command when it resumes. If the lease had ended by then, the script takes a
            # new one and deletes the rows, and the next heartbeat would see a valid lease.
            self._unsure = True
            raise
        self._metrics.round_trip.observe(loop.time() - started)
        kept, self._unsure = writes >= confirmed and not self._unsure, False
        if not kept:
            event = "lease taken, writing all rows" if writes < 0 else "rows lost, writing all rows"
            self._log.info(event, clients=self._local_state.node_row().get("clients"))
            self._came_back |= writes >= 0
            self._writes = max(0, writes)
            self._everything = True
            self._enrolled = False
        return kept

    async def enroll(self) -> tuple[list[bytes], float]:
        """Add the node to the index until its lease ends.

        Returns members of the index whose lease has ended, at most `MAX_EXPIRED`, unchecked, and the seconds until the
        next lease ends.

        Raises:
            Unavailable: Redis did not confirm.
        """
        dead, following_ms = await self._redis.execute(
            *self._index_node([self._keys.nodes], [self._node_id, self._lease_ms, MAX_EXPIRED])
        )
        if not self._enrolled:
            self._enrolled = True
            self._wake.set()
        return dead, following_ms / 1000

    async def remove_rows(self) -> None:
        """Delete all rows of this node and its lease.

        Raises:
            Unavailable: Redis is unreachable; the lease expires.
        """
        keys = [*self._rows, *(self._keys.presence(self._node_id, topic) for topic in self._local_state.topics())]
        batches = [("UNLINK", *keys[at : at + SCRIPT_ROWS]) for at in range(0, len(keys), SCRIPT_ROWS)]
        await self._redis.execute_all([*batches, ("ZREM", self._keys.nodes, self._node_id)])

    # ---- the writer

    async def run(self, beat_now: Callable[[], None]) -> None:
        """Write changed rows until cancelled; call `beat_now` when the lease is gone."""
        state = StateLog("registry not written", over="registry written again")
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_SECONDS)
            self._wake.clear()
            rows = len(self._clients) + len(self._topics)
            try:
                if not await self.flush():
                    beat_now()
                await asyncio.sleep(min(BURST_SECONDS, ROW_SECONDS * rows))
            except Unavailable as error:
                state.begin(str(error))
                await asyncio.sleep(1)
                self._wake.set()
            else:
                state.end()

    async def flush(self) -> bool:
        """Write changed rows, once the node is in the index. False: a heartbeat must come first, then all are written.

        Raises:
            Unavailable: Redis did not confirm; the rows stay marked as changed.
        """
        if not self._enrolled:
            return True
        everything = self._everything or len(self._clients) + len(self._topics) > MAX_DIRTY
        clients, topics = self._clients, self._topics
        self._clients, self._topics, self._everything = set(), set(), False
        try:
            if everything:
                if self._came_back:
                    async for _, flat in self._topic_rows.pages([self._keys.topics(self._node_id)]):
                        self._local_state.rows_dropped([name.decode(errors="replace") for name in flat[::2]])
                    self._came_back = False
                calls = self._calls(self._local_state.client_ids(), self._local_state.topics(), drop_first=True)
            else:
                calls = self._calls(clients, topics, drop_first=False)
            for rows, args in calls:
                written = await self._redis.execute(*self._write_rows(self._rows, args))
                self._metrics.registry_writes.labels("round_trip").inc()
                if written <= _NO_LEASE:
                    self._everything = True
                    if written == _NO_LEASE:
                        return False
                    self._wake.set()
                    return True
                if (
                    written <= self._writes
                ):  # Redis has lost writes: after the next heartbeat all rows are written again
                    self._everything = self._unsure = True
                    return False
                self._writes = written
                self._metrics.registry_writes.labels("row").inc(rows)
        except BaseException:
            self._everything |= everything
            self._clients |= clients
            self._topics |= topics
            raise
        return True

    def _calls(
        self, clients: Iterable[str], topics: Iterable[str], *, drop_first: bool
    ) -> Iterator[tuple[int, list[Any]]]:  # fmt: skip
        """Yield arguments of `broker/lua/write_rows.lua` and their number of rows: at most `WRITE_ROWS`, and about
        `WRITE_BYTES`.

        It reads each row only when needed: fifty thousand at once would block the event loop for a second.
        """
        named = itertools.chain(((0, client_id) for client_id in clients), ((1, topic) for topic in topics))
        while True:
            sets: tuple[list[Any], list[Any]] = ([], [])
            drops: tuple[list[str], list[str]] = ([], [])
            rows = size = 0
            while rows < WRITE_ROWS and size < WRITE_BYTES and (row := next(named, None)) is not None:
                which, name = row
                value = (
                    self._local_state.subscriber_count(name) or None if which else self._local_state.client_row(name)
                )
                if value is None:
                    drops[which].append(name)
                else:
                    sets[which].extend((name, value))
                    size += len(value) if isinstance(value, bytes) else 0
                rows += 1
            if not rows and not drop_first:
                return
            yield rows, [
                int(drop_first),
                len(sets[0]) // 2, len(drops[0]), len(sets[1]) // 2, len(drops[1]),
                *sets[0], *drops[0], *sets[1], *drops[1],
            ]  # fmt: skip
            drop_first = False

    # ---- queries

    async def live_nodes(self) -> list[str]:
        """Ids of the nodes with a valid lease, sorted; at most `MAX_NODES`, those whose lease ends last.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return await live_nodes(self._redis, self._keys, self._live_nodes)

    async def nodes(self) -> list[dict[str, Any]]:
        """The row of each living node, with its current numbers of clients and topics.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        listed = await self.node_rows()
        keys = [key(row["id"]) for row in listed for key in (self._keys.clients, self._keys.topics)]
        counts = [
            count if isinstance(count, int) else 0
            for count in await self._redis.execute_each([("HLEN", key) for key in keys])
        ]
        for at, row in enumerate(listed):
            row["clients"], row["topics"] = counts[2 * at : 2 * at + 2]
        return listed

    async def node_rows(self) -> list[dict[str, Any]]:
        """The row of each living node, as of its last heartbeat.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        ids = await self.live_nodes()
        found = await self._node_rows.read([self._keys.node(node_id) for node_id in ids])
        listed = []
        for node_id, fields in zip(ids, found, strict=True):
            row = self._redis.rows.decode("node", self._keys.node(node_id), partial(_node_row, fields))
            if row:
                listed.append({"id": node_id, **row})
        return listed

    async def topic(self, topic: str) -> dict[str, Any]:
        """The numbers of subscribers of a topic, in total and per node.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        ids = await self.live_nodes()
        found = await self._redis.execute_each([("HGET", self._keys.topics(node_id), topic) for node_id in ids])
        counts = {
            node_id: self._redis.rows.decode("topic", self._keys.topics(node_id), partial(rows.integer, count))
            for node_id, count in zip(ids, found, strict=True)
            if count is not None
        }
        return topic_row(topic, {node_id: count for node_id, count in counts.items() if count})

    async def client(self, client_id: str) -> dict[str, Any] | None:
        """The row of a client; None if it is not connected.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        node_id = node_of(client_id)
        alive, row = await self._redis.execute_each(
            [("EXISTS", self._keys.node(node_id)), ("HGET", self._keys.clients(node_id), client_id)]
        )
        return self.listings.client(client_id, row) if alive == 1 and row is not None else None


async def live_nodes(redis: RedisClient, keys: Keys, script: Script) -> list[str]:
    """Ids of the nodes with a valid lease, sorted, at most `MAX_NODES`; `script` is the Lua step ``living``.

    Raises:
        Unavailable: Redis did not answer in time.
    """
    try:
        found = await redis.read_batch.execute(*script([keys.nodes], [MAX_NODES]))
    except WrongType as error:
        redis.rows.skip("node", keys.nodes, error)
        return []
    return sorted(redis.rows.decode_each("node", keys.nodes, found, rows.node_id))


def _node_row(fields: dict[bytes, bytes]) -> dict[str, Any]:
    """Decode the row of a node; empty if it does not exist."""
    if not fields:
        return {}
    row: dict[str, Any] = {name: rows.text(fields[name.encode()]) for name in _TEXTS}
    datetime.fromisoformat(row["started"])  # raises ValueError
    row["rules"] = rows.text(fields[b"rules"]) if b"rules" in fields else ""  # gateway 0.1.0 writes none
    return row | {flag: fields.get(flag.encode()) == b"1" for flag in ("ready", "draining", "moving")}
