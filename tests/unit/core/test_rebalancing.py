"""The number of clients that move, when they are closed, and when they may reconnect."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import rebalancing
from gateway.core.rebalancing import ClientMove

COUNTS = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 10_000), max_size=8)


@pytest.mark.parametrize(
    ("clients", "moves"),
    [
        ({}, {}),
        ({"a": 0, "b": 0}, {}),
        ({"a": 50}, {}),
        ({"a": 30, "b": 30, "c": 0}, {"a": ClientMove(10, 20), "b": ClientMove(10, 20)}),
        ({"a": 100, "b": 90, "c": 0}, {"a": ClientMove(36, 64), "b": ClientMove(26, 64)}),
        ({"a": 105, "b": 95, "c": 100}, {}),  # within the tolerance
        ({"a": 1, "b": 0, "c": 0}, {}),  # one client cannot be spread over three nodes
    ],
)
def test_only_what_is_above_the_mean_moves(clients: dict[str, int], moves: dict[str, ClientMove]) -> None:
    assert rebalancing.plan(clients) == moves


@given(COUNTS)
def test_what_moves_finds_room_below_the_mean(clients: dict[str, int]) -> None:
    moves = rebalancing.plan(clients)
    keep = {move.keep for move in moves.values()}
    assert len(keep) <= 1
    assert all(clients[node] - move.clients == move.keep for node, move in moves.items())
    assert all(move.clients > 0 for move in moves.values())
    for most in keep:
        room = sum(max(0, most - count) for node, count in clients.items() if node not in moves)
        assert sum(move.clients for move in moves.values()) <= room


@given(COUNTS)
def test_a_second_plan_after_the_first_moves_no_client(clients: dict[str, int]) -> None:
    moves = rebalancing.plan(clients)
    after = {node: count - (moves[node].clients if node in moves else 0) for node, count in clients.items()}
    for _ in range(sum(move.clients for move in moves.values())):
        after[min(after, key=lambda node: after[node])] += 1
    assert rebalancing.plan(after) == {}


@given(st.integers(1, 500), st.floats(0, 3600), st.randoms(use_true_random=False))
def test_each_part_of_the_window_has_one(count: int, seconds: float, chance: random.Random) -> None:
    due = list(rebalancing.close_times(count, seconds, chance.random))
    assert len(due) == count
    assert due == sorted(due)
    for at, moment in enumerate(due):
        assert seconds * at / count <= moment <= seconds * (at + 1) / count


def test_clients_closed_at_a_pace_reconnect_at_once_with_a_little_jitter() -> None:
    chances = iter((0.0, 0.5, 0.999))
    assert [rebalancing.reconnect_ms(5000, 5, lambda: next(chances)) for _ in range(3)] == [50, 275, 499]


def test_clients_closed_together_reconnect_at_a_pace() -> None:
    assert rebalancing.reconnect_ms(5000, 0, lambda: 0.999) == 50 + 4995
    assert rebalancing.reconnect_ms(5000, 2, lambda: 0.5) == 50 + 1500
