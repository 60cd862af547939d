"""gateway.protocols.native.asyncapi: the document and the code say the same."""

from __future__ import annotations

import json
from typing import Any, get_args

import orjson
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from gateway import __version__
from gateway.core import commands, events
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.position import Position
from gateway.protocols.native import asyncapi, decoder, encoder
from tests.typescript import FILE, types

DOCUMENT = asyncapi.document(__version__)
REQUEST = commands.Request("topic", "history", {}, "r")
COMMAND = commands.BackendCommand("topic", "act", None, 7)
BODY = b'2026-01-31T12:00:00.000Z topic {"action":"a"}\n{"x":1}'
LONG_BODY = b'2026-01-31T12:00:00.000Z topic {}\n"%s"' % (b"x" * 100)
AT = Position("e", 4, 9)
LIMITS = {"messageBytes": 1, "topics": 1, "messagesPerSecond": 1, "subscriptionsPerSecond": 1}
WRITTEN: dict[str, list[events.Event]] = {
    "Subscribed": [
        events.Subscribed(["topic"], None),
        events.Subscribed(["topic"], "r", {"topic": AT}, {"topic": True}),
        events.Subscribed(["topic"], 7, {"topic": Position("e", 4)}),
    ],
    "Published": [events.Published("topic", None, None), events.Published("topic", AT, "r")],
    "Pong": [events.Pong({"any": 1})],
    "Unsubscribed": [events.Unsubscribed(["topic"], "r")],
    "Answer": [events.Answer(REQUEST, {"x": 1}), events.Answer(REQUEST, events.History("e", 4, 9, []))],
    "Welcome": [events.Welcome("n1.a.1", "n1", __version__, 25_000, LIMITS)],
    "Authenticated": [events.Authenticated()],
    "CommandDone": [events.CommandDone(COMMAND, None), events.CommandDone(COMMAND, [1])],
    "LogsAccepted": [events.LogsAccepted(2)],
    "SystemPong": [events.RequestPong(REQUEST)],
    "SubscribedByServer": [
        events.Subscribed(["topic"], None, by_server=True),
        events.Subscribed(["topic"], None, {"topic": AT}, by_server=True),
    ],
    "SubscriptionsEnded": [events.SubscriptionsEnded(["topic"], "why")],
    "TokenExpiring": [events.TokenExpiring(1)],
    "Gap": [events.Gap(["topic"]), events.Gap([])],
    "Degraded": [events.Degraded()],
    "Restored": [events.Restored()],
    "Shutdown": [events.ServerLeaving(CloseReason.SHUTDOWN, 50)],
    "Move": [events.ServerLeaving(CloseReason.MOVE, 50)],
    "Error": [
        events.Failed(ProtocolError(reason, "why", request_id, detail))
        for reason in ErrorReason
        for request_id, detail in ((None, None), ("r", "token_invalid"))
    ],
    "StreamOpened": [events.StreamOpened("s")],
    "StreamClosed": [events.StreamClosed(3001, "shutdown")],
}
JOINED = [{"clientId": "n1.a.1", "user": "ann", "info": [1]}, {"clientId": "n1.a.2", "user": None}]
PRESENCE = events.PresenceChanged("topic", {"count": 1, "joined": JOINED, "left": []}, 0)
TEXTS = {name: [encoder.text(event, 0) for event in some] for name, some in WRITTEN.items()} | {
    "Data": [
        encoder.data(events.Delivered(BODY)), encoder.data(events.Delivered(BODY, AT)),
        encoder.data(events.Delivered(BODY, Position("e", 4), initial=True)),
    ],
    "DeltaData": [
        encoder.data(events.DeltaDelivered(events.Delivered(body), base))
        for body in (BODY, LONG_BODY)
        for base in (None, events.Delivered(LONG_BODY))
    ],
    "Presence": [encoder.broadcast_text(PRESENCE)],
}  # fmt: skip


def _closed(schema: Any) -> Any:
    """`schema` where an object has no property that it does not name."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items()}
    return {**closed, "additionalProperties": False} if "properties" in closed and "required" in closed else closed


def validator(name: str, *, closed: bool = False) -> Draft202012Validator:
    schemas = DOCUMENT["components"]["schemas"]
    whole = {"components": {"schemas": _closed(schemas) if closed else schemas}}
    return Draft202012Validator({**whole, "$ref": f"#/components/schemas/{name}"})


def test_each_event_of_the_code_is_in_the_document_and_nothing_else() -> None:
    assert TEXTS.keys() == asyncapi.EVENTS.keys()
    written = {type(event) for some in WRITTEN.values() for event in some}
    assert written == set(get_args(events.Event)) - {events.GrantRenewed}  # which only another protocol has


@pytest.mark.parametrize("name", TEXTS)
def test_what_the_encoder_writes_fits_the_schema_of_its_message(name: str) -> None:
    for text in TEXTS[name]:
        validator(name, closed=True).validate(orjson.loads(text))


def test_each_command_of_the_decoder_is_in_the_document() -> None:
    kinds = [schema["properties"]["type"]["const"] for _, schema in asyncapi.COMMANDS.values()]
    assert kinds == list(decoder._DECODERS)


def _example(schema: dict[str, Any], whole: bool) -> Any:
    """A value that fits `schema`, with its optional fields or without."""
    if "$ref" in schema:
        return _example(asyncapi.SCHEMAS[schema["$ref"].rpartition("/")[2]], whole)
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], whole)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "null")
    match kind if isinstance(kind, str) else kind[0]:
        case "object":
            wanted = schema.get("properties", {}) if whole else dict.fromkeys(schema.get("required", []))
            fields = {name: _example(schema["properties"][name], whole) for name in wanted}
            return fields | (
                {"a": _example(schema["additionalProperties"], whole)} if "additionalProperties" in schema else {}
            )
        case "array":
            return [_example(schema["items"], whole)]
        case "integer" | "number":
            return 3
        case "string":
            return "a"
    return None


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", asyncapi.COMMANDS)
def test_the_decoder_accepts_what_fits_the_schema_of_a_command(name: str, whole: bool) -> None:
    message = _example(asyncapi.COMMANDS[name][1], whole)
    validator(name).validate(message)
    if "delta" in message:  # which the decoder refuses beside a filter
        message.pop("filter")
    assert decoder.decode(orjson.dumps(message)).kind == name.lower()


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    def look(node: Any) -> None:
        for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            look(part)
        if isinstance(node, dict) and "$ref" in node:
            found: Any = DOCUMENT
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]

    look(DOCUMENT)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert DOCUMENT["asyncapi"] == "3.0.0"
    json.dumps(DOCUMENT)


def test_the_typescript_types_are_those_of_the_document() -> None:
    assert FILE.read_text() == types(), "run: python -m tests.typescript"
