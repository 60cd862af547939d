"""Presence in Redis: each node writes the clients of its topics under its lease and notifies the other nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from gateway.broker import rows
from gateway.broker.client import RedisClient
from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.hash_reader import HashReader
from gateway.broker.keys import Keys, node_of
from gateway.cluster.registry import live_nodes
from gateway.core import hub
from gateway.core.identity import MAX_INFO_BYTES
from gateway.core.presence_set import Member

ROWS: Final = 500  # in one Lua call
MEMBERS_MS: Final = 86_400_000  # TTL of a node's presence rows of a topic, renewed by `count`: forgotten rows expire
MAX_ROW_BYTES: Final = 4000  # largest row of a client


class PresenceStore:
    """Writes the presence rows of this node and reads those of all nodes."""

    def __init__(self, redis: RedisClient, keys: Keys, node_id: str) -> None:
        self._redis = redis
        self._keys = keys
        self.node_id = node_id
        self._write_presence = redis.script("write_presence")
        self._live_nodes = redis.script("live_nodes")
        self._people = HashReader(redis, "presence", MAX_ROW_BYTES)

    async def write(
        self,
        topic: str,
        joined: Sequence[Member],
        left: Sequence[str],
        now_ms: int,
        *,
        drop_first: bool,
    ) -> bool:
        """Write joins and leaves, at most `ROWS` of each, and notify the other nodes.

        False if the lease is gone; then nothing was written or published.

        Raises:
            Unavailable: Redis did not confirm.
        """
        node_id, channel = self.node_id, self._keys.audience(hub.topic_audience(topic))
        keys = [self._keys.node(node_id), self._keys.presence(node_id, topic), self._keys.topics(node_id)]
        pairs = [part for a in joined for part in (a.client_id, _row(a))]
        message = presence_envelope(joined, left, now_ms).pack()
        # On a cluster the channel is in another slot, so the message is sent after the rows: a node that reads the rows
        # before this write receives the message later.
        publishes = "" if self._redis.sharded else channel
        arguments = [
            topic,
            int(drop_first),
            MEMBERS_MS,
            publishes,
            message if publishes else "",
            len(joined),
            *pairs,
            *left,
        ]
        [written] = await self._redis.transact([self._write_presence.with_source(keys, arguments)])
        if written and not publishes:
            await self._redis.publish(channel, message)
        return bool(written)

    async def live_nodes(self) -> set[str]:
        """Ids of the nodes with a valid lease.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return set(await live_nodes(self._redis, self._keys, self._live_nodes))

    async def count(self, topics: Sequence[str], nodes: Collection[str]) -> list[int | None]:
        """Number of clients of these nodes on each topic; None: a row is unreadable. Renews this node's own rows.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        own = [("PEXPIRE", self._keys.presence(self.node_id, topic), MEMBERS_MS) for topic in topics]
        counts = [("HLEN", self._keys.presence(node_id, topic)) for topic in topics for node_id in nodes]
        await self._redis.execute_each(own)
        answers = await self._redis.read_batch.execute_each(counts)
        found: list[int | None] = []
        for at in range(0, len(answers), len(nodes)):
            some = [answer for answer in answers[at : at + len(nodes)] if isinstance(answer, int)]
            found.append(sum(some) if len(some) == len(nodes) else None)
        return found

    async def read(self, topic: str) -> list[Member]:
        """All clients on the topic, on all living nodes.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        nodes = await live_nodes(self._redis, self._keys, self._live_nodes)
        keys = [self._keys.presence(node_id, topic) for node_id in nodes]
        return [
            member
            for node_id, key, people in zip(nodes, keys, await self._people.read(keys), strict=True)
            for member in self._redis.rows.decode_each(
                "presence", key, people.items(), partial(_decode_member, node_id)
            )
        ]


def _decode_member(node_id: str, field: tuple[bytes, bytes]) -> Member:
    if node_of(rows.client_id(field[0])) != node_id:
        raise ValueError("the row is about a client of another node")
    row = rows.json_object(field[1], MAX_ROW_BYTES)
    return decode_member(rows.client_id(field[0]), row["user"], row.get("info"))


def _row(member: Member) -> bytes:
    info = {} if member.info is None else {"info": orjson.Fragment(member.info)}
    return orjson.dumps({"user": member.user, **info})


def decode_member(client_id: object, user: object, info: object = None) -> Member:
    """A client on a topic, from values that another node has written.

    Raises:
        ValueError: The values are malformed.
    """
    if not isinstance(client_id, str) or not isinstance(user, str | None):
        raise ValueError("a client on a topic has a text as id, and a text or null as user")  # noqa: TRY004
    text = None if info is None else orjson.dumps(info)
    if text is not None and len(text) > MAX_INFO_BYTES:
        raise ValueError(f"info of {len(text)} bytes; the limit is {MAX_INFO_BYTES}")
    return Member(client_id, user, text)


def presence_envelope(joined: Iterable[Member], left: Iterable[str], now_ms: int, *, dead: bool = False) -> Envelope:
    """The message that notifies the nodes of joins and leaves, on the channel of the topic. `dead`: the node died."""
    about: dict[str, Any] = {"joined": [_word(member) for member in joined], "left": list(left), "dead": dead}
    return Envelope(now_ms, orjson.dumps(about), kind=EnvelopeKind.NODES)


def _word(member: Member) -> list[Any]:
    # Without info as before, so that nodes of an older version can read it.
    about = [member.client_id, member.user]
    return about if member.info is None else [*about, orjson.Fragment(member.info)]


def parse_presence(envelope: Envelope) -> tuple[list[Member], list[str], bool]:
    """Parse a message of `presence_envelope`: joins, leaves, and whether the clients left because their node died.

    Raises:
        ValueError: The message is malformed.
    """
    try:
        about = orjson.loads(envelope.body)
        joined = [decode_member(*one) for one in about["joined"]]
        return joined, [str(client_id) for client_id in about["left"]], bool(about["dead"])
    except (KeyError, TypeError) as error:
        raise ValueError("malformed presence message") from error
