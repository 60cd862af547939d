"""Readiness: whether the load balancer should send new clients to this node, and if not, why.

The node is ready when it can serve a new client: it can verify tokens, pub/sub is connected, the node's own channels
are subscribed, it holds a lease, and it is not draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.auth.authenticator import Authenticator
from gateway.broker.pubsub_health import PubSubHealth
from gateway.logging import StateLog
from gateway.node.drain import Drain
from gateway.node.heartbeat import LeaseState
from gateway.node.own_channels import OwnChannels

WATCH_SECONDS: Final = 0.25  # between two checks for the log


class Readiness:
    """Asks the parts of the node at each call."""

    def __init__(
        self,
        authenticator: Authenticator,
        pubsub: PubSubHealth,
        own_channels: OwnChannels,
        lease: LeaseState,
        drain: Drain,
    ) -> None:
        self._authenticator = authenticator
        self._pubsub = pubsub
        self._own_channels = own_channels
        self._lease = lease
        self._drain = drain

    def unready_reasons(self) -> list[str]:
        """Why the node should receive no new client; empty: the node is ready."""
        found = self.reasons_but_lease()
        # A failed part of a Redis Cluster may hold the lease. Then this node serves clients as well as any other.
        if self._lease.reason is None or self._pubsub.partial is not None:
            return found
        return [*found, self._lease.reason]

    def reasons_but_lease(self) -> list[str]:
        """As `unready_reasons`, for the node's row, which a reader sees only while the lease is valid."""
        found = ["draining"] if self._drain.draining else []
        if self._authenticator.unready_reason is not None:
            found.append(self._authenticator.unready_reason)
        if self._pubsub.reason is not None:
            found.append(f"bus: {self._pubsub.reason}")
        elif not self._own_channels.confirmed:
            found.append("bus: channels not yet confirmed")
        return found

    async def watch(self, changed: Callable[[bool], None]) -> None:
        """Log each change of readiness with its reasons until cancelled, and call `changed` with the new value."""
        state = StateLog("node is not ready", over="node is ready")
        impaired = StateLog("Redis impaired, node stays ready", over="Redis no longer impaired")
        before: bool | None = None
        while True:
            if impaired_by := self.impairments():
                impaired.begin("; ".join(impaired_by))
            else:
                impaired.end()
            reasons = self.unready_reasons()
            if reasons:
                state.begin("; ".join(reasons))
            else:
                state.end()
            if before is not (before := not reasons):
                changed(not reasons)
            await asyncio.sleep(WATCH_SECONDS)

    def impairments(self) -> list[str]:
        """What Redis cannot do for any node, which leaves nodes ready; empty: nothing."""
        return [reason for reason in (self._lease.impaired, self._pubsub.partial) if reason is not None]
