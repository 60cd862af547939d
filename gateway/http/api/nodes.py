"""The nodes over HTTP: list, drain, rebalance, reload."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.core import rebalancing
from gateway.http.api.openapi import COUNT, NODE_ID, TIME, Schema, answer, array, in_path, operation, record, ref
from gateway.http.api.resource import SMALL_BYTES, ApiError, node_of, read_body, resource
from gateway.node.reload import ReloadRefused


async def list_nodes(request: Request) -> Any:
    """The living nodes."""
    return {"nodes": await node_of(request).registry.nodes()}


async def drain_node(request: Request) -> Any:
    """Drain a node: it closes its clients and exits. Its supervisor restarts it."""
    node, named = node_of(request), request.path_params["node"]
    if named == node.id:  # works without Redis
        node.lifecycle.shut_down()
        return {"draining": [named]}
    found = [row["id"] for row in await node.registry.nodes() if named in (row["id"], row["name"])]
    if not found:
        raise ApiError(404, "not_found", f"There is no living node {named[:200]!r}")
    if len(found) > 1:
        raise ApiError(409, "ambiguous", f"Several nodes have this name; use an id: {', '.join(found)}")
    await node.control_publisher.broadcast("drain", node=found[0])
    return {"draining": found}


async def rebalance(request: Request) -> Any:
    """Have the nodes above the mean move surplus clients to the others. Body: ``{"seconds": …}``, the duration."""
    node, body = node_of(request), await read_body(request, SMALL_BYTES)
    known = isinstance(body, dict) and body.keys() <= {"seconds"}
    seconds = body.get("seconds", rebalancing.SECONDS) if known else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= rebalancing.MAX_SECONDS:
        raise ApiError(400, "bad_request", f'Send {{"seconds": …}}, from 0 to {rebalancing.MAX_SECONDS:g}')
    nodes = await node.registry.nodes()
    moving = [row["id"] for row in nodes if row["moving"]]
    if moving:
        raise ApiError(
            409, "busy", f"A rebalance is moving clients from {', '.join(moving)}; try again when it has ended"
        )
    ready = [row for row in nodes if row["ready"]]
    moves = rebalancing.plan({row["id"]: row["clients"] for row in ready})
    youngest = min((node.seconds_since(row["started"]) for row in ready), default=0.0)
    after = max(0.0, rebalancing.SLOW_START_SECONDS - youngest) if moves else 0.0
    for node_id, move in moves.items():
        await node.control_publisher.broadcast("move", node=node_id, keep=move.keep, seconds=seconds, after=after)
    return {
        "moves": [{"node": node_id, "clients": move.clients} for node_id, move in moves.items()],
        "seconds": seconds,
        "after": round(after, 3),
    }


async def reload(request: Request) -> Any:
    """Have every node read its topic rules, API keys and JWT keys again."""
    node = node_of(request)
    try:
        return {"reloaded": await node.reloader.reload_all(), "rules": node.rules.digest}
    except ReloadRefused as error:
        raise ApiError(409, "not_reloaded", str(error)) from None


def _body() -> Schema:
    seconds = {
        "type": "number", "minimum": 0, "maximum": rebalancing.MAX_SECONDS, "default": rebalancing.SECONDS,
        "description": "Time over which the closes are spread",
    }  # fmt: skip
    schema = {"type": "object", "properties": {"seconds": seconds}, "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


PATHS: Final[Schema] = {
    "/api/nodes": {
        "get": operation(
            "listNodes", "The living nodes",
            answer(record(nodes=array(ref("Node"))), "Ordered by id. A node disappears when its lease ends"),
        )
    },
    "/api/nodes/{node}/drain": {
        "post": operation(
            "drainNode", "Have a node close its clients, a few at a time, and exit",
            answer(record(draining=array(NODE_ID)), "The node has been asked to. Its supervisor restarts it"),
            "NotFound", "Conflict", parameters=[in_path("node", {"type": "string", "examples": ["n1"]})],
            description="`node` is a name or an id. A node that is asked to drain itself, by its id, does so without "
            "Redis.",
        )
    },
    "/api/rebalance": {
        "post": operation(
            "rebalance", "Have nodes above the mean move their surplus clients to the others",
            answer(ref("Rebalance"), "The nodes have been asked to, and begin after `after` seconds"),
            "Conflict", body=_body(),
            description="Clients are notified and closed with code 3011. The load balancer sends them to another node "
            "when they reconnect.",
        )
    },
    "/api/reload": {
        "post": operation(
            "reload", "Have every node read its topic rules, API keys, JWT keys and secret files again",
            answer(
                record(
                    reloaded=array(NODE_ID),
                    rules={"type": "string", "description": "Digest of the topic rules that all nodes have now"},
                ),
                "Every node uses its files as they are now",
            ),
            "Conflict",
            description="Each node checks its files first. If a node's files are invalid, or differ from those of the "
            "other nodes, the answer is 409 and no node changes. Clients on topics whose permission, history, snapshot "
            "or presence changes reconnect, with close code 3011.",
        )
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {
    "Node": record(
        id=NODE_ID,
        name={"type": "string", "examples": ["n1"]},
        address={"type": "string", "description": "Where it listens, as configured"},
        path={"type": "string", "description": "Of its WebSocket", "examples": ["/ws"]},
        version={"type": "string"},
        started=TIME,
        rules={"type": "string", "description": "Digest of its topic rules; it differs if the rules differ"},
        clients=COUNT,
        topics={**COUNT, "description": "Topics that its clients are subscribed to"},
        ready={"type": "boolean", "description": "Whether it accepts new clients"},
        draining={"type": "boolean", "description": "Whether it closes its clients in order to exit"},
        moving={"type": "boolean", "description": "Whether a rebalance moves its clients to other nodes"},
    ),
    "Rebalance": record(
        moves=array(record(node=NODE_ID, clients={**COUNT, "description": "The number of clients to move"})),
        seconds={"type": "number", "description": "Time over which the closes are spread"},
        after={"type": "number", "description": "Seconds until the first close. The load balancer sends few clients "
               "to a node that has just started, so moving clients at once would have no effect"},
    ),
}  # fmt: skip

ROUTES: Final = [
    resource("/api/nodes", GET=("read", list_nodes)),
    resource("/api/nodes/{node}/drain", POST=("admin", drain_node)),
    resource("/api/rebalance", POST=("admin", rebalance)),
    resource("/api/reload", POST=("admin", reload)),
]
