"""The status of the node, for load balancers, Prometheus, administrators, clients and its row in Redis.

The node is ready when it can serve a new client: it can verify tokens, the bus and its own channels are subscribed, it
holds a lease, and it is not draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway import __version__, logs
from gateway.auth.trust import Trust
from gateway.clients import Clients
from gateway.cluster.bus import Bus
from gateway.core import timestamps
from gateway.core.hub import Hub
from gateway.departures import Departures, Phase
from gateway.heartbeat import Heartbeat
from gateway.logs import StateLog
from gateway.metrics import Metrics
from gateway.settings import Settings

WATCH_SECONDS: Final = 0.25  # between two checks for the log


class Condition:
    """Computes the status from the node's parts on each call. `now_ms` gives the time in ms since 1970."""

    def __init__(
        self, settings: Settings, node_id: str, *, clients: Clients, hub: Hub, bus: Bus, trust: Trust,
        heartbeat: Heartbeat, departures: Departures, metrics: Metrics, now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self.listening = False  # Redis has confirmed the node's own channels
        self.services: str | None = None  # the overall status of the services, as last published
        self._settings = settings
        self._node_id = node_id
        self._clients = clients
        self._hub = hub
        self._bus = bus
        self._trust = trust
        self._heartbeat = heartbeat
        self._departures = departures
        self._now_ms = now_ms
        self._started_ms = now_ms()
        metrics.read(
            {
                "gateway_ready": lambda: not self.reasons(),
                "gateway_redis_impaired": lambda: bool(self.impaired()),
                "gateway_connections": lambda: len(clients),
                "gateway_subscriptions": lambda: hub.memberships,
                "gateway_buffered_bytes": clients.limits.buffered_bytes,
                "gateway_topics": lambda: hub.topic_count,
            },
            {
                "gateway_deliveries": lambda: hub.deliveries,
                "gateway_sent_bytes": lambda: hub.sent_bytes,
                "gateway_log_lines_dropped": logs.dropped,
                "gateway_received_bytes": lambda: clients.received_bytes,
                "gateway_deflate_in_bytes": lambda: clients.deflater.in_bytes,
                "gateway_deflate_out_bytes": lambda: clients.deflater.out_bytes,
            },
        )

    # ---- readiness

    def reasons(self) -> list[str]:
        """Why the node should receive no new client; empty: the node is ready."""
        found = self._reasons_but_lease()
        # A failed part of a Redis Cluster may hold the lease. Then this node serves clients as well as any other.
        if self._heartbeat.reason is None or self._bus.partial is not None:
            return found
        return [*found, self._heartbeat.reason]

    def _reasons_but_lease(self) -> list[str]:
        found = ["draining"] if self._departures.draining else []
        if self._trust.reason is not None:
            found.append(self._trust.reason)
        if self._bus.reason is not None:
            found.append(f"bus: {self._bus.reason}")
        elif not self.listening:
            found.append("bus: channels not yet confirmed")
        return found

    async def watch(self, changed: Callable[[bool], None]) -> None:
        """Log each change of readiness with its reasons until cancelled, and call `changed` with the new value."""
        state = StateLog("node is not ready", over="node is ready")
        impaired = StateLog("Redis impaired, node stays ready", over="Redis no longer impaired")
        before: bool | None = None
        while True:
            if impaired_by := self.impaired():
                impaired.begin("; ".join(impaired_by))
            else:
                impaired.end()
            reasons = self.reasons()
            if reasons:
                state.begin("; ".join(reasons))
            else:
                state.end()
            if before is not (before := not reasons):
                changed(not reasons)
            await asyncio.sleep(WATCH_SECONDS)

    def impaired(self) -> list[str]:
        """What Redis cannot do for any node, which leaves nodes ready; empty: nothing."""
        return [reason for reason in (self._heartbeat.impaired, self._bus.partial) if reason is not None]

    # ---- status

    def row(self) -> dict[str, str | int]:
        """The node's own row in the registry."""
        settings = self._settings
        return {
            "name": settings.node, "address": settings.advertise, "path": "/ws",
            "version": __version__, "started": timestamps.iso_time(self._started_ms), "clients": len(self._clients),
            # A reader sees this row only while the lease is valid.
            "topics": self._hub.topic_count, "ready": int(not self._reasons_but_lease()),
            "draining": int(self._departures.draining),
            "moving": int(self._departures.phase is Phase.SHEDDING),
        }  # fmt: skip

    def report(self) -> dict[str, Any]:
        """The node's status for administrators, without the measurements."""
        reasons = self.reasons()
        return {
            "id": self._node_id, **self.row(), "ready": not reasons, "reasons": reasons,
            "draining": self._departures.draining, "moving": self._departures.phase is Phase.SHEDDING,
            "subscriptions": self._hub.memberships,
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        """The node's status for REQUEST system/getStatus, which any client may send."""
        return {
            "status": "degraded" if self.reasons() else "ok", "node": self._settings.node, "version": __version__,
            "uptimeSeconds": (self._now_ms() - self._started_ms) // 1000, "clients": len(self._clients),
            "topics": self._hub.topic_count, "draining": self._departures.draining, "services": self.services,
        }  # fmt: skip
