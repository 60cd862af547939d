"""The open connections of this node, by client id, and what other parts read of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from gateway.core import events, hub, timestamps
from gateway.core.hub import Hub
from gateway.core.presence_set import ClientChanges, Member
from gateway.transports.connection import Connection


class OpenConnections:
    """The clients of the node `node_id`; `now_ms` gives the time in ms since 1970. An iteration sees a copy."""

    def __init__(self, node_id: str, hub: Hub, now_ms: Callable[[], int]) -> None:
        self._node_id = node_id
        self._hub = hub
        self._now_ms = now_ms
        self.by_protocol: Counter[str] = Counter()
        self._open: dict[str, Connection] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    def new_id(self) -> str:
        """An id for the next client; no other client of any node has it."""
        self._counter += 1
        return f"{self._node_id}.{self._counter}"

    def add(self, connection: Connection) -> None:
        """Add an opened connection."""
        self._open[connection.client_id] = connection
        self.by_protocol[connection.protocol.name] += 1

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        del self._open[connection.client_id]
        self.by_protocol[connection.protocol.name] -= 1

    def find(self, client_id: str) -> Connection | None:
        """The connection of a client; None: this node does not have it."""
        return self._open.get(client_id)

    def of_user(self, user: str) -> list[Connection]:
        """The connections of a user to this node."""
        return [m for m in self._hub.members(hub.user_audience(user)) if isinstance(m, Connection)]

    # ---- presence

    def topic_members(self, topic: str) -> list[Member]:
        """The clients of this node on the topic."""
        members = [m for m in self._hub.members(hub.topic_audience(topic)) if isinstance(m, Connection)]
        return [_member(member) for member in members]

    def topic_member(self, topic: str, client_id: str) -> Member | None:
        """One client of this node; None if it is not on the topic."""
        connection = self._open.get(client_id)
        if connection is None or hub.topic_audience(topic) not in connection.audiences:
            return None
        return _member(connection)

    def send_presence(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the local subscribers of the topic."""
        self._hub.deliver(hub.topic_audience(topic), events.PresenceChanged(topic, about, self._now_ms()))

    def send_client_changes(self, topic: str, changes: ClientChanges) -> None:
        """Send the clients that joined and left to the local subscribers that want them."""
        self._hub.deliver(hub.join_leave_audience(topic), events.ClientsChanged(topic, changes, self._now_ms()))

    # ---- rows of the registry

    def client_row(self, client_id: str) -> bytes | None:
        """The row of a client as JSON; None if it is gone."""
        connection = self._open.get(client_id)
        if connection is None:
            return None
        info, identity = connection.info, connection.session.identity
        topics = sorted(topic for topic in map(hub.topic_of, connection.audiences) if topic is not None)
        return orjson.dumps(
            {"connectedAt": timestamps.iso_time(info.connected_ms), "ip": info.ip, "userAgent": info.user_agent,
             "transport": connection.kind, "user": identity.user, "role": identity.role, "topics": topics}
        )  # fmt: skip

    def client_ids(self) -> list[str]:
        """The ids of all clients."""
        return list(self._open)


def _member(connection: Connection) -> Member:
    identity = connection.session.identity
    return Member(connection.client_id, identity.user, identity.info)
