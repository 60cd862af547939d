"""The HTTP API for back ends and operators: publish, and see and direct the whole cluster from any node."""

from __future__ import annotations

import functools
import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import balance, protocol, topics
from gateway.cluster.link import Unavailable, Unconfirmed
from gateway.node import Node
from gateway.protocol import ProtocolError
from gateway.relay import TooLarge
from gateway.web.openapi import DEFAULT_LIMIT, MAX_LIMIT, MAX_MESSAGES, document

SMALL_BYTES: Final = 4096  # a body of a few numbers

Handler = Callable[[Request], Awaitable[Any]]


class ApiError(Exception):
    """A request that is not carried out, as the status and the words that say why."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": {"code": code, "message": message}}, status, headers)


def guarded(handler: Handler, *parameters: str) -> Callable[[Request], Awaitable[Response]]:
    """`handler` for bearers of the API key alone, its errors turned into answers; `parameters`: of its query."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        node: Node = request.app.state.node
        try:
            _authorize(request, node.settings.api_key)
            _check_query(request, parameters)
            return _json(await handler(request))
        except ApiError as error:
            return _error(error.status, error.code, error.message, error.headers)
        except Unconfirmed as error:
            return _error(503, "unconfirmed", f"{error}; with the same idempotencyKey it is safe to ask again")
        except Unavailable as error:
            return _error(503, "unavailable", f"Redis is not available: {error}", {"retry-after": "1"})
        except ClientDisconnect:  # amid its body: nobody's fault here, and nobody reads the answer
            return _error(400, "bad_request", "The body broke off")

    return answer


def _authorize(request: Request, key: str) -> None:
    if not key:
        raise ApiError(403, "api_off", "The API is off: this node has no GATEWAY_API_KEY")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
        raise ApiError(
            401, "unauthorized", "Send the header Authorization: Bearer <GATEWAY_API_KEY>",
            {"www-authenticate": "Bearer"},
        )  # fmt: skip


def _check_query(request: Request, parameters: tuple[str, ...]) -> None:
    """A misspelt filter must not be read as none."""
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in parameters:
            raise ApiError(400, "bad_request", f"Unknown parameter {name[:60]!r}")
        if given.count(name) > 1:
            raise ApiError(400, "bad_request", f"Parameter {name!r} is given twice")


async def publish(request: Request) -> Any:
    """``{"topic", "data", …}`` or ``{"messages": [{…}, …]}``: all are published, or none."""
    node: Node = request.app.state.node
    body = await _body(request, 2 * node.settings.max_message_bytes)
    items = body.get("messages", [body]) if isinstance(body, dict) else None
    if not isinstance(items, list) or not 0 < len(items) <= MAX_MESSAGES:
        raise ApiError(
            400, "bad_request", f'Send {{"topic", "data"}}, or {{"messages": […]}} with 1 to {MAX_MESSAGES} of them'
        )
    if "messages" in body and len(body) > 1:
        raise ApiError(400, "bad_request", "messages stands alone; nothing else is read beside it")
    publications = []
    for at, item in enumerate(items):
        try:
            publications.append(protocol.publication(item))
        except ProtocolError as error:
            where = f"messages[{at}]: " if "messages" in body else ""
            raise ApiError(400, "bad_request", where + error.message) from None
    try:
        positions = await node.relay.publish(publications)
    except TooLarge as error:
        raise ApiError(413, "too_large", str(error)) from None
    return {
        "results": [
            {"topic": publication.topic, **(position._asdict() if position is not None else {})}
            for publication, position in zip(publications, positions, strict=True)
        ]
    }


async def list_topics(request: Request) -> Any:
    """Every topic somebody hears, with counts."""
    return {"topics": await _node(request).registry.topics()}


async def show_topic(request: Request) -> Any:
    """One topic, with counts; a topic nobody hears has none."""
    topic = request.path_params["topic"]
    if not topics.is_topic(topic):
        raise ApiError(404, "not_found", "There can be no such topic")
    return await _node(request).registry.topic(topic)


