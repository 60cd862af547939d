"""Nodes: seen, drained, relieved of clients."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.core import balance
from gateway.web.answers import SMALL_BYTES, ApiError, body_of, node_of, resource
from gateway.web.openapi import COUNT, NODE_ID, TIME, Schema, answer, array, in_path, operation, record, ref


async def list_nodes(request: Request) -> Any:
    """The living nodes."""
    return {"nodes": await node_of(request).registry.nodes()}


async def drain_node(request: Request) -> Any:
    """Have a node send its clients away and end; its supervisor starts it again."""
    node, named = node_of(request), request.path_params["node"]
    if named == node.id:  # needs no Redis
        node.leave()
        return {"draining": [named]}
    found = [row["id"] for row in await node.registry.nodes() if named in (row["id"], row["name"])]
    if not found:
        raise ApiError(404, "not_found", f"No node {named[:200]!r} lives")
    if len(found) > 1:
        raise ApiError(409, "ambiguous", f"Several nodes are called so; name one by its id: {', '.join(found)}")
    await node.control.order("drain", node=found[0])
    return {"draining": found}


async def rebalance(request: Request) -> Any:
    """``{"seconds": …}``: have the nodes above the mean send their surplus to those below it, over that time."""
    node, body = node_of(request), await body_of(request, SMALL_BYTES)
    known = isinstance(body, dict) and body.keys() <= {"seconds"}
    seconds = body.get("seconds", balance.SECONDS) if known else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= balance.MAX_SECONDS:
        raise ApiError(400, "bad_request", f'Send {{"seconds": …}}, from 0 to {balance.MAX_SECONDS:g}')
    nodes = await node.registry.nodes()
    moving = [row["id"] for row in nodes if row["moving"]]
    if moving:
        raise ApiError(409, "busy", f"Clients are being moved away from {', '.join(moving)}; ask again when they are")
    ready = [row for row in nodes if row["ready"]]
    moves = balance.plan({row["id"]: row["clients"] for row in ready})
    youngest = min((node.seconds_since(row["started"]) for row in ready), default=0.0)
    after = max(0.0, balance.WARM_SECONDS - youngest) if moves else 0.0
    for node_id, move in moves.items():
        await node.control.order("move", node=node_id, keep=move.keep, seconds=seconds, after=after)
    return {
        "moves": [{"node": node_id, "clients": move.clients} for node_id, move in moves.items()],
        "seconds": seconds,
        "after": round(after, 3),
    }


def _body() -> Schema:
    seconds = {
        "type": "number", "minimum": 0, "maximum": balance.MAX_SECONDS, "default": balance.SECONDS,
        "description": "Time over which the closes are spread",
    }  # fmt: skip
    schema = {"type": "object", "properties": {"seconds": seconds}, "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


PATHS: Final[Schema] = {
    "/api/nodes": {
        "get": operation(
            "listNodes", "The living nodes",
            answer(record(nodes=array(ref("Node"))), "By id; a node is gone when its lease ends"),
        )
    },
    "/api/nodes/{node}/drain": {
        "post": operation(
            "drainNode", "Have a node send its clients away, a few at a time, and end",
            answer(record(draining=array(NODE_ID)), "It has been told to; its supervisor starts it again"),
            "NotFound", "Conflict", parameters=[in_path("node", {"type": "string", "examples": ["n1"]})],
            description="`node` is its name or its id; by its id a node can be told itself while Redis is away.",
        )
    },
    "/api/rebalance": {
        "post": operation(
            "rebalance", "Have nodes above the mean send their surplus to those below it",
            answer(ref("Rebalance"), "They have been told to, and begin when `after` has passed"),
            "Conflict", body=_body(),
            description="Clients are told, closed with code 3011, and led to another node as they come back.",
        )
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {
    "Node": record(
        id=NODE_ID,
        name={"type": "string", "examples": ["n1"]},
        address={"type": "string", "description": "Where it listens, as it was told itself"},
        path={"type": "string", "description": "Of its socket", "examples": ["/ws"]},
        version={"type": "string"},
        started=TIME,
        rules={"type": "string", "description": "Digest of its topic rules; nodes that differ have other rules"},
        clients=COUNT,
        topics={**COUNT, "description": "Topics that its clients hear"},
        ready={"type": "boolean", "description": "Whether it takes new clients"},
        draining={"type": "boolean", "description": "Whether it is about to leave"},
        moving={"type": "boolean", "description": "Whether it sends clients to other nodes"},
    ),
    "Rebalance": record(
        moves=array(record(node=NODE_ID, clients={**COUNT, "description": "How many it is to send away"})),
        seconds={"type": "number", "description": "Time over which they go"},
        after={"type": "number", "description": "Seconds until they begin: the load balancer sends a node that "
               "has just come up little, so to move there at once would be in vain"},
    ),
}  # fmt: skip

ROUTES: Final = [
    resource("/api/nodes", GET=("read", list_nodes)),
    resource("/api/nodes/{node}/drain", POST=("admin", drain_node)),
    resource("/api/rebalance", POST=("admin", rebalance)),
]
