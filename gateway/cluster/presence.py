"""Presence in Redis: each node writes the clients of its topics under its lease and notifies the other nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from gateway.cluster import rows
from gateway.cluster.envelope import Envelope, Kind
from gateway.cluster.hashes import Hashes
from gateway.cluster.keys import Keys, node_of
from gateway.cluster.link import Link
from gateway.cluster.registry import living
from gateway.core.roster import Attendee

ROWS: Final = 500  # in one Lua call
PEOPLE_MS: Final = 86_400_000  # TTL of a node's presence rows of a topic, renewed by `count`: forgotten rows expire
MAX_INFO_BYTES: Final = 4000  # largest row of a client


class Attendance:
    """Writes the presence rows of this node and reads those of all nodes."""

    def __init__(self, link: Link, keys: Keys, node_id: str) -> None:
        self._link = link
        self._keys = keys
        self.node_id = node_id
        self._attend = link.script("attend")
        self._living = link.script("living")
        self._people = Hashes(link, "presence", MAX_INFO_BYTES)

    async def write(
        self,
        topic: str,
        channel: str,
        joined: Sequence[Attendee],
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
        node_id = self.node_id
        keys = [self._keys.node(node_id), self._keys.people(node_id, topic), self._keys.topics(node_id)]
        pairs = [part for a in joined for part in (a.client_id, orjson.dumps({"user": a.user}))]
        message = presence_envelope(joined, left, now_ms).pack()
        # On a cluster the channel is in another slot, so the message is sent after the rows: a node that reads the rows
        # before this write receives the message later.
        publishes = "" if self._link.sharded else channel
        arguments = [
            topic,
            int(drop_first),
            PEOPLE_MS,
            publishes,
            message if publishes else "",
            len(joined),
            *pairs,
            *left,
        ]
        [written] = await self._link.send([self._attend.with_source(keys, arguments)])
        if written and not publishes:
            await self._link.publish(channel, message)
        return bool(written)

    async def living(self) -> set[str]:
        """Ids of the nodes with a valid lease.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return set(await living(self._link, self._keys, self._living))

    async def count(self, topics: Sequence[str], nodes: Collection[str]) -> list[int | None]:
        """Number of clients of these nodes on each topic; None: a row is unreadable. Renews this node's own rows.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        own = [("PEXPIRE", self._keys.people(self.node_id, topic), PEOPLE_MS) for topic in topics]
        counts = [("HLEN", self._keys.people(node_id, topic)) for topic in topics for node_id in nodes]
        await self._link.ask_each(own)
        answers = await self._link.reads.ask_each(counts)
        found: list[int | None] = []
        for at in range(0, len(answers), len(nodes)):
            some = [answer for answer in answers[at : at + len(nodes)] if isinstance(answer, int)]
            found.append(sum(some) if len(some) == len(nodes) else None)
        return found

    async def read(self, topic: str) -> list[Attendee]:
        """All clients on the topic, on all living nodes.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        nodes = await living(self._link, self._keys, self._living)
        keys = [self._keys.people(node_id, topic) for node_id in nodes]
        return [
            attendee
            for node_id, key, people in zip(nodes, keys, await self._people.read(keys), strict=True)
            for attendee in self._link.rows.each("presence", key, people.items(), partial(_attendee, node_id))
        ]


def _attendee(node_id: str, field: tuple[bytes, bytes]) -> Attendee:
    if node_of(rows.client_id(field[0])) != node_id:
        raise ValueError("the row is about a client of another node")
    return attendee(rows.client_id(field[0]), rows.json_object(field[1], MAX_INFO_BYTES)["user"])


def attendee(client_id: object, user: object) -> Attendee:
    """A client on a topic, from values that another node has written.

    Raises:
        ValueError: The values are malformed.
    """
    if not isinstance(client_id, str) or not isinstance(user, str | None):
        raise ValueError("a client on a topic has a text as id, and a text or null as user")  # noqa: TRY004
    return Attendee(client_id, user)


def presence_envelope(joined: Iterable[Attendee], left: Iterable[str], now_ms: int, *, dead: bool = False) -> Envelope:
    """The message that notifies the nodes of joins and leaves, on the channel of the topic. `dead`: the node died."""
    about: dict[str, Any] = {"joined": [list(attendee) for attendee in joined], "left": list(left), "dead": dead}
    return Envelope(now_ms, orjson.dumps(about), kind=Kind.NODES)


def parse_presence(envelope: Envelope) -> tuple[list[Attendee], list[str], bool]:
    """Parse a message of `presence_envelope`: joins, leaves, and whether the clients left because their node died.

    Raises:
        ValueError: The message is malformed.
    """
    try:
        about = orjson.loads(envelope.body)
        joined = [attendee(client_id, user) for client_id, user in about["joined"]]
        return joined, [str(client_id) for client_id in about["left"]], bool(about["dead"])
    except (KeyError, TypeError) as error:
        raise ValueError("malformed presence message") from error
