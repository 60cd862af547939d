"""info and channels: what the cluster has now."""

from __future__ import annotations

from typing import Final

from gateway.auth.api_keys import ApiKey
from gateway.core.topic_rules import PATTERN_FORM, is_pattern, matches
from gateway.http.centrifugo_api.wire import ErrorCode, Params, Refused, Result, bad_request, text
from gateway.node.node import Node

MAX_CHANNELS: Final = 2000  # in the cluster; they are listed in one turn of the event loop


async def info(node: Node, _key: ApiKey, _params: Params) -> Result:
    """The living nodes."""
    return {
        "nodes": [
            {"uid": row["id"], "name": row["name"], "version": row["version"], "num_clients": row["clients"],
             "num_users": 0, "num_channels": row["topics"], "num_subs": 0,
             "uptime": int(node.seconds_since(row["started"]))}
            for row in await node.registry.nodes()
        ]
    }  # fmt: skip


async def channels(node: Node, _key: ApiKey, params: Params) -> Result:
    """The topics that have subscribers and match `pattern`."""
    pattern = text(params, "pattern") or "*"
    if not is_pattern(pattern):
        raise bad_request(f"pattern must have {PATTERN_FORM}")
    page = await node.registry.listings.topics(MAX_CHANNELS)
    if page["next"] is not None:
        raise Refused(
            ErrorCode.LIMIT_EXCEEDED,
            f"the cluster has more than {MAX_CHANNELS} channels: use the pages of GET /api/topics",
        )
    rows = page["topics"]
    return {
        "channels": {
            row["topic"]: {"num_clients": row["subscribers"]} for row in rows if matches(pattern, row["topic"])
        }
    }