async def show_history(request: Request) -> Any:
    """A topic's last messages."""
    node, topic, query = _node(request), _ruled(request, "history"), request.query_params
    since, reverse = query.get("since"), query.get("reverse", "0")
    if since is not None and not (since.isascii() and since.isdigit() and len(since) < 16):
        raise ApiError(400, "bad_request", "since must be an offset")
    if reverse not in ("0", "1"):
        raise ApiError(400, "bad_request", "reverse must be 0 or 1")
    limit = _limit(query.get("limit"), protocol.MAX_HISTORY_LIMIT, protocol.DEFAULT_HISTORY_LIMIT)
    found = await node.relay.read_history(
        topic, limit=limit, since=None if since is None else int(since), reverse=reverse == "1"
    )
    return {"topic": topic, **found}


async def delete_history(request: Request) -> Any:
    """Drop a topic's messages, in Redis and in the nodes; the numbering goes on."""
    node, topic = _node(request), _ruled(request, "history")
    deleted = await node.relay.delete_history(topic)
    await node.order("forget", topics=[topic])
    return {"deleted": deleted}


async def one_history(request: Request) -> Any:
    """One route for both methods, as `one_client`."""
    return await (delete_history if request.method == "DELETE" else show_history)(request)


async def show_presence(request: Request) -> Any:
    """Who is on a topic."""
    topic = _ruled(request, "presence")
    return {"topic": topic, **await _node(request).relay.read_presence(topic)}


def _ruled(request: Request, what: str) -> str:
    topic: str = request.path_params["topic"]
    relay = _node(request).relay
    if not topics.is_topic(topic) or not (relay.has_history if what == "history" else relay.has_presence)(topic):
        raise ApiError(404, "not_found", f"The topic has no {what}; the rules in GATEWAY_TOPICS give it one")
    return topic


async def list_clients(request: Request) -> Any:
    """Clients by user, topic and node, a page at a time."""
    query = request.query_params
    limit, cursor = _limit(query.get("limit")), _cursor(query.get("cursor"))
    found: list[dict[str, Any]] = []
    async for client in _node(request).registry.clients(
        user=query.get("user"), topic=query.get("topic"), node=query.get("node"), after=cursor
    ):
        if len(found) == limit:
            return {"clients": found, "next": found[-1]["id"]}
        found.append(client)
    return {"clients": found, "next": None}


async def one_client(request: Request) -> Any:
    """One route for both methods: of two, the answer to a third would allow only the first's."""
    return await (disconnect_client if request.method == "DELETE" else show_client)(request)


async def show_client(request: Request) -> Any:
    """One client."""
    return await _client(request)


async def disconnect_client(request: Request) -> Any:
    """Close one client's socket, on whichever node it is (3503)."""
    client = await _client(request)
    await _node(request).order("disconnect", client=client["id"])
    return {"disconnected": [client["id"]]}


async def unsubscribe_client(request: Request) -> Any:
    """Take one topic from one client; it is told."""
    client, topic = await _client(request), request.path_params["topic"]
    if topic not in client["topics"]:
        raise ApiError(404, "not_found", f"{client['id']} does not hear {topic}")
    await _node(request).order("unsubscribe", client=client["id"], topics=[topic])
    return {"unsubscribed": [topic]}


async def disconnect_user(request: Request) -> Any:
    """Close all sockets of a user, on all nodes (3503)."""
    node, user = _node(request), request.path_params["user"]
    if not user:
        raise ApiError(404, "not_found", "A user has a name")
    found = [client["id"] async for client in node.registry.clients(user=user)]
    # Even if none is listed: one may be connecting this very moment.
    await node.order("disconnect", user=user)
    return {"disconnected": found}


async def list_nodes(request: Request) -> Any:
    """The living nodes."""
    return {"nodes": await _node(request).registry.nodes()}


