"""The messages that the node sends to clients, encoded as bytes. Times are arguments (ISO 8601).  (pure)

docs/protocol.md is the public description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import orjson

from gateway.core import protocol, topics
from gateway.core.messages import Command, Request
from gateway.core.position import Position
from gateway.core.protocol import Json, RequestId


def welcome(client_id: str, node: str, version: str, ping_ms: int, limits: Mapping[str, Json], timestamp: str) -> bytes:
    """The first message on a socket. `limits`: the rate limits of the client, so that it can respect them."""
    about = {"clientId": client_id, "node": node, "version": version, "pingMs": ping_ms, "limits": limits}
    return system("welcome", about, timestamp)


def system(action: str, about: Mapping[str, Json], timestamp: str) -> bytes:
    """A SYSTEM message: welcome, gap, degraded, restored, shutdown or unsubscribed."""
    return orjson.dumps(
        {"type": "SYSTEM", "topic": topics.SYSTEM, "action": action, "data": about, "timestamp": timestamp}
    )


def token_expiring(ends_ms: int, timestamp: str) -> bytes:
    """The client's token expires at `ends_ms` (ms since 1970). The client keeps its topics if it sends a new token."""
    message = "Your token expires: send AUTH with a new one"
    return system("token_expiring", {"expires": protocol.iso(ends_ms), "message": message}, timestamp)


def gap(names: Iterable[str], timestamp: str) -> bytes:
    """Messages of these topics may be missing at the client."""
    return system("gap", {"topics": sorted(names)}, timestamp)


def authenticated(timestamp: str) -> bytes:
    """The acknowledgement of an accepted AUTH."""
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "authenticate", "status": "success",
         "message": "User authenticated successfully", "timestamp": timestamp}
    )  # fmt: skip


def subscribed(
    names: Iterable[str], request_id: RequestId, timestamp: str, positions: Mapping[str, Json] | None = None
) -> bytes:
    """The acknowledgement of a SUBSCRIBE: from now on the client receives every message of these topics, or a `gap`.

    `positions`: for each topic with history its epoch, offset and mark; and `recovered` if the client asked to recover.
    """
    names = list(names)
    # The message does not repeat many names: with thousands of topics that would double the size of the frame.
    listed = ", ".join(names) if len(names) <= 10 else f"{len(names)} topics"
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": names, "status": "success",
         "message": f"Successfully subscribed to {listed}", **_echo(request_id), "timestamp": timestamp,
         **({"positions": positions} if positions else {})}
    )  # fmt: skip


def unsubscribed(names: Iterable[str], request_id: RequestId, timestamp: str) -> bytes:
    """The acknowledgement of an UNSUBSCRIBE."""
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "unsubscribe", "topics": list(names), **_echo(request_id),
         "timestamp": timestamp}
    )  # fmt: skip


def published(topic: str, position: Position | None, request_id: RequestId, timestamp: str) -> bytes:
    """The acknowledgement of a PUBLISH that Redis has accepted. `position`: set if the topic has history."""
    fields: dict[str, Json] = {} if position is None else {"offset": position.offset, "epoch": position.epoch}
    if position is not None and position.mark is not None:
        fields["mark"] = position.mark
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "publish", "topic": topic, **fields, **_echo(request_id),
         "timestamp": timestamp}
    )  # fmt: skip


def logged(count: int, timestamp: str) -> bytes:
    """The acknowledgement of LOGS."""
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "topic": "logs", "message": "Logs received", "count": count,
         "timestamp": timestamp}
    )  # fmt: skip


def answer(request: Request, about: Json, timestamp: str) -> bytes:
    """The reply to a REQUEST. Its type is DATA, because a front-end listener for DATA drops RESPONSE."""
    return orjson.dumps(
        {"type": "DATA", "topic": request.topic, "action": request.action, "data": about,
         **_echo(request.request_id), "timestamp": timestamp}
    )  # fmt: skip


def commanded(command: Command, about: Json, timestamp: str) -> bytes:
    """The acknowledgement of a COMMAND. `about` is the answer of the back end; None: it has no body."""
    fields = {} if about is None else {"data": about}
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "command", "topic": command.topic, "action": command.action,
         "status": "success", **fields, **_echo(command.request_id), "timestamp": timestamp}
    )  # fmt: skip


def request_pong(request: Request, timestamp: str) -> bytes:
    """The reply to REQUEST system/ping. It is the only message of the type RESPONSE."""
    return orjson.dumps(
        {"type": "RESPONSE", "topic": topics.SYSTEM, "action": "pong", "data": {"timestamp": timestamp},
         **_echo(request.request_id)}
    )  # fmt: skip


def pong(timestamp: Json) -> bytes:
    """The reply to a ping, with the timestamp of the ping."""
    return orjson.dumps({"type": "pong", "timestamp": timestamp})


def _echo(request_id: RequestId) -> dict[str, RequestId]:
    return {} if request_id is None else {"requestId": request_id}
