"""Whether a node takes one socket more."""

from __future__ import annotations

from gateway.core.inflow import Inflow
from gateway.core.rates import BURST_SECONDS

NOW = 100.0


def test_a_full_node_refuses_and_still_answers_questions() -> None:
    inflow = Inflow(1000, 100)
    assert inflow.refuses(1000, NOW) is None
    assert inflow.refuses(1001, NOW) == "connections"
    assert not inflow.is_exhausted(1050)
    assert inflow.is_exhausted(1051)


def test_a_storm_that_it_can_carry_is_let_in_and_what_goes_on_is_paced() -> None:
    inflow = Inflow(10**6, 100)
    burst = int(100 * BURST_SECONDS)
    assert [inflow.refuses(1, NOW) for _ in range(burst + 2)] == [None] * burst + ["connects"] * 2
    let_in = sum(inflow.refuses(1, NOW + at / 1000) is None for at in range(1, 2001))
    assert 199 <= let_in <= 200, "who was refused does not count"


def test_a_full_nodes_refusals_use_nothing_up() -> None:
    inflow = Inflow(10, 1)
    assert {inflow.refuses(11, NOW) for _ in range(100)} == {"connections"}
    assert inflow.refuses(10, NOW) is None
