"""Figures of the node's parts that Prometheus reads at each scrape."""

from __future__ import annotations

from gateway import logging
from gateway.connections.command_handler import CommandHandler
from gateway.connections.manager import ConnectionManager
from gateway.connections.open_connections import OpenConnections
from gateway.core.hub import Hub
from gateway.metrics import Metrics
from gateway.node.readiness import Readiness


def register(
    metrics: Metrics,
    readiness: Readiness,
    open_connections: OpenConnections,
    hub: Hub,
    commands: CommandHandler,
    connections: ConnectionManager,
) -> None:
    """Have `metrics` read these parts at each scrape: frequent operations then only add to an integer."""
    metrics.read_by_label(
        "gateway_protocol_connections", "connections of this node, by protocol", "protocol",
        lambda: open_connections.by_protocol,
    )  # fmt: skip
    metrics.read(
        {
            "gateway_ready": lambda: not readiness.unready_reasons(),
            "gateway_redis_impaired": lambda: bool(readiness.impairments()),
            "gateway_connections": lambda: len(open_connections),
            "gateway_subscriptions": lambda: hub.memberships,
            "gateway_buffered_bytes": commands.limits.buffered_bytes,
            "gateway_topics": lambda: hub.topic_count,
        },
        {
            "gateway_deliveries": lambda: hub.deliveries,
            "gateway_sent_bytes": lambda: hub.sent_bytes,
            "gateway_log_lines_dropped": logging.dropped,
            "gateway_received_bytes": lambda: commands.received_bytes,
            "gateway_deflate_in_bytes": lambda: connections.deflater.in_bytes,
            "gateway_deflate_out_bytes": lambda: connections.deflater.out_bytes,
        },
    )
