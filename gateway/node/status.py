"""The status of the node, for administrators, clients and the node's row in Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gateway import __version__
from gateway.connections.open_connections import OpenConnections
from gateway.core import timestamps
from gateway.core.hub import Hub
from gateway.core.topic_rules import TopicRules
from gateway.node.drain import Drain
from gateway.node.readiness import Readiness
from gateway.node.rebalance import Rebalance


class NodeFacts(NamedTuple):
    """What does not change while the node runs."""

    id: str
    name: str
    address: str  # as other nodes and HAProxy reach it
    rules: TopicRules  # a reload changes what they contain


class NodeStatus:
    """Computes the status from the node's parts on each call. `now_ms` gives the time in ms since 1970."""

    def __init__(
        self,
        facts: NodeFacts,
        readiness: Readiness,
        drain: Drain,
        rebalance: Rebalance,
        open_connections: OpenConnections,
        hub: Hub,
        now_ms: Callable[[], int],
    ) -> None:
        self.services: str | None = None  # the overall status of the services, as last published
        self._facts = facts
        self._readiness = readiness
        self._drain = drain
        self._rebalance = rebalance
        self._open_connections = open_connections
        self._hub = hub
        self._now_ms = now_ms
        self._started_ms = now_ms()

    def node_row(self) -> dict[str, str | int]:
        """The node's own row in the registry."""
        return {**self._row(), "rules": self._facts.rules.digest}

    def _row(self) -> dict[str, str | int]:
        facts = self._facts
        return {
            "name": facts.name, "address": facts.address, "path": "/ws",
            "version": __version__, "started": timestamps.iso_time(self._started_ms),
            "clients": len(self._open_connections),
            # A reader sees this row only while the lease is valid.
            "topics": self._hub.topic_count, "ready": int(not self._readiness.reasons_but_lease()),
            "draining": int(self._drain.draining), "moving": int(self._rebalance.moving),
        }  # fmt: skip

    def report(self) -> dict[str, Any]:
        """The node's status for administrators, without the measurements."""
        reasons = self._readiness.unready_reasons()
        return {
            "id": self._facts.id, **self._row(), "ready": not reasons, "reasons": reasons,
            "draining": self._drain.draining, "moving": self._rebalance.moving,
            "subscriptions": self._hub.memberships,
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        """The node's status for REQUEST system/getStatus, which any client may send."""
        return {
            "status": "degraded" if self._readiness.unready_reasons() else "ok",
            "node": self._facts.name,
            "version": __version__,
            "uptimeSeconds": (self._now_ms() - self._started_ms) // 1000,
            "clients": len(self._open_connections),
            "topics": self._hub.topic_count,
            "draining": self._drain.draining,
            "services": self.services,
        }
