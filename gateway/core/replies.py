"""What a client is sent: each message as the bytes of its text; times are arguments (ISO 8601).  (pure)

docs/protocol.md is the public description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import orjson

from gateway.core import protocol, topics
from gateway.core.messages import Command, Request
from gateway.core.position import Position
from gateway.core.protocol import Json, RequestId
from gateway.core.publication import Publication


def data(publication: Publication, topic: str, timestamp: str) -> bytes:
    """The DATA message that every hearer of the publication is sent, made once for the whole cluster.

    `topic` is the name it goes out under: the publication's own, or an alias.
    """
    message = {"type": "DATA", "topic": topic, **publication.extras}
    message["data"] = publication.data
    message["timestamp"] = timestamp
    return orjson.dumps(message)


def initial(text: bytes) -> bytes:
    """A DATA message made before, as the snapshot that comes with a subscription."""
    return text[:-1] + b',"initialData":true}'


def welcome(client_id: str, node: str, version: str, ping_ms: int, limits: Mapping[str, Json], timestamp: str) -> bytes:
    """The first message on a socket. `limits`: what one client may send, so that it can keep to it."""
    about = {"clientId": client_id, "node": node, "version": version, "pingMs": ping_ms, "limits": limits}
    return system("welcome", about, timestamp)


def system(action: str, about: Mapping[str, Json], timestamp: str) -> bytes:
    """A SYSTEM message: welcome, gap, degraded, restored, shutdown, unsubscribed."""
    return orjson.dumps(
        {"type": "SYSTEM", "topic": topics.SYSTEM, "action": action, "data": about, "timestamp": timestamp}
    )


def token_expiring(ends_ms: int, timestamp: str) -> bytes:
    """The client's token ends then, ms since 1970: AUTH with a new one keeps the socket and all it hears."""
    message = "Your token expires: send AUTH with a new one"
    return system("token_expiring", {"expires": protocol.iso(ends_ms), "message": message}, timestamp)


def gap(names: Iterable[str], timestamp: str) -> bytes:
    """Messages of these topics may be missing."""
    return system("gap", {"topics": sorted(names)}, timestamp)


def presence(topic: str, about: Mapping[str, Json], timestamp: str) -> bytes:
    """Who came to a topic and who left it, and how many are there."""
    return orjson.dumps({"type": "PRESENCE", "topic": topic, **about, "timestamp": timestamp})


def authenticated(timestamp: str) -> bytes:
    """AUTH was accepted."""
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "authenticate", "status": "success",
         "message": "User authenticated successfully", "timestamp": timestamp}
    )  # fmt: skip


def subscribed(
    names: Iterable[str], request_id: RequestId, timestamp: str, positions: Mapping[str, Json] | None = None
) -> bytes:
    """From now on every publish on these topics arrives, or the client is told of a gap.

    `positions`: for topics with history epoch, offset, mark and, if it was asked for, whether what was missed was sent.
    """
    names = list(names)
    # The names stand in `topics`; a sentence that repeats thousands of them would double the frame.
    listed = ", ".join(names) if len(names) <= 10 else f"{len(names)} topics"
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": names, "status": "success",
         "message": f"Successfully subscribed to {listed}", **_echo(request_id), "timestamp": timestamp,
         **({"positions": positions} if positions else {})}
    )  # fmt: skip


def unsubscribed(names: Iterable[str], request_id: RequestId, timestamp: str) -> bytes:
    """These are sent no more."""
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "unsubscribe", "topics": list(names), **_echo(request_id),
         "timestamp": timestamp}
    )  # fmt: skip


def published(topic: str, position: Position | None, request_id: RequestId, timestamp: str) -> bytes:
    """Redis has taken the message; `position` is its place if the topic has history."""
    place: dict[str, Json] = {} if position is None else {"offset": position.offset, "epoch": position.epoch}
    if position is not None and position.mark is not None:
        place["mark"] = position.mark
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "publish", "topic": topic, **place, **_echo(request_id),
         "timestamp": timestamp}
    )  # fmt: skip


def logged(count: int, timestamp: str) -> bytes:
    """LOGS was taken."""
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "topic": "logs", "message": "Logs received", "count": count,
         "timestamp": timestamp}
    )  # fmt: skip


def answer(request: Request, about: Json, timestamp: str) -> bytes:
    """The reply to a REQUEST. It is DATA, because a listener for DATA drops RESPONSE."""
    return orjson.dumps(
        {"type": "DATA", "topic": request.topic, "action": request.action, "data": about,
         **_echo(request.request_id), "timestamp": timestamp}
    )  # fmt: skip


def commanded(command: Command, about: Json, timestamp: str) -> bytes:
    """The back end has carried out the COMMAND; `about` is what it says of it, None: nothing."""
    said = {} if about is None else {"data": about}
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "command", "topic": command.topic, "action": command.action,
         "status": "success", **said, **_echo(command.request_id), "timestamp": timestamp}
    )  # fmt: skip


def request_pong(request: Request, timestamp: str) -> bytes:
    """The reply to REQUEST system/ping, the only RESPONSE there is."""
    return orjson.dumps(
        {"type": "RESPONSE", "topic": topics.SYSTEM, "action": "pong", "data": {"timestamp": timestamp},
         **_echo(request.request_id)}
    )  # fmt: skip


def pong(timestamp: Json) -> bytes:
    """The reply to ping, with its own timestamp."""
    return orjson.dumps({"type": "pong", "timestamp": timestamp})


def _echo(request_id: RequestId) -> dict[str, RequestId]:
    return {} if request_id is None else {"requestId": request_id}
