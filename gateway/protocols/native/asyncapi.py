"""The native protocol as an AsyncAPI 3 document. Names, codes and limits come from the decoder and the encoder.  (pure)

Tests compare it with the code: each event that the encoder writes fits the schema of its message, and the decoder
accepts each message that fits the schema of a command.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.core import topic_rules
from gateway.core.commands import MAX_HISTORY_LIMIT
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.subscription_options import DELTA_FORMAT
from gateway.protocols.native.codes import ErrorCode
from gateway.protocols.native.decoder import MAX_TOKENS

Schema = dict[str, Any]

ANY: Final[Schema] = {"description": "Any JSON value"}
TEXT: Final[Schema] = {"type": "string"}
NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
TOPIC: Final[Schema] = {
    "type": "string", "pattern": f"^{topic_rules.NAME_CHARACTERS}+$", "minLength": 1,
    "maxLength": topic_rules.MAX_TOPIC_LENGTH,
}  # fmt: skip
TOPICS: Final[Schema] = {"type": "array", "items": TOPIC}
REQUEST_ID: Final[Schema] = {
    "type": ["string", "integer"], "maxLength": MAX_NAME_LENGTH, "description": "The reply repeats it",
}  # fmt: skip
EXTRAS: Final[dict[str, Schema]] = {
    "action": NAME, "subtype": NAME, "priority": {"type": ["string", "number"]},
    "tags": {"type": "object", "additionalProperties": {"type": "string", "maxLength": MAX_NAME_LENGTH}},
}  # fmt: skip
TOKEN: Final[Schema] = {"type": "string", "description": "A JWT"}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": required | (optional or {}), "required": list(required)}


def _typed(kind: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return _object({"type": {"const": kind}} | required, optional)


def _acknowledgment(operation: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return _typed("ACKNOWLEDGMENT", {"operation": {"const": operation}} | required | {"timestamp": TIME}, optional)


def _notice(action: str, data: Schema) -> Schema:
    about = {"topic": {"const": topic_rules.SYSTEM}, "action": {"const": action}, "data": data, "timestamp": TIME}
    return _typed("SYSTEM", about)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: Final[dict[str, Schema]] = {
    "Position": _object({"epoch": TEXT, "offset": COUNT}, {"mark": {"type": ["integer", "null"], "minimum": 0}}),
    "Member": _object(
        {"clientId": TEXT, "user": {"type": ["string", "null"]}},
        {"info": {"description": "The claim `info` of its token: any JSON value"}},
    ),
    "Filter": {
        "description": "A condition on the tags of messages",
        "anyOf": [
            _object(
                {"key": TEXT, "cmp": {"enum": ["eq", "neq", "sw", "ew", "ct", "gt", "gte", "lt", "lte"]}, "val": TEXT}
            ),
            _object({"key": TEXT, "cmp": {"enum": ["in", "nin"]}, "vals": {"type": "array", "items": TEXT}}),
            _object({"key": TEXT, "cmp": {"enum": ["ex", "nex"]}}),
            _object({"op": {"enum": ["and", "or", "not"]}, "nodes": {"type": "array", "items": _ref("Filter")}}),
        ],
    },
    "Limits": _object(
        {"messageBytes": COUNT, "topics": COUNT, "messagesPerSecond": COUNT, "subscriptionsPerSecond": COUNT}
    ),
}

# What clients send: name -> (what it does, schema).
COMMANDS: Final[dict[str, tuple[str, Schema]]] = {
    "Auth": ("Log in", _typed("AUTH", {"authToken": TOKEN})),
    "Subscribe": (
        "Subscribe to topics, and recover what was missed since the positions in `recover`",
        _typed(
            "SUBSCRIBE", {"topics": {**TOPICS, "minItems": 1}},
            {
                "requestId": REQUEST_ID, "authToken": TOKEN,
                "tokens": {"type": "array", "items": TOKEN, "maxItems": MAX_TOKENS},
                "recover": {"type": "object", "additionalProperties": _ref("Position")},
                "filter": _ref("Filter"),
                "delta": {"const": DELTA_FORMAT, "description": "Send deltas; not together with a filter"},
            },
        ),
    ),
    "Unsubscribe": (
        "Unsubscribe from topics",
        _typed("UNSUBSCRIBE", {"topics": {**TOPICS, "minItems": 1}}, {"requestId": REQUEST_ID}),
    ),
    "Publish": (
        "Publish a message", _typed("PUBLISH", {"topic": TOPIC, "data": ANY}, {**EXTRAS, "requestId": REQUEST_ID}),
    ),
    "Request": (
        f"Ask for an answer: history (limit at most {MAX_HISTORY_LIMIT}), presence, or what the back end answers",
        _typed("REQUEST", {"topic": TOPIC, "action": NAME}, {"data": {"type": "object"}, "requestId": REQUEST_ID}),
    ),
    "Command": (
        "Have the back end carry out an action",
        _typed("COMMAND", {"topic": TOPIC, "action": NAME}, {"data": ANY, "requestId": REQUEST_ID}),
    ),
    "Logs": ("Log lines of a browser", _typed("LOGS", {"logs": {"type": "array", "items": {"type": "object"}}})),
    "Ping": ("Ask for a pong", _typed("ping", {}, {"timestamp": ANY})),
}  # fmt: skip

_MESSAGE: Final = {"topic": TOPIC, "data": ANY, "timestamp": TIME}
_AT: Final[dict[str, Schema]] = {"offset": COUNT, "epoch": TEXT, "mark": COUNT}

# What the gateway sends: name -> (when, schema).
EVENTS: Final[dict[str, tuple[str, Schema]]] = {
    "Data": (
        "A message on a topic; with its position if the topic has history",
        _typed("DATA", _MESSAGE, {**EXTRAS, "sender": _ref("Member"), **_AT, "initialData": {"const": True}}),
    ),
    "DeltaData": (
        "A message for a subscriber that receives deltas: data is a delta, or the JSON text of the data",
        _typed("DATA", {**_MESSAGE, "data": TEXT, "delta": {"type": "boolean"}}, {**EXTRAS, **_AT}),
    ),
    "Answer": (
        "The answer to a REQUEST",
        _typed("DATA", {**_MESSAGE, "action": NAME}, {"requestId": REQUEST_ID}),
    ),
    "Presence": (
        "Members joined or left a topic with presence",
        _typed(
            "PRESENCE", {"topic": TOPIC, "count": COUNT, "timestamp": TIME},
            {name: {"type": "array", "items": _ref("Member")} for name in ("joined", "left")},
        ),
    ),
    "Subscribed": (
        "From now on every message of these topics arrives, or a gap",
        _acknowledgment(
            "subscribe", {"topics": TOPICS, "status": {"const": "success"}, "message": TEXT},
            {
                "requestId": REQUEST_ID,
                "positions": {
                    "type": "object",
                    "additionalProperties": _object(
                        {"epoch": TEXT, "offset": COUNT},
                        {"mark": {"type": ["integer", "null"], "minimum": 0}, "recovered": {"type": "boolean"}},
                    ),
                },
            },
        ),
    ),
    "Unsubscribed": (
        "An UNSUBSCRIBE is carried out", _acknowledgment("unsubscribe", {"topics": TOPICS}, {"requestId": REQUEST_ID}),
    ),
    "Published": (
        "A PUBLISH is in Redis", _acknowledgment("publish", {"topic": TOPIC}, {**_AT, "requestId": REQUEST_ID}),
    ),
    "Authenticated": (
        "An AUTH was accepted", _acknowledgment("authenticate", {"status": {"const": "success"}, "message": TEXT}),
    ),
    "CommandDone": (
        "The back end has carried out a COMMAND",
        _acknowledgment(
            "command", {"topic": TOPIC, "action": NAME, "status": {"const": "success"}},
            {"data": ANY, "requestId": REQUEST_ID},
        ),
    ),
    "LogsAccepted": (
        "LOGS were received",
        _typed("ACKNOWLEDGMENT", {"topic": {"const": "logs"}, "message": TEXT, "count": COUNT, "timestamp": TIME}),
    ),
    "SystemPong": (
        "The answer to REQUEST system/ping",
        _typed(
            "RESPONSE",
            {"topic": {"const": topic_rules.SYSTEM}, "action": {"const": "pong"}, "data": _object({"timestamp": TIME})},
            {"requestId": REQUEST_ID},
        ),
    ),
    "Pong": ("The answer to a ping, with its timestamp", _typed("pong", {"timestamp": ANY})),
    "Error": (
        "A command is refused; the socket stays open. Only some codes carry requestId, the others inReplyTo",
        _typed(
            "ERROR",
            {"code": {"type": "integer", "enum": sorted(map(int, ErrorCode))}, "error": TEXT, "message": TEXT,
             "timestamp": TIME},
            {"reason": TEXT, "temporary": {"const": True}, "requestId": REQUEST_ID, "inReplyTo": REQUEST_ID},
        ),
    ),
    "Welcome": (
        "The first message on a socket",
        _notice(
            "welcome",
            _object({"clientId": TEXT, "node": TEXT, "version": TEXT, "pingMs": COUNT, "limits": _ref("Limits")}),
        ),
    ),
    "SubscribedByServer": (
        "The back end has subscribed the client",
        _notice(
            "subscribed",
            _object(
                {"topics": TOPICS},
                {"positions": {"type": "object", "additionalProperties": _ref("Position")}, "data": ANY},
            ),
        ),
    ),
    "SubscriptionsEnded": (
        "The gateway has unsubscribed the client", _notice("unsubscribed", _object({"topics": TOPICS, "reason": TEXT})),
    ),
    "TokenExpiring": (
        "The client's token expires soon", _notice("token_expiring", _object({"expires": TIME, "message": TEXT})),
    ),
    "Gap": ("Messages of these topics may be missing", _notice("gap", _object({"topics": TOPICS}))),
    "Degraded": ("Redis is unreachable; no messages arrive", _notice("degraded", _object({"message": TEXT}))),
    "Restored": ("Redis is back", _notice("restored", _object({"message": TEXT}))),
    "Shutdown": (
        "The node leaves: reconnect after reconnectMs",
        _notice("shutdown", _object({"message": TEXT, "code": COUNT, "reconnectMs": COUNT})),
    ),
    "Move": (
        "Another node has more room: reconnect after reconnectMs",
        _notice("move", _object({"message": TEXT, "code": COUNT, "reconnectMs": COUNT})),
    ),
    "StreamOpened": ("The first message of a stream over HTTP", _typed("OPEN", {"stream": TEXT})),
    "StreamClosed": ("The last message of a stream over HTTP", _typed("CLOSE", {"code": COUNT, "reason": TEXT})),
}  # fmt: skip


def document(version: str) -> Schema:
    """The AsyncAPI document of the gateway `version`."""
    messages = {
        name: {"name": name, "summary": about, "payload": _ref(name)}
        for part in (COMMANDS, EVENTS)
        for name, (about, _) in part.items()
    }
    channel = {"$ref": "#/channels/socket"}

    def listed(part: dict[str, tuple[str, Schema]]) -> list[Schema]:
        return [{"$ref": f"#/channels/socket/messages/{name}"} for name in part]

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "WebSocket gateway cluster",
            "version": version,
            "description": "The messages on a socket: JSON texts, one per frame. "
            "docs/reference/protocol.md has their order.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "socket": {
                "address": "/ws",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {
            "receiveCommands": {"action": "receive", "channel": channel, "messages": listed(COMMANDS)},
            "sendEvents": {"action": "send", "channel": channel, "messages": listed(EVENTS)},
        },
        "components": {
            "messages": messages,
            "schemas": SCHEMAS | {name: schema for part in (COMMANDS, EVENTS) for name, (_, schema) in part.items()},
        },
    }
