"""gateway.protocols.centrifugo: clients that only receive."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest

from gateway.core import events, frames, message
from gateway.core.commands import Connect
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError, ProtocolViolation
from gateway.core.events import Delivered
from gateway.core.position import Position
from gateway.core.session import Session
from gateway.core.session_rules import SessionRules
from gateway.core.topic_rules import TopicRules
from gateway.protocols.centrifugo.conversation import CentrifugoConversation
from gateway.protocols.centrifugo.protocol import UNIDIRECTIONAL


@pytest.fixture
def client() -> CentrifugoConversation:
    session = Session(SessionRules(cast(Any, None), cast(Any, None), TopicRules(()), 10))
    conversation = UNIDIRECTIONAL.conversation("n.1", session)
    conversation.encode(events.Welcome("n.1", "n", "v", 25_000, {}), 0)
    return conversation


def connect(client: CentrifugoConversation, **fields: Any) -> Any:
    [message] = client.split(frames.TEXT, orjson.dumps(fields))
    return client.decode(message)


def sent(data: bytes) -> list[Any]:
    return [orjson.loads(payload) for payload in frames.payloads(data)]


def test_its_one_message_is_the_fields_of_connect(client: CentrifugoConversation) -> None:
    about = {"a": {"recover": True, "epoch": "e", "offset": 3}, "b": {}}
    assert connect(client, token="t", subs=about) == Connect("t", 1, {"a": Position("e", 3)}, ("a", "b"))
    with pytest.raises(ProtocolViolation):
        connect(client)


def test_replies_are_pushes_without_a_wrapper(client: CentrifugoConversation) -> None:
    connect(client, subs={"a": {}})
    [push] = sent(client.encode(events.Subscribed(("a",), 1), 0))
    assert push["connect"]["subs"] == {"a": {}} and push["connect"]["ping"] == 25 and "pong" not in push["connect"]
    assert sent(Delivered(message.pack("a", 1, {}, 0)).frame(UNIDIRECTIONAL)) == [{"channel": "a", "pub": {"data": 1}}]
    assert sent(client.encode(events.StreamClosed(3001, "shutdown"), 0)) == [
        {"disconnect": {"code": 3001, "reason": "shutdown"}}
    ]
    assert sent(client.ping()) == [{}]


@pytest.mark.parametrize(
    ("reason", "close"),
    [(ErrorReason.TOKEN, CloseReason.BAD_TOKEN), (ErrorReason.NOT_ALLOWED, CloseReason.BAD_USE)],
)
def test_an_error_closes_the_connection(
    client: CentrifugoConversation, reason: ErrorReason, close: CloseReason
) -> None:
    connect(client)
    assert client.close_reason(ProtocolError(reason, "no", 1)) is close
