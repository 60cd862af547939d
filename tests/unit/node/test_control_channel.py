"""Control messages: only the node that an order names carries it out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from gateway.broker.keys import Keys
from gateway.core.control_messages import ClientSelector, DisconnectClients, UnsubscribeClients
from gateway.core.revocations import Revocation, Revocations
from gateway.metrics import Metrics
from gateway.node.control_channel import ControlChannel, ControlPublisher

GONE = Revocation("user", "ann", 10.0, 5.0)


class Node:
    """The parts of the node n1.a that receive orders; keeps the orders."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.metrics = Metrics()
        self.keys = Keys("gw:")
        self.missed = False  # an order to revoke
        book = Revocations()
        revoked = SimpleNamespace(
            receive=book.add,
            refresh=self._check,
            is_revoked=book.is_revoked,
            effect_of=lambda _revocations: book.is_revoked,
        )
        lifecycle = SimpleNamespace(
            shut_down=lambda: self.sent.append("leave"), spawn=lambda work, name: self.sent.append((name, work))
        )
        self.control_publisher = ControlPublisher(cast(Any, self), self.keys)
        self.control_channel = ControlChannel(
            "n1.a",
            cast(Any, SimpleNamespace(execute=self.sent.append)),
            cast(Any, SimpleNamespace(enforce_revocations=self._enforce)),
            cast(Any, SimpleNamespace(forget_messages=self.sent.append)),
            cast(Any, SimpleNamespace(revocation_store=revoked)),
            cast(Any, SimpleNamespace(run=lambda *words: words)),
            cast(Any, lifecycle),
            self.metrics,
        )

    async def _check(self) -> bool:
        return self.missed

    def _enforce(self, revoked: Any) -> None:
        self.sent.append(revoked(None, "ann", 5.0))

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish to all nodes, and so to this one."""
        assert channel == self.keys.control
        self.control_channel.message_received(channel, payload)

    def received(self, kind: str) -> float:
        """How many it counted so."""
        return self.metrics.registry.get_sample_value("gateway_messages_relayed_total", {"kind": kind}) or 0


@pytest.mark.parametrize(
    ("op", "about", "sent"),
    [
        ("disconnect", {"user": "ann", "reason": "spam"}, [DisconnectClients(ClientSelector(None, "ann"), "spam")]),
        (
            "unsubscribe",
            {"client": "c", "topics": ["t"]},
            [UnsubscribeClients(ClientSelector("c", None), ["t"], "by the operator")],
        ),
        ("forget", {"topics": ["t", "u"]}, ["t", "u"]),
        ("revoke", {"revocations": [GONE.as_dict()]}, [True]),
        ("drain", {"node": "n1.a"}, ["leave"]),
        ("drain", {"node": "n1.b"}, []),
        ("move", {"node": "n1.a", "keep": 3, "seconds": 60, "after": 1}, [("move", (3, 60.0, 1.0))]),
        ("move", {"node": "n1.b", "keep": 3, "seconds": 60, "after": 1}, []),
    ],
)
async def test_only_the_addressed_node_carries_out_an_order(op: str, about: dict[str, Any], sent: list[Any]) -> None:
    node = Node()
    await node.control_publisher.broadcast(op, **about)
    assert node.sent == sent
    assert (node.received("control"), node.received("malformed")) == (1, 0)


@pytest.mark.parametrize("payload", [b"", b"[]", orjson.dumps({"op": "dance"}), b"\xff"])
def test_malformed_orders_are_counted_and_dropped(payload: bytes) -> None:
    node = Node()
    node.control_channel.message_received(node.keys.control, payload)
    assert (node.sent, node.received("control"), node.received("malformed")) == ([], 0, 1)


async def test_what_is_revoked_is_enforced_once_it_is_news() -> None:
    node = Node()
    for _ in range(2):
        await node.control_publisher.broadcast("revoke", revocations=[GONE.as_dict()])
    assert node.sent == [True]
    await node.control_channel.check_revocations()
    assert node.sent == [True]
    node.missed = True
    await node.control_channel.check_revocations()
    assert node.sent == [True, True]
