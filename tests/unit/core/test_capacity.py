"""Whether a node accepts another socket."""

from __future__ import annotations

from gateway.core.capacity import Capacity
from gateway.core.rate_limits import BURST_SECONDS

NOW = 100.0


def test_a_full_node_refuses_and_still_answers_questions() -> None:
    capacity = Capacity(1000, 100)
    assert capacity.exceeded(1000, NOW) is None
    assert capacity.exceeded(1001, NOW) == "connections"
    assert not capacity.is_overloaded(1050)
    assert capacity.is_overloaded(1051)


def test_a_burst_is_accepted_and_a_sustained_rate_is_limited() -> None:
    capacity = Capacity(10**6, 100)
    burst = int(100 * BURST_SECONDS)
    assert [capacity.exceeded(1, NOW) for _ in range(burst + 2)] == [None] * burst + ["connects"] * 2
    let_in = sum(capacity.exceeded(1, NOW + at / 1000) is None for at in range(1, 2001))
    assert 199 <= let_in <= 200, "who was refused does not count"


def test_a_full_nodes_refusals_use_nothing_up() -> None:
    capacity = Capacity(10, 1)
    assert {capacity.exceeded(11, NOW) for _ in range(100)} == {"connections"}
    assert capacity.exceeded(10, NOW) is None
