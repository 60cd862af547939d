"""A client whose protocol begins with a message must send it soon."""

from __future__ import annotations

from gateway.connections.enforcer import CONNECT_SECONDS
from gateway.core import frames
from gateway.protocols.centrifugo.protocol import JSON
from gateway.transports.connection import ConnectionStage
from tests.unit.one_client_node import OneClientNode, broken, refuse
from tests.unit.virtual_time import in_virtual_time


@in_virtual_time
async def test_it_is_closed_when_the_message_does_not_come() -> None:
    node = OneClientNode(broken(), refuse)
    client = node.connection
    began = client.info.connected_ms

    def stage_after(seconds: float) -> ConnectionStage:
        node.now_ms = began + int(seconds * 1000)
        node.enforcer.check_timeouts(client.last_received)
        return client.stage

    assert stage_after(CONNECT_SECONDS + 1) is ConnectionStage.OPEN, "our own protocol begins with nothing"
    client.protocol, client.conversation = JSON, JSON.conversation(client.client_id, client.session)
    assert stage_after(CONNECT_SECONDS) is ConnectionStage.OPEN
    assert stage_after(CONNECT_SECONDS + 1) is ConnectionStage.CLOSING
    assert (3502).to_bytes(2, "big") + b"no connect in time" in node.wire.written


@in_virtual_time
async def test_it_stays_when_the_message_came() -> None:
    node = OneClientNode(broken(), refuse)
    client = node.connection
    client.protocol, conversation = JSON, JSON.conversation(client.client_id, client.session)
    client.conversation = conversation
    [connect] = conversation.split(frames.TEXT, b'{"id":1,"connect":{}}')
    conversation.decode(connect)
    node.now_ms = client.info.connected_ms + int(CONNECT_SECONDS * 2000)
    node.enforcer.check_timeouts(client.last_received)
    assert client.stage is ConnectionStage.OPEN
