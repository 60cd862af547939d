"""Keeps this node in the index of nodes, and removes the rows of nodes whose lease has ended.

Any number of nodes may reap at the same time, and each may die during it. The topics of a dead node are handled in
batches. On a single Redis, one Lua step removes clients and publishes their leaves, so each leave is published once. On
a Redis Cluster the channel is in another slot, so the leave is published first; a duplicate has no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gateway.broker import rows
from gateway.broker.client import CommandRefused, RedisClient, RedisCommand, Unavailable, WrongType
from gateway.broker.keys import Keys, node_of
from gateway.cluster.presence_store import presence_envelope
from gateway.cluster.registry import Registry
from gateway.core import hub, topic_rules
from gateway.logging import logger

REAP_AFTER_SECONDS: Final = 0.05  # time after the end of a lease at which nodes look for it
BATCH_TOPICS: Final = 200  # topics in one Lua call
BATCH_MEMBERS: Final = 1000  # clients in one Lua call, of all its topics
_IDS: Final = "*"  # placeholder for the ids in a message


class Reaper:
    """Steps of the node's housekeeping. Calls `found` when it has found nodes whose lease has ended.

    `now_ms` gives the time in ms since 1970.
    """

    def __init__(
        self, redis: RedisClient, keys: Keys, registry: Registry, *,
        found: Callable[[], None], now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._redis = redis
        self._keys = keys
        self._registry = registry
        self._found = found
        self._now_ms = now_ms
        self._dead: list[bytes] = []
        self._reap_presence, self._remove_node, self._unindex_node = (
            redis.script("reap_presence"),
            redis.script("remove_node"),
            redis.script("unindex_node"),
        )
        self._log = logger()

    async def enroll(self) -> float:
        """Add the node to the index until its lease ends; return the seconds until this must run again.

        Raises:
            Unavailable: Redis did not confirm.
        """
        self._dead, following = await self._registry.enroll()
        if self._dead:
            self._found()
        return following + REAP_AFTER_SECONDS

    async def reap(self) -> None:
        """Remove the rows of the nodes that `enroll` found dead.

        Raises:
            Unavailable: Redis did not confirm; some rows may be left, and `enroll` finds their nodes again.
        """
        failure: Unavailable | None = None
        for raw in self._dead:
            node_id = self._redis.rows.decode("node", self._keys.nodes, partial(rows.node_id, raw))
            try:
                if node_id is None or await self._reap_node(node_id):
                    await self._redis.execute(*self._unindex_node([self._keys.nodes], [raw]))
            except Unavailable as error:  # may concern only this dead node
                failure = error
        if failure is not None:
            raise failure

    async def _reap_node(self, node_id: str) -> bool:
        """Remove the rows of a node; False if its lease is valid: the node or a later step then corrects the index."""
        keys = [self._keys.node(node_id), self._keys.clients(node_id), self._keys.topics(node_id)]
        while True:
            try:
                names: list[bytes] = await self._redis.execute("HRANDFIELD", keys[2], BATCH_TOPICS)
            except WrongType as error:
                self._redis.rows.skip("topic", keys[2], error)
                break
            if not names:
                break
            if not await self._reap_topics(node_id, names):
                return False
        buried = await self._redis.execute(*self._remove_node(keys, []))
        if buried is not None and buried[0]:  # otherwise another node has removed them
            self._log.warning("dead node reaped", dead=node_id, clients=buried[1])
        return buried is not None

    async def _reap_topics(self, node_id: str, names: list[bytes]) -> bool:
        """Remove up to `BATCH_MEMBERS` clients from these topics; False if the lease is valid."""
        prefix = self._keys.presence(node_id, "").encode()  # a name may be invalid UTF-8
        people = {name: prefix + name for name in names}
        answers = await self._redis.execute_each([("HRANDFIELD", key, BATCH_MEMBERS) for key in people.values()])
        clear: list[RedisCommand] = []  # deletes values that no gateway has written
        arguments: list[Any] = []
        keys: list[str | bytes] = [self._keys.node(node_id), self._keys.topics(node_id)]
        announced: list[RedisCommand] = []
        room = BATCH_MEMBERS
        for (name, key), answer in zip(people.items(), answers, strict=True):
            if isinstance(answer, CommandRefused) and not isinstance(answer, WrongType):
                raise answer
            if isinstance(answer, WrongType):
                self._redis.rows.skip("presence", key, answer)
                clear.append(("UNLINK", key))
                answer = []
            ids = [found for found in self._redis.rows.decode_each("presence", key, answer, rows.client_id)
                   if node_of(found) == node_id]  # fmt: skip
            foreign = set(answer) - {found.encode() for found in ids}
            if foreign:
                clear.append(("HDEL", key, *foreign))
            ids = ids[:room]
            channel = self._channel_of(name)
            if self._redis.sharded and channel and ids:
                announced.append((self._redis.publish_command(channel), channel, self._message(ids)))
                channel = ""
            keys.append(key)
            arguments += (name, channel, len(ids), *ids)
            room -= len(ids)
            if not room:
                break
        if announced:
            if await self._redis.execute("EXISTS", self._keys.node(node_id)):
                return False
            await self._redis.transact(announced)
        if clear:
            await self._redis.execute_all(clear)
        message = self._message([_IDS]).split(f'"{_IDS}"'.encode())
        done = await self._redis.execute(*self._reap_presence(keys, [*message, *arguments]))
        return bool(done)

    def _channel_of(self, name: bytes) -> str:
        topic = self._redis.rows.decode("topic", self._keys.nodes, partial(rows.text, name))
        if topic is None or not topic_rules.is_topic(topic):
            return ""
        return self._keys.audience(hub.topic_audience(topic))

    def _message(self, ids: list[str]) -> bytes:
        return presence_envelope((), ids, self._now_ms(), dead=True).pack()
