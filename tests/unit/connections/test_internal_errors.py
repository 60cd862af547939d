"""An internal error while the node handles a message: the client gets 5000, and client and node continue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway.transports.connection import ConnectionStage
from tests.unit.one_client_node import Broken, OneClientNode, broken, refuse


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """The lines logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.mark.parametrize(
    ("message", "dispatcher"),
    [
        ({"type": "AUTH", "authToken": "x"}, broken()),
        ({"type": "SUBSCRIBE", "topics": ["a"]}, broken()),
        ({"type": "SUBSCRIBE", "topics": ["kept"]}, broken(is_plain=lambda _: False, is_ready=lambda _: False)),
        ({"type": "SUBSCRIBE", "topics": ["kept"]}, broken(is_plain=lambda _: False)),
        ({"type": "PUBLISH", "topic": "a", "data": 1}, broken()),
        ({"type": "REQUEST", "topic": "lasting", "action": "history"}, broken()),
        ({"type": "REQUEST", "topic": "system", "action": "getStatus"}, broken()),
    ],
    ids=["identity", "subscribe", "preparing", "letting in", "publish", "request", "status"],
)
async def test_a_message_that_causes_an_internal_error_gets_5000_and_the_next_is_handled(
    log: list[Any], message: dict[str, Any], dispatcher: Broken
) -> None:
    node = OneClientNode(dispatcher, refuse)
    assert [answer["action"] for answer in await node.answers()] == ["welcome"]
    node.say(**message)
    node.say(type="ping", timestamp=1)
    error, pong = await node.answers()
    assert (error["type"], error["code"], error["temporary"]) == ("ERROR", 5000, True)
    assert "is broken" not in error["message"]
    assert pong == {"type": "pong", "timestamp": 1}
    assert node.connection.stage is ConnectionStage.OPEN
    assert node.wire.reading
    assert [line["event"] for line in log if line["log_level"] == "error"] == ["message handling failed"]
