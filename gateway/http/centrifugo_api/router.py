"""POST /api/METHOD and POST /api: commands with an API key in `X-API-Key`, or in `Authorization: apikey KEY`.

Requests with `Authorization: Bearer` are for our own API, which has the paths `/api/publish` and `/api/broadcast` too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope as AsgiScope

from gateway.auth.api_keys import ApiKey, Scope
from gateway.broker.client import Unavailable
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.names import quoted
from gateway.core.publication import MAX_BROADCAST_TOPICS, PublicationTooLarge
from gateway.core.topic_rules import MAX_TOPIC_LENGTH
from gateway.http.api.resource import ApiError, json, node_of, read_body, refusal_of, write_audit
from gateway.http.centrifugo_api import cluster, connections, history, presence, publications
from gateway.http.centrifugo_api.wire import STATUS, ErrorCode, Params, Refused, Result, bad_request
from gateway.node.node import Node

MAX_COMMANDS: Final = 100  # in one batch
OWN: Final = frozenset({"publish", "broadcast"})  # paths that our own API has too


class _Method(NamedTuple):
    scope: Scope
    call: Callable[[Node, ApiKey, Params], Awaitable[Result]]


METHODS: Final = {
    "publish": _Method("publish", publications.publish), "broadcast": _Method("publish", publications.broadcast),
    "subscribe": _Method("admin", connections.subscribe), "unsubscribe": _Method("admin", connections.unsubscribe),
    "disconnect": _Method("admin", connections.disconnect), "refresh": _Method("admin", connections.refresh),
    "presence": _Method("read", presence.presence), "presence_stats": _Method("read", presence.presence_stats),
    "history": _Method("read", history.history), "history_remove": _Method("admin", history.history_remove),
    "info": _Method("read", cluster.info), "channels": _Method("read", cluster.channels),
}  # fmt: skip


class _CommandRoute(Route):
    """A route for the requests that have a key as Centrifugo's libraries send it."""

    def matches(self, scope: AsgiScope) -> tuple[Match, AsgiScope]:
        """Whether the request is a command."""
        match, found = super().matches(scope)
        if match is not Match.FULL:
            return Match.NONE, {}
        named = found["path_params"].get("method", "")
        known = (named in METHODS or named in ("batch", "rpc")) and named not in OWN
        return (match, found) if known or _key(Request(scope)) else (Match.NONE, {})


def _key(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return request.headers.get("x-api-key") or (given.strip() if scheme.lower() == "apikey" else "")


async def command(request: Request) -> Response:
    """Execute one command, or the commands of a batch."""
    node, method = node_of(request), request.path_params.get("method")
    key = node.api_keys.find(_key(request).encode("latin-1", "replace"))
    if key is None:
        return Response(status_code=401)
    request.state.key = key
    limit = 2 * node.settings.max_message_bytes + MAX_BROADCAST_TOPICS * (MAX_TOPIC_LENGTH + 3)
    try:
        body = {} if request.headers.get("content-length") == "0" else await read_body(request, limit)
    except (ApiError, ClientDisconnect) as error:
        return refusal_of(error)
    try:
        if method is None:  # the command is in the body
            if not isinstance(body, dict) or not isinstance(body.get("method"), str):
                raise bad_request('send {"method": …, "params": {…}}, or POST /api/METHOD')
            method, body = body["method"], body.get("params", {})
        content = (
            await _batch(request, body) if method == "batch" else {"result": await _execute(request, method, body)}
        )
    except Refused as refused:
        transport = request.headers.get("x-centrifugo-error-mode", "").lower() == "transport"
        return json({"error": refused.as_dict()}, STATUS[refused.code] if transport else 200)
    return json(content)


async def _batch(request: Request, params: Any) -> Result:
    """Execute the commands one after the other. An error of one does not stop the others."""
    commands = params.get("commands") if isinstance(params, dict) else None
    if not isinstance(commands, list) or len(commands) > MAX_COMMANDS:
        given = f"not {len(commands)} of them" if isinstance(commands, list) else f"not {quoted(commands)}"
        raise bad_request(f"commands must be a list of at most {MAX_COMMANDS}, {given}; send several batches for more")
    replies: list[Result] = []
    for one in commands:
        try:
            if not isinstance(one, dict) or len(one) != 1:
                raise bad_request("each command must be an object with one method")
            [(method, about)] = one.items()
            replies.append({method: await _execute(request, method, about)})
        except Refused as refused:
            replies.append({"error": refused.as_dict()})
    return {"replies": replies}


async def _execute(request: Request, named: str, params: Any) -> Result:
    """Execute one command.

    Raises:
        Refused: The command is refused, or Redis is not available.
    """
    node, key = node_of(request), request.state.key
    method = METHODS.get(named)
    if method is None:
        raise Refused(ErrorCode.METHOD_NOT_FOUND, f"the method {quoted(named)} is not available")
    status = 200
    try:
        if not key.may(method.scope):
            raise Refused(ErrorCode.PERMISSION_DENIED, f"the key {key.name} does not have the scope {method.scope}")
        if not isinstance(params, dict):
            raise bad_request(f"the parameters must be an object, not {quoted(params)}")
        return await method.call(node, key, params)
    except Refused as refused:
        status = STATUS[refused.code]
        raise
    except PublicationTooLarge as error:
        raise Refused(ErrorCode.LIMIT_EXCEEDED, str(error)) from None
    except ProtocolError as error:
        code = ErrorCode.PERMISSION_DENIED if error.reason is ErrorReason.NOT_ALLOWED else ErrorCode.BAD_REQUEST
        raise Refused(code, error.message) from None
    except Unavailable as error:
        status = 503
        raise Refused(ErrorCode.INTERNAL, f"Redis is not available: {error}") from None
    finally:
        if method.scope == "admin":
            about = params if isinstance(params, dict) else {}
            request.state.about = {name: about.get(name) for name in ("user", "client", "channel")}
            write_audit(request, f"centrifugo {named}", status)


ROUTES: Final = [
    _CommandRoute("/api/{method}", command, methods=["POST"]),
    _CommandRoute("/api", command, methods=["POST"]),
]
