"""What subscriptions count for: a topic by what it costs, and a new identity by the topics that it is judged for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.connections.client_limits import ClientLimits
from gateway.core.commands import Request, Subscribe
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.rate_limits import ClientUsage, RateOutcome
from gateway.core.topic_rules import parse
from gateway.metrics import Metrics
from gateway.settings import Settings

RULES = """
[[topic]]
pattern = "history:*"
history = 5
snapshot = true

[[topic]]
pattern = "value:*"
snapshot = true

[[topic]]
pattern = "people:*"
presence = true

[[topic]]
pattern = "all:*"
history = 5
presence = true
"""
BURST = 10  # seconds


class Client:
    """A connection, as far as its limits need it."""

    client_id = "n.b.1"
    info = cast(Any, type("Facts", (), {"ip": "127.0.0.1"}))
    last_received = 0.0

    def __init__(self) -> None:
        self.usage = ClientUsage()
        self.closed: list[CloseReason] = []

    def disconnect(self, code: CloseReason, _text: str) -> None:
        self.closed.append(code)


def limits(per_second: int) -> ClientLimits:
    settings = Settings(client_subscriptions_per_second=per_second)
    return ClientLimits(settings, parse(RULES, "rules"), cast(Any, None), Metrics())


def subscribe(kind: str, count: int) -> Subscribe:
    return Subscribe(tuple(f"{kind}:{at}" for at in range(count)), "r")


@pytest.mark.parametrize(("kind", "price"), [("plain", 1), ("history", 2), ("value", 2), ("people", 2), ("all", 3)])
def test_a_topic_counts_for_what_it_costs(kind: str, price: int) -> None:
    client: Any = Client()
    rates = limits(60)
    allowed = 60 * BURST // price
    assert rates.allows(client, subscribe(kind, allowed), RateOutcome.ALLOWED)
    with pytest.raises(ProtocolError) as refused:
        rates.allows(client, subscribe(kind, 1), RateOutcome.ALLOWED)
    assert refused.value.reason is ErrorReason.TOO_MANY_REQUESTS
    assert not rates.allows(client, subscribe(kind, allowed), RateOutcome.ALLOWED)
    assert client.closed == [CloseReason.TOO_MANY_REQUESTS]


def test_by_default_a_client_may_subscribe_at_once_to_as_many_topics_as_it_may_have_of_any_kind() -> None:
    settings = Settings()
    rates = limits(settings.client_subscriptions_per_second)
    client: Any = Client()
    assert rates.allows(client, subscribe("all", settings.max_client_topics), RateOutcome.ALLOWED)


def test_a_new_identity_is_charged_for_the_topics_that_are_judged_again() -> None:
    client: Any = Client()
    rates = limits(10)
    assert rates.charge(client, 60, None)
    with pytest.raises(ProtocolError):
        rates.charge(client, 60, None)
    assert not rates.charge(client, 100, None)
    assert client.closed == [CloseReason.TOO_MANY_REQUESTS]


@pytest.mark.parametrize(
    ("action", "parameters", "more"),
    [
        ("history", {}, 1),
        ("history", {"limit": 1000}, 10),
        ("history", {"limit": 10**9}, 10),
        ("history", {"limit": -5}, 0),
        ("history", {"limit": "all"}, 0),
        ("presence", {}, 10),
        ("getStatus", {}, 0),
    ],
)
def test_a_request_that_reads_from_redis_counts_for_what_it_may_be_answered(
    action: str, parameters: dict[str, Any], more: int
) -> None:
    client: Any = Client()
    rates = limits(60)
    allowed = Settings().client_messages_per_second * BURST
    taken = 0
    while (verdict := rates.count(client, 0)) is RateOutcome.ALLOWED:
        taken += 1
        assert rates.allows(client, Request("history:1", action, parameters, "r"), verdict)
    assert taken == -(-allowed // (1 + more))
    with pytest.raises(ProtocolError):
        rates.allows(client, Request("history:1", action, parameters, "r"), verdict)
