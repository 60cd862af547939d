"""presence and presence_stats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.auth.api_keys import ApiKey
from gateway.http.centrifugo_api.wire import ErrorCode, Params, Refused, Result, channel
from gateway.node.node import Node


async def presence(node: Node, _key: ApiKey, params: Params) -> Result:
    """All clients on `channel`."""
    topic = _ruled(node, params)
    found = await node.topic_queries.read_presence(topic, clients=True)
    if "clients" not in found:
        raise Refused(ErrorCode.LIMIT_EXCEEDED, f"{topic} has too many clients for a list: use presence_stats")
    return {"presence": {one["clientId"]: client_info(one) for one in found["clients"]}}


async def presence_stats(node: Node, _key: ApiKey, params: Params) -> Result:
    """The numbers of clients and users on `channel`."""
    clients, people = await node.topic_queries.count_presence(_ruled(node, params))
    return {"num_clients": clients, "num_users": people}


def client_info(one: Mapping[str, Any]) -> Result:
    """A client as presence lists it, or as the sender of a message."""
    about = {"client": one["clientId"], "user": one.get("user") or ""}
    return {**about, "conn_info": one["info"]} if "info" in one else about


def _ruled(node: Node, params: Params) -> str:
    topic = channel(params, node.rules)
    if not node.rules.of(topic).presence:
        raise Refused(ErrorCode.NOT_AVAILABLE, f"{topic} has no presence: enable it by a topic rule")
    return topic
