"""The status of the node, for load balancers, Prometheus, administrators, clients and its row in Redis.

The node is ready when it can serve a new client: it can verify tokens, pub/sub is connected, the node's own channels
are subscribed, it holds a lease, and it is not draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway import __version__, logging
from gateway.auth.authenticator import Authenticator
from gateway.broker.pubsub import PubSub
from gateway.connections.manager import ConnectionManager
from gateway.core import timestamps
from gateway.core.hub import Hub
from gateway.logging import StateLog
from gateway.metrics import Metrics
from gateway.node.drain_manager import DrainManager, Phase
from gateway.node.heartbeat import Heartbeat
from gateway.settings import Settings

WATCH_SECONDS: Final = 0.25  # between two checks for the log


class NodeStatus:
    """Computes the status from the node's parts on each call. `now_ms` gives the time in ms since 1970."""

    def __init__(
        self,
        settings: Settings,
        node_id: str,
        *,
        connections: ConnectionManager,
        hub: Hub,
        pubsub: PubSub,
        authenticator: Authenticator,
        heartbeat: Heartbeat,
        drain_manager: DrainManager,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self.is_subscribed = False  # Redis has confirmed the node's own channels
        self.services: str | None = None  # the overall status of the services, as last published
        self._settings = settings
        self._node_id = node_id
        self._connections = connections
        self._hub = hub
        self._pubsub = pubsub
        self._authenticator = authenticator
        self._heartbeat = heartbeat
        self._drain_manager = drain_manager
        self._now_ms = now_ms
        self._started_ms = now_ms()
        metrics.read(
            {
                "gateway_ready": lambda: not self.unready_reasons(),
                "gateway_redis_impaired": lambda: bool(self.impairments()),
                "gateway_connections": lambda: len(connections),
                "gateway_subscriptions": lambda: hub.memberships,
                "gateway_buffered_bytes": connections.limits.buffered_bytes,
                "gateway_topics": lambda: hub.topic_count,
            },
            {
                "gateway_deliveries": lambda: hub.deliveries,
                "gateway_sent_bytes": lambda: hub.sent_bytes,
                "gateway_log_lines_dropped": logging.dropped,
                "gateway_received_bytes": lambda: connections.received_bytes,
                "gateway_deflate_in_bytes": lambda: connections.deflater.in_bytes,
                "gateway_deflate_out_bytes": lambda: connections.deflater.out_bytes,
            },
        )

    # ---- readiness

    def unready_reasons(self) -> list[str]:
        """Why the node should receive no new client; empty: the node is ready."""
        found = self._unready_reasons_but_lease()
        # A failed part of a Redis Cluster may hold the lease. Then this node serves clients as well as any other.
        if self._heartbeat.reason is None or self._pubsub.partial is not None:
            return found
        return [*found, self._heartbeat.reason]

    def _unready_reasons_but_lease(self) -> list[str]:
        found = ["draining"] if self._drain_manager.draining else []
        if self._authenticator.unready_reason is not None:
            found.append(self._authenticator.unready_reason)
        if self._pubsub.reason is not None:
            found.append(f"bus: {self._pubsub.reason}")
        elif not self.is_subscribed:
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
        return [reason for reason in (self._heartbeat.impaired, self._pubsub.partial) if reason is not None]

    # ---- status

    def node_row(self) -> dict[str, str | int]:
        """The node's own row in the registry."""
        settings = self._settings
        return {
            "name": settings.node, "address": settings.advertise, "path": "/ws",
            "version": __version__, "started": timestamps.iso_time(self._started_ms), "clients": len(self._connections),
            # A reader sees this row only while the lease is valid.
            "topics": self._hub.topic_count, "ready": int(not self._unready_reasons_but_lease()),
            "draining": int(self._drain_manager.draining),
            "moving": int(self._drain_manager.phase is Phase.REBALANCING),
        }  # fmt: skip

    def report(self) -> dict[str, Any]:
        """The node's status for administrators, without the measurements."""
        reasons = self.unready_reasons()
        return {
            "id": self._node_id, **self.node_row(), "ready": not reasons, "reasons": reasons,
            "draining": self._drain_manager.draining, "moving": self._drain_manager.phase is Phase.REBALANCING,
            "subscriptions": self._hub.memberships,
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        """The node's status for REQUEST system/getStatus, which any client may send."""
        return {
            "status": "degraded" if self.unready_reasons() else "ok",
            "node": self._settings.node,
            "version": __version__,
            "uptimeSeconds": (self._now_ms() - self._started_ms) // 1000,
            "clients": len(self._connections),
            "topics": self._hub.topic_count,
            "draining": self._drain_manager.draining,
            "services": self.services,
        }
