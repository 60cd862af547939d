"""publish and broadcast."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from gateway.auth.api_keys import ApiKey
from gateway.core import json_text
from gateway.core.position import Position
from gateway.core.publication import (
    MAX_BROADCAST_TOPICS,
    Publication,
    is_idempotency_key,
    of_broadcast,
)
from gateway.http.centrifugo_api.wire import (
    ErrorCode,
    Params,
    Refused,
    Result,
    bad_request,
    channel,
    check_channel,
    flag,
    refuse_unknown,
    text,
)
from gateway.node.node import Node

TAGS = ("action", "subtype")  # the tags that are fields of our messages


async def publish(node: Node, key: ApiKey, params: Params) -> Result:
    """Publish on `channel`."""
    topic = _permitted(key, channel(params, node.rules))
    fields = _fields(node, [topic], params)
    [answer] = await _published(node, [Publication.of_item({**fields, "topic": topic})])
    return answer


async def broadcast(node: Node, key: ApiKey, params: Params) -> Result:
    """Publish one message on each of `channels`. The channels that are refused do not affect the others."""
    named = params.get("channels")
    if not isinstance(named, list) or not 0 < len(named) <= MAX_BROADCAST_TOPICS:
        raise bad_request(
            f"channels must be a list of 1 to {MAX_BROADCAST_TOPICS} names; send several broadcasts for more"
        )
    responses: list[Result | None] = []
    good: list[str] = []
    for name in named:
        try:
            topic = _permitted(key, check_channel(name, node.rules))
            if topic in good:
                raise bad_request(f"channels names {topic} twice; name it once")
        except Refused as refused:
            responses.append({"error": refused.as_dict()})
        else:
            good.append(topic)
            responses.append(None)
    fields = _fields(node, good, params)
    answers = iter(await _published(node, of_broadcast({**fields, "topics": good})) if good else ())
    return {"responses": [{"result": next(answers)} if one is None else one for one in responses]}


def _permitted(key: ApiKey, topic: str) -> str:
    if not key.may_publish(topic):
        raise Refused(ErrorCode.PERMISSION_DENIED, f"the key {key.name} may not publish on {topic}")
    return topic


async def _published(node: Node, publications: list[Publication]) -> list[Result]:
    return [_position(position) for position in await node.publisher.publish(publications)]


def _position(position: Position | None) -> Result:
    return {} if position is None else {"offset": position.offset, "epoch": position.epoch}


def _fields(node: Node, topics: list[str], params: Params) -> Result:
    """The fields of a message for our API, without its topic."""
    refuse_unknown(params, "version", "version_epoch")
    flag(params, "delta")  # each subscriber decides whether it receives differences
    if flag(params, "skip_history"):
        kept = next((topic for topic in topics if node.rules.of(topic).history), None)
        if kept is not None:
            raise Refused(
                ErrorCode.NOT_AVAILABLE, f"{kept} has history, which keeps all messages: leave skip_history out"
            )
    tags = params.get("tags") or {}
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise bad_request("tags must be an object of texts")
    fields: Result = {"data": _data(params), **{name: tags[name] for name in TAGS if tags.get(name)}}
    fields["tags"] = {name: value for name, value in tags.items() if name not in TAGS}
    key = text(params, "idempotency_key")
    if key:
        fields["idempotencyKey"] = (
            key
            if is_idempotency_key(key)
            else f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"
        )
    return fields


def _data(params: Params) -> Any:
    if params.get("data") is not None:
        return params["data"]
    encoded = params.get("b64data")
    if not isinstance(encoded, str) or not encoded:
        raise bad_request("a publication needs data, any JSON but null")
    try:
        return json_text.loads(base64.b64decode(encoded, validate=True))
    except ValueError as error:
        raise bad_request(f"b64data must be JSON in base64: {error}") from None
