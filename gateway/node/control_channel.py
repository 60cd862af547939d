"""The control channel: messages to all nodes. Each node executes those that concern its own clients or itself."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.auth.authenticator import Authenticator
from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys
from gateway.connections.client_orders import ClientOrders
from gateway.connections.enforcer import Enforcer
from gateway.core import control_messages
from gateway.core.control_messages import (
    ApplyReload,
    CheckReload,
    ControlError,
    DisconnectClients,
    DrainNode,
    ExpireClients,
    ForgetHistory,
    MoveClients,
    ReloadReport,
    RevokeTokens,
    SubscribeClients,
    UnsubscribeClients,
)
from gateway.delivery.recovery import Recovery
from gateway.metrics import Metrics
from gateway.node.lifecycle import Lifecycle
from gateway.node.rebalance import Rebalance
from gateway.node.reload import Reloader


class ControlPublisher:
    """Publishes control messages to every node."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def broadcast(self, op: str, **about: Any) -> None:
        """Publish the operation `op` with the fields that `control_messages.parse` expects.

        Raises:
            Unavailable: Redis did not confirm.
        """
        await self._redis.publish(self._keys.control, orjson.dumps({"op": op, **about}))


class ControlChannel:
    """Executes the control messages that the node `node_id` receives."""

    reloader: Reloader  # set by the node: an eighth part that acts on these messages

    def __init__(
        self,
        node_id: str,
        client_orders: ClientOrders,
        enforcer: Enforcer,
        recovery: Recovery,
        authenticator: Authenticator,
        rebalance: Rebalance,
        lifecycle: Lifecycle,
        metrics: Metrics,
    ) -> None:
        self._node_id = node_id
        self._client_orders = client_orders
        self._enforcer = enforcer
        self._recovery = recovery
        self._authenticator = authenticator
        self._rebalance = rebalance
        self._lifecycle = lifecycle
        self._metrics = metrics

    def message_received(self, _channel: str, payload: bytes) -> None:
        """Execute a control message from a node, this one included, or from another program."""
        try:
            order = control_messages.parse(payload)
        except ControlError:
            self._metrics.relayed.labels("malformed").inc()
            return
        self._metrics.relayed.labels("control").inc()
        match order:
            case DisconnectClients() | UnsubscribeClients() | SubscribeClients() | ExpireClients():
                self._client_orders.execute(order)
            case ForgetHistory(topics):
                for topic in topics:
                    self._recovery.forget_messages(topic)
            case RevokeTokens(revocations):
                if self._authenticator.revocation_store.receive(revocations):
                    self._enforcer.enforce_revocations(self._authenticator.revocation_store.effect_of(revocations))
            case DrainNode(self._node_id):
                self._lifecycle.shut_down()
            case MoveClients(self._node_id, keep, seconds, after):
                self._lifecycle.spawn(self._rebalance.run(keep, seconds, after), "move")
            case CheckReload(request):
                self._lifecycle.spawn(self.reloader.check(request), "reload")
            case ApplyReload(request):
                self._lifecycle.spawn(self.reloader.apply(request), "reload")
            case ReloadReport() as report:
                self._lifecycle.spawn(self.reloader.report_received(report), "reload")
            case DrainNode() | MoveClients():
                pass  # for another node

    async def check_revocations(self) -> None:
        """Synchronise the revocations with Redis, and disconnect clients whose tokens are revoked.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if await self._authenticator.revocation_store.refresh():
            self._enforcer.enforce_revocations(self._authenticator.revocation_store.is_revoked)
