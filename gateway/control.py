"""The control channel: messages to all nodes. Each node executes those that concern its own clients or itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from gateway.auth.trust import Trust
from gateway.clients import Clients
from gateway.cluster.keys import Keys
from gateway.cluster.link import Link
from gateway.core import orders
from gateway.core.orders import Disconnect, Drain, Forget, Move, OrderError, Revoke, Unsubscribe
from gateway.departures import Departures
from gateway.metrics import Metrics
from gateway.streams import Streams


class Control:
    """Publishes control messages and executes those that it receives.

    `leave` makes the process drain and exit; `spawn` runs a coroutine as a task of the node.
    """

    def __init__(
        self, node_id: str, *, link: Link, keys: Keys, clients: Clients, streams: Streams, trust: Trust,
        departures: Departures, metrics: Metrics, leave: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._node_id = node_id
        self._link = link
        self._keys = keys
        self._clients = clients
        self._streams = streams
        self._trust = trust
        self._departures = departures
        self._metrics = metrics
        self._leave = leave
        self._spawn = spawn

    async def order(self, op: str, **about: Any) -> None:
        """Publish a control message to every node: the operation `op` with the fields that `orders.parse` expects.

        Raises:
            Unavailable: Redis did not confirm.
        """
        await self._link.publish(self._keys.control, orjson.dumps({"op": op, **about}))

    def on_order(self, _channel: str, payload: bytes) -> None:
        """Execute a control message from a node, this one included, or from another program."""
        try:
            order = orders.parse(payload)
        except OrderError:
            self._metrics.relayed.labels("malformed").inc()
            return
        self._metrics.relayed.labels("control").inc()
        match order:
            case Disconnect() | Unsubscribe():
                self._clients.execute(order)
            case Forget(topics):
                for topic in topics:
                    self._streams.forget(topic)
            case Revoke(revocations):
                if self._trust.revoked.receive(revocations):
                    self._clients.enforce(self._trust.revoked.ends(revocations))
            case Drain(self._node_id):
                self._leave()
            case Move(self._node_id, keep, seconds, after):
                self._spawn(self._departures.move(keep, seconds, after), "move")
            case Drain() | Move():
                pass  # for another node

    async def check_revocations(self) -> None:
        """Synchronise the revocations with Redis, and disconnect clients whose tokens are revoked.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if await self._trust.revoked.check():
            self._clients.enforce(self._trust.revoked.refuses)
