"""subscribe, unsubscribe, disconnect and refresh: orders about the clients of a user."""

from __future__ import annotations

from gateway.auth.api_keys import ApiKey
from gateway.broker.keys import is_client_id
from gateway.core.names import is_name
from gateway.http.centrifugo_api.wire import (
    ErrorCode,
    Params,
    Refused,
    Result,
    bad_request,
    channel,
    flag,
    number,
    refuse_unknown,
    text,
)
from gateway.node.node import Node


async def subscribe(node: Node, _key: ApiKey, params: Params) -> Result:
    """Subscribe the clients of `user` to `channel`."""
    refuse_unknown(params, "info", "b64info", "data", "b64data", "expire_at", "recover_since", "override")
    return await _order(node, params, "subscribe", topics=[channel(params, node.rules)])


async def unsubscribe(node: Node, _key: ApiKey, params: Params) -> Result:
    """Unsubscribe the clients of `user` from `channel`."""
    return await _order(node, params, "unsubscribe", topics=[channel(params, node.rules)])


async def disconnect(node: Node, _key: ApiKey, params: Params) -> Result:
    """Close the connections of `user` with code 3503."""
    refuse_unknown(params, "whitelist")
    custom = params.get("disconnect") or {}
    if not isinstance(custom, dict):
        raise bad_request("disconnect must be an object with code and reason")
    if number(custom, "code") not in (0, 3503):
        raise Refused(ErrorCode.NOT_AVAILABLE, f"the close code is always 3503, not {custom['code']}: leave code out")
    reason = text(custom, "reason")
    return await _order(node, params, "disconnect", **({"reason": reason} if reason else {}))


async def refresh(node: Node, _key: ApiKey, params: Params) -> Result:
    """Set when the connections of `user` expire: now, at `expire_at`, or never."""
    expires = number(params, "expire_at")
    if not 0 <= expires <= 1e12:
        raise bad_request(f"expire_at must be seconds since 1970, not {expires}")
    return await _order(node, params, "expire", expires=1 if flag(params, "expired") else expires or None)


async def _order(node: Node, params: Params, op: str, **about: object) -> Result:
    """Send the order to the node of `client`, or for all clients of `user`."""
    refuse_unknown(params, "session")
    user, client = text(params, "user"), text(params, "client")
    if client:
        found = await node.registry.client(client) if is_client_id(client) else None
        # A client has no row yet in its first moments; only its node knows then whether it is connected.
        if is_client_id(client) and (found is None or user in ("", found["user"])):
            await node.control_publisher.broadcast(op, client=client, **about)
    elif is_name(user):
        await node.control_publisher.broadcast(op, user=user, **about)
    else:
        raise bad_request("user must be the name of a user, or client the id of a client")
    return {}
