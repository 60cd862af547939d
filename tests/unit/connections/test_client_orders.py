"""gateway.connections.client_orders: what back ends order about clients."""

from __future__ import annotations

import orjson

from gateway.core import frames
from gateway.core.control_messages import ClientSelector, SubscribeClients, UnsubscribeClients
from gateway.core.identity import Identity
from tests.unit.connections.test_manager import PLAIN, crowd
from tests.unit.one_client_node import MemoryTransport, OneClientNode, refuse


def said(client: object) -> list[dict[str, object]]:
    transport = client.transport  # type: ignore[attr-defined]
    assert isinstance(transport, MemoryTransport)
    return [orjson.loads(payload) for payload in frames.payloads(transport.written)]


async def test_an_order_subscribes_the_clients_that_it_selects_and_notifies_them() -> None:
    node = OneClientNode(PLAIN, refuse)
    ann, again = crowd(node, "ann", 2)
    [bob] = crowd(node, "bob", 1)
    node.client_orders.execute(SubscribeClients(ClientSelector(None, "ann"), ["a", "b"]))
    for client in (ann, again):
        assert client.audiences.has_topic("a") and client.audiences.has_topic("b")
        assert (said(client)[-1]["action"], said(client)[-1]["data"]) == ("subscribed", {"topics": ["a", "b"]})
    assert not bob.audiences.topics
    node.client_orders.execute(SubscribeClients(ClientSelector(again.client_id, None), ["c"]))
    assert not ann.audiences.has_topic("c") and again.audiences.has_topic("c")
    node.client_orders.execute(SubscribeClients(ClientSelector("n.1.999", None), ["c"]))


async def test_an_unsubscribed_client_loses_what_the_back_end_granted() -> None:
    node = OneClientNode(PLAIN, refuse)
    [ann] = crowd(node, "ann", 1)
    node.client_orders.execute(SubscribeClients(ClientSelector(None, "ann"), ["admin"]))
    assert ann.session._grants
    node.client_orders.execute(UnsubscribeClients(ClientSelector(None, "ann"), ["admin"], "enough"))
    assert not ann.session._grants
    assert said(ann)[-1]["action"] == "unsubscribed"


async def test_a_client_gets_no_more_topics_than_it_may_have() -> None:
    node = OneClientNode(PLAIN, refuse)
    [ann] = crowd(node, "ann", 1)
    limit = node.connections._rules.max_client_topics
    for at in range(0, limit, 100):
        topics = [f"t{number}" for number in range(at, min(at + 100, limit))]
        node.client_orders.execute(SubscribeClients(ClientSelector(None, "ann"), topics))
    assert ann.audiences.topics == limit
    node.client_orders.execute(SubscribeClients(ClientSelector(None, "ann"), ["t1", "one more"]))
    assert ann.audiences.topics == limit
    node.client_orders.execute(SubscribeClients(ClientSelector(None, "ann"), ["t1"]))
    assert ann.audiences.topics == limit
    assert ann.session.identity == Identity("ann", "user", issued=5.0)
