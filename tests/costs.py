"""What each operation may cost on a node with 100,000 topics and 20,000 clients: the one source of the table in
docs/reference/limits.md and of the test that measures it (tests/integration/test_costs.py).

Bounds are for one operation. CPU is bounded at three times and more of what was measured on a machine of two cores, and
at 2 ms at least: a slow machine must not fail, while a cost that grows with all topics or all clients must.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

TOPICS: Final = 100_000
CLIENTS: Final = 20_000
HELD: Final = 4000  # topics that the measured client hears already
BEGIN: Final = "<!-- costs -->"
END: Final = "<!-- end of costs -->"


@dataclass(frozen=True, slots=True)
class Cost:
    """The bounds of one operation; `times`: how often it is measured."""

    name: str
    node_ms: float = 2.0  # CPU of the node
    redis_ms: float = 1.0  # CPU of Redis
    kept: int = 0  # bytes in Redis after it; those of a client's own rows end with the client
    sent: int = 1024  # bytes sent to the caller, without HTTP's headers
    times: int = 60


# By the caller. A client's operations are those of a client that hears 4,000 topics already.
CLIENT: Final = (
    Cost("AUTH", node_ms=6),
    Cost("SUBSCRIBE a topic"),
    Cost("SUBSCRIBE a topic with history and presence", node_ms=6, redis_ms=2, kept=512),
    Cost("SUBSCRIBE that recovers 100 messages", node_ms=15, redis_ms=4, sent=40_000, times=30),
    Cost("SUBSCRIBE 500 topics", node_ms=60, redis_ms=20, sent=16_000, times=5),
    Cost(
        "SUBSCRIBE 500 topics with history and presence", node_ms=600, redis_ms=100, kept=16_384, sent=400_000, times=4
    ),
    Cost("UNSUBSCRIBE a topic"),
    Cost("PUBLISH"),
    Cost("PUBLISH on a topic with history and a snapshot", node_ms=4, kept=5632),
    Cost("REQUEST system/ping"),
    Cost("REQUEST system/getStatus"),
    Cost("REQUEST history, 100 messages", node_ms=6, redis_ms=2, sent=40_000),
    Cost("REQUEST presence"),
    Cost("REQUEST answered by the back end", node_ms=12, kept=2048),
    Cost("COMMAND", node_ms=12),
    Cost("LOGS, 20 lines"),
    Cost("ping"),
    Cost("WebSocket ping", times=200),
    Cost("empty fragment", node_ms=0.2, sent=0, times=500),
    Cost("message that is refused"),
)
ANYONE: Final = (
    Cost("GET /ws, and close", node_ms=6),
    Cost("GET /sse, and close", node_ms=8),
    Cost("POST /poll, a new stream", node_ms=8),
    Cost("POST /say", node_ms=6),
    Cost("GET /", sent=16_000, node_ms=6),
    Cost("GET /console", sent=16_000, node_ms=6),
    Cost("GET /gateway.js", sent=80_000, node_ms=6),
    Cost("GET /healthz", node_ms=6),
    Cost("GET /readyz", node_ms=6),
    Cost("GET /metrics", node_ms=20, sent=80_000, times=20),
    Cost("GET /api/openapi.json", node_ms=20, sent=80_000, times=20),
    Cost("GET /api/asyncapi.json", node_ms=20, sent=80_000, times=20),
    Cost("GET what is not there", node_ms=6),
    Cost("POST /api/publish without a key", node_ms=6),
)
KEY: Final = (
    Cost("POST /api/publish", node_ms=6),
    Cost(
        "POST /api/publish, 1,000 messages with history",
        node_ms=150,
        redis_ms=100,
        sent=120_000,
        kept=2_000_000,
        times=4,
    ),
    Cost(
        "POST /api/broadcast, 1,000 topics with history",
        node_ms=150,
        redis_ms=150,
        sent=120_000,
        kept=6_000_000,
        times=4,
    ),
    Cost("GET /api/topics, 1,000 of them", node_ms=200, redis_ms=400, sent=120_000, times=5),
    Cost("GET /api/topics/{topic}", node_ms=6),
    Cost("GET /api/topics/{topic}/history, 100 messages", node_ms=8, redis_ms=3, sent=40_000),
    Cost("DELETE /api/topics/{topic}/history", node_ms=8),
    Cost("GET /api/topics/{topic}/presence", node_ms=6),
    Cost("GET /api/clients, 1,000 of them", node_ms=150, redis_ms=30, sent=600_000, times=5),
    Cost("GET /api/clients/{id}", node_ms=12, sent=200_000),
    Cost("DELETE /api/clients/{id}", node_ms=8, redis_ms=2),
    Cost("DELETE /api/clients/{id}/topics/{topic}", node_ms=20, redis_ms=2),
    Cost("POST /api/clients/{id}/topics, 100 of them", node_ms=40, redis_ms=6, sent=4000, times=10),
    Cost("POST /api/users/{user}/topics", node_ms=8),
    Cost("DELETE /api/users/{user}/topics/{topic}", node_ms=8),
    Cost("DELETE /api/users/{user}/clients", node_ms=400, redis_ms=80, times=5),
    Cost("GET /api/revocations", node_ms=6, sent=20_000),
    Cost("POST /api/revocations", node_ms=60, kept=1024, times=20),
    Cost("GET /api/nodes", node_ms=8, redis_ms=2),
    Cost("POST /api/rebalance", node_ms=12, redis_ms=2),
    Cost("POST /api/reload", node_ms=100, redis_ms=5, times=10),
    Cost("GET /api/services", node_ms=6, sent=8000),
    Cost("GET /api/services/{service}", node_ms=6, sent=4000),
    Cost("PUT /api/services/{service}", node_ms=6, kept=1024),
    Cost("DELETE /api/services/{service}", node_ms=6),
    Cost("GET /api/cache/{key}", node_ms=6),
    Cost("PUT /api/cache/{key}", node_ms=6, kept=1024),
    Cost("DELETE /api/cache/{key}", node_ms=6),
    Cost("DELETE /api/cache", node_ms=20, redis_ms=15, times=10),
    Cost("GET /api/key", node_ms=6),
    Cost("Centrifugo's publish", node_ms=6),
    Cost(
        "Centrifugo's broadcast, 1,000 channels with history",
        node_ms=180,
        redis_ms=150,
        sent=120_000,
        kept=2_000_000,
        times=4,
    ),
    Cost("Centrifugo's subscribe", node_ms=8),
    Cost("Centrifugo's presence", node_ms=6),
    Cost("Centrifugo's history, 100 messages", node_ms=8, redis_ms=3, sent=40_000),
    Cost("Centrifugo's info", node_ms=8, redis_ms=2),
    Cost("Centrifugo's channels", node_ms=400, redis_ms=400, times=5),
    Cost("Centrifugo's batch, 100 publishes", node_ms=60, redis_ms=10, sent=4000, times=10),
)
# POST /api/nodes/{node}/drain ends the node: its work is bounded by its clients, and paced over GATEWAY_DRAIN_SECONDS.
GROUPS: Final = (("a client", CLIENT), ("anyone, by HTTP", ANYONE), ("an API key", KEY))


def table() -> str:
    """The table of docs/reference/limits.md."""
    lines = ["| | CPU of the node, ms | CPU of Redis, ms | bytes kept in Redis | bytes sent |", "|---|---|---|---|---|"]
    for who, costs in GROUPS:
        lines.append(f"| **{who}** | | | | |")
        lines += map(_row, costs)
    return "\n".join(lines)


def all_costs() -> Iterable[Cost]:
    """Every row."""
    return (cost for _, costs in GROUPS for cost in costs)


def _row(cost: Cost) -> str:
    return f"| {cost.name} | {cost.node_ms:g} | {cost.redis_ms:g} | {cost.kept:,} | {cost.sent:,} |"
