"""subscribe, unsubscribe, disconnect and refresh: orders about the clients of a user."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.auth.api_keys import ApiKey
from gateway.broker.history import MAX_OFFSET
from gateway.broker.keys import is_client_id
from gateway.core.control_messages import CLOSE_CODES, MAX_KEPT
from gateway.core.names import is_name
from gateway.core.position import ANY_EPOCH
from gateway.http.centrifugo_api.wire import (
    Params,
    Result,
    bad_request,
    channel,
    flag,
    number,
    refuse_unknown,
    text,
)
from gateway.node.node import Node

MAX_DATA_BYTES: Final = 16 << 10  # of a notice of a subscription; a control message carries it
MAX_REASON_BYTES: Final = 123  # of a close (RFC 6455, 5.5)


async def subscribe(node: Node, _key: ApiKey, params: Params) -> Result:
    """Subscribe the clients of `user` to `channel`."""
    refuse_unknown(params, "info", "b64info", "b64data", "expire_at", "override")
    topic, since, data = channel(params, node.rules), params.get("recover_since"), params.get("data")
    about: dict[str, Any] = {"topics": [topic]}
    if since:
        if not isinstance(since, dict) or not 0 <= number(since, "offset") <= MAX_OFFSET:
            raise bad_request("recover_since must be an object with the offset and the epoch of a message")
        about["recover"] = {topic: {"offset": number(since, "offset"), "epoch": text(since, "epoch") or ANY_EPOCH}}
    if data is not None:
        if len(orjson.dumps(data)) > MAX_DATA_BYTES:
            raise bad_request(f"data must have at most {MAX_DATA_BYTES} bytes of JSON: publish larger data")
        about["data"] = data
    return await _order(node, params, "subscribe", **about)


async def unsubscribe(node: Node, _key: ApiKey, params: Params) -> Result:
    """Unsubscribe the clients of `user` from `channel`."""
    return await _order(node, params, "unsubscribe", topics=[channel(params, node.rules)])


async def disconnect(node: Node, _key: ApiKey, params: Params) -> Result:
    """Close the connections of `user`, except those in `whitelist`, with code 3503 or that in `disconnect`."""
    custom, kept = params.get("disconnect") or {}, params.get("whitelist") or []
    if not isinstance(custom, dict):
        raise bad_request("disconnect must be an object with code and reason")
    if not isinstance(kept, list) or len(kept) > MAX_KEPT or not all(map(is_name, kept)):
        raise bad_request(f"whitelist must be a list of at most {MAX_KEPT} ids of clients")
    code, reason = number(custom, "code"), text(custom, "reason")
    if code and code not in CLOSE_CODES:
        raise bad_request(f"code must be from {CLOSE_CODES.start} to {CLOSE_CODES.stop - 1}, not {code}")
    if len(reason.encode()) > MAX_REASON_BYTES:
        raise bad_request(f"reason must have at most {MAX_REASON_BYTES} bytes")
    about: dict[str, Any] = {"keep": kept} if kept else {}
    if code:
        about["code"] = code
    if reason:
        about["reason"] = reason
    return await _order(node, params, "disconnect", **about)


async def refresh(node: Node, _key: ApiKey, params: Params) -> Result:
    """Set when the connections of `user` expire: now, at `expire_at`, or never."""
    expires = number(params, "expire_at")
    if not 0 <= expires <= 1e12:
        raise bad_request(f"expire_at must be seconds since 1970, not {expires}")
    return await _order(node, params, "expire", expires=1 if flag(params, "expired") else expires or None)


async def _order(node: Node, params: Params, op: str, **about: object) -> Result:
    """Send the order to the node of `client` or of the client with `session`, or for all clients of `user`."""
    user, client, session = text(params, "user"), text(params, "client"), text(params, "session")
    if session:  # it names its client before a secret
        named = session.rpartition(".")[0]
        client = named if client in ("", named) and named else "none"
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