async def drain_node(request: Request) -> Any:
    """Have a node send its clients away and end; its supervisor starts it again."""
    node, named = _node(request), request.path_params["node"]
    if named == node.id:  # needs no Redis
        node.leave()
        return {"draining": [named]}
    found = [row["id"] for row in await node.registry.nodes() if named in (row["id"], row["name"])]
    if not found:
        raise ApiError(404, "not_found", f"No node {named[:200]!r} lives")
    if len(found) > 1:
        raise ApiError(409, "ambiguous", f"Several nodes are called so; name one by its id: {', '.join(found)}")
    await node.order("drain", node=found[0])
    return {"draining": found}


async def rebalance(request: Request) -> Any:
    """``{"seconds": …}``: have the nodes above the mean send their surplus to those below it, over that time."""
    node, body = _node(request), await _body(request, SMALL_BYTES)
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
        await node.order("move", node=node_id, keep=move.keep, seconds=seconds, after=after)
    return {
        "moves": [{"node": node_id, "clients": move.clients} for node_id, move in moves.items()],
        "seconds": seconds,
        "after": round(after, 3),
    }


async def openapi(_request: Request) -> Response:
    """This API, described; open to all, since it holds no secret."""
    return _json(document())


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, in our form."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    match error.status_code:
        case 404:
            return _error(404, "not_found", f"There is nothing at {request.url.path[:200]}", headers)
        case 405:
            message = f"{request.method} is not possible here, only {headers.get('allow')}"
            return _error(405, "method_not_allowed", message, headers)
        case status:
            return _error(status, "bad_request", str(error.detail), headers)


async def internal_error(_request: Request, _failure: Exception) -> Response:
    """A fault of ours, in our form; Starlette raises it again for the log."""
    return _error(500, "internal", "The node failed at this; its log says how")


def _node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


async def _client(request: Request) -> dict[str, Any]:
    client_id = request.path_params["id"]
    client = await _node(request).registry.client(client_id)
    if client is None:
        raise ApiError(404, "not_found", f"No client {client_id[:200]!r} is connected")
    return client


async def _body(request: Request, limit: int) -> Any:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise ApiError(413, "too_large", f"The body is larger than {limit} bytes")
    try:
        return protocol.loads(bytes(received))
    except ValueError as error:
        raise ApiError(400, "bad_request", f"The body is not JSON: {error}") from None


def _cursor(text: str | None) -> str | None:
    # Any other text would be before all clients, and whoever pages with it would begin again and again.
    if text is not None and not re.fullmatch(r"[A-Za-z0-9_.\-]+\.[0-9]{1,18}", text):
        raise ApiError(400, "bad_request", "cursor must be what next was on the page before")
    return text


def _limit(text: str | None, most: int = MAX_LIMIT, default: int = DEFAULT_LIMIT) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise ApiError(400, "bad_request", f"limit must be a whole number from 1 to {most}")
    return int(text)


ROUTES: Final = [
    Route("/api/openapi.json", openapi),
    Route("/api/publish", guarded(publish), methods=["POST"]),
    Route("/api/topics", guarded(list_topics)),
    Route(
        "/api/topics/{topic:path}/history",
        guarded(one_history, "limit", "since", "reverse"),
        methods=["GET", "DELETE"],
    ),
    Route("/api/topics/{topic:path}/presence", guarded(show_presence)),
    Route("/api/topics/{topic:path}", guarded(show_topic)),
    Route("/api/clients", guarded(list_clients, "user", "topic", "node", "limit", "cursor")),
    Route("/api/clients/{id}", guarded(one_client), methods=["GET", "DELETE"]),
    Route("/api/clients/{id}/topics/{topic:path}", guarded(unsubscribe_client), methods=["DELETE"]),
    Route("/api/users/{user:path}/clients", guarded(disconnect_user), methods=["DELETE"]),
    Route("/api/nodes", guarded(list_nodes)),
    Route("/api/nodes/{node}/drain", guarded(drain_node), methods=["POST"]),
    Route("/api/rebalance", guarded(rebalance), methods=["POST"]),
]

EXCEPTION_HANDLERS: Final = {HTTPException: http_exception, Exception: internal_error}
