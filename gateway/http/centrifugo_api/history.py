"""history and history_remove."""

from __future__ import annotations

import orjson

from gateway.auth.api_keys import ApiKey
from gateway.broker.history import MAX_OFFSET
from gateway.core import message, tags
from gateway.core.commands import MAX_HISTORY_LIMIT
from gateway.core.stream_position import StreamEntry
from gateway.http.centrifugo_api.presence import client_info
from gateway.http.centrifugo_api.wire import (
    ErrorCode,
    Params,
    Refused,
    Result,
    bad_request,
    channel,
    flag,
    number,
    text,
)
from gateway.node.node import Node


async def history(node: Node, _key: ApiKey, params: Params) -> Result:
    """Messages of `channel`: at most `limit` after, or with `reverse` before, the position `since`."""
    topic = _ruled(node, params)
    limit, reverse, since = number(params, "limit"), flag(params, "reverse"), params.get("since")
    if not limit >= -1:
        raise bad_request(f"limit must be -1 (all) or more, not {limit}")
    most = min(limit if limit >= 0 else MAX_HISTORY_LIMIT, MAX_HISTORY_LIMIT)
    first = None if reverse or not most else 1
    offset, epoch = None, ""
    if since is not None:
        if not isinstance(since, dict) or not 0 <= number(since, "offset") <= MAX_OFFSET:
            raise bad_request("since must be an object with the offset and the epoch of a message")
        offset, epoch = number(since, "offset"), text(since, "epoch")
        first = max(1, offset - most) if reverse else offset + 1
    page = await node.history.read(topic, first, max(1, most), compare=False)
    if epoch and epoch != page.epoch:
        raise Refused(ErrorCode.UNRECOVERABLE_POSITION, f"the epoch of {topic} is {page.epoch}, not {epoch[:64]}")
    entries = page.entries if most else []
    if reverse:
        entries = [entry for entry in reversed(entries) if offset is None or entry.offset < offset]
    return {"publications": list(map(_publication, entries)), "offset": page.top, "epoch": page.epoch}


async def history_remove(node: Node, _key: ApiKey, params: Params) -> Result:
    """Delete the messages of `channel`."""
    await node.publisher.delete_history(_ruled(node, params))
    return {}


def _publication(entry: StreamEntry) -> Result:
    _, _, extras, data = message.unpack(entry.body)
    about: Result = {"data": orjson.Fragment(data), "offset": entry.offset}
    found, sender = tags.of_extras(extras), message.sender_of(extras)
    if found:
        about["tags"] = found
    return {**about, "info": client_info(sender)} if sender else about


def _ruled(node: Node, params: Params) -> str:
    topic = channel(params, node.rules)
    if not node.rules.of(topic).history:
        raise Refused(ErrorCode.NOT_AVAILABLE, f"{topic} has no history: enable it by a topic rule")
    return topic
