"""The control channel: messages to all nodes. Each node executes those that concern its own clients or itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from gateway.auth.authenticator import Authenticator
from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys
from gateway.connections.manager import ConnectionManager
from gateway.core import control_messages
from gateway.core.control_messages import (
    ControlError,
    DisconnectClients,
    DrainNode,
    ForgetHistory,
    MoveClients,
    RevokeTokens,
    SubscribeClients,
    UnsubscribeClients,
)
from gateway.delivery.recovery import Recovery
from gateway.metrics import Metrics
from gateway.node.drain_manager import DrainManager


class ControlChannel:
    """Publishes control messages and executes those that it receives.

    `shut_down` makes the process drain and exit; `spawn` runs a coroutine as a task of the node.
    """

    def __init__(
        self,
        node_id: str,
        *,
        redis: RedisClient,
        keys: Keys,
        connections: ConnectionManager,
        recovery: Recovery,
        authenticator: Authenticator,
        drain_manager: DrainManager,
        metrics: Metrics,
        shut_down: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._node_id = node_id
        self._redis = redis
        self._keys = keys
        self._connections = connections
        self._recovery = recovery
        self._authenticator = authenticator
        self._drain_manager = drain_manager
        self._metrics = metrics
        self._shut_down = shut_down
        self._spawn = spawn

    async def broadcast(self, op: str, **about: Any) -> None:
        """Publish a control message to every node: the operation `op` with the fields that `control_messages.parse`
        expects.

        Raises:
            Unavailable: Redis did not confirm.
        """
        await self._redis.publish(self._keys.control, orjson.dumps({"op": op, **about}))

    def message_received(self, _channel: str, payload: bytes) -> None:
        """Execute a control message from a node, this one included, or from another program."""
        try:
            order = control_messages.parse(payload)
        except ControlError:
            self._metrics.relayed.labels("malformed").inc()
            return
        self._metrics.relayed.labels("control").inc()
        match order:
            case DisconnectClients() | UnsubscribeClients() | SubscribeClients():
                self._connections.execute(order)
            case ForgetHistory(topics):
                for topic in topics:
                    self._recovery.forget_messages(topic)
            case RevokeTokens(revocations):
                if self._authenticator.revocation_store.receive(revocations):
                    self._connections.enforce_revocations(self._authenticator.revocation_store.effect_of(revocations))
            case DrainNode(self._node_id):
                self._shut_down()
            case MoveClients(self._node_id, keep, seconds, after):
                self._spawn(self._drain_manager.rebalance(keep, seconds, after), "move")
            case DrainNode() | MoveClients():
                pass  # for another node

    async def check_revocations(self) -> None:
        """Synchronise the revocations with Redis, and disconnect clients whose tokens are revoked.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if await self._authenticator.revocation_store.refresh():
            self._connections.enforce_revocations(self._authenticator.revocation_store.is_revoked)
