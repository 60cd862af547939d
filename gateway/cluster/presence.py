"""Who is on the topics that have presence: each node's rows under its lease, and word of it to the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

from gateway.cluster import rows
from gateway.cluster.envelope import Envelope, Kind
from gateway.cluster.hashes import Hashes
from gateway.cluster.keys import Keys
from gateway.cluster.link import Command, Link
from gateway.cluster.registry import living
from gateway.core.roster import Attendee

ROWS: Final = 500  # in one Lua call
MAX_INFO_BYTES: Final = 4000  # of what is written of a client


class Attendance:
    """This node's people in Redis, and everybody's."""

    def __init__(self, link: Link, keys: Keys, node_id: str) -> None:
        self._link = link
        self._keys = keys
        self._node_id = node_id
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
        """Write who came and who went, and tell the other nodes. False if the lease is gone and nothing was written.

        Raises:
            Unavailable: Redis did not confirm.
        """
        keys = [self._keys.node(self._node_id), self._keys.people(self._node_id, topic)]
        commands: list[Command] = []
        for at in range(0, max(len(joined), len(left), 1), ROWS):
            sets = [part for a in joined[at : at + ROWS] for part in (a.client_id, orjson.dumps({"user": a.user}))]
            first = int(drop_first and at == 0)
            commands.append(self._attend.whole(keys, [first, len(sets) // 2, *sets, *left[at : at + ROWS]]))
        word: Command = (self._link.publish_command(channel), channel, told(joined, left, now_ms).pack())
        if not self._link.sharded:
            return all(await self._link.send([*commands, word]))
        # The rows lie in another slot, and come first: whoever reads them hears what comes behind.
        return all(await self._link.send(commands)) and all(await self._link.send([word]))

    async def read(self, topic: str) -> list[Attendee]:
        """All clients on the topic, on all living nodes.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        nodes = await living(self._link, self._keys, self._living)
        keys = [self._keys.people(node_id, topic) for node_id in nodes]
        return [
            attendee
            for key, people in zip(keys, await self._people.read(keys), strict=True)
            for attendee in self._link.rows.each("presence", key, people.items(), _attendee)
        ]


def _attendee(field: tuple[bytes, bytes]) -> Attendee:
    return attendee(rows.client_id(field[0]), rows.json_object(field[1], MAX_INFO_BYTES)["user"])


def attendee(client_id: object, user: object) -> Attendee:
    """A client on a topic, of what another node has written.

    Raises:
        ValueError: It cannot be one.
    """
    if not isinstance(client_id, str) or not isinstance(user, str | None):
        raise ValueError("a client on a topic is named by its id, and by its user or null")  # noqa: TRY004
    return Attendee(client_id, user)


def told(joined: Iterable[Attendee], left: Iterable[str], now_ms: int, *, dead: bool = False) -> Envelope:
    """The word that nodes hear of who came and went, on the topic's own channel."""
    about: dict[str, Any] = {"joined": [list(attendee) for attendee in joined], "left": list(left), "dead": dead}
    return Envelope(now_ms, orjson.dumps(about), kind=Kind.NODES)


def heard(envelope: Envelope) -> tuple[list[Attendee], list[str], bool]:
    """Who came, who went, and whether they died with their node.

    Raises:
        ValueError: It is not what `told` says.
    """
    try:
        about = orjson.loads(envelope.text)
        joined = [attendee(client_id, user) for client_id, user in about["joined"]]
        return joined, [str(client_id) for client_id in about["left"]], bool(about["dead"])
    except (KeyError, TypeError) as error:
        raise ValueError("not word of presence") from error
