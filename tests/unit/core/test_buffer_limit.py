"""The buffers of all clients together stay below a ceiling; the node closes the largest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.buffer_limit import SMALL_BYTES, BufferLimit

KIB = 1 << 10
MOST = 1 << 20


class Client:
    """A client with a set number of waiting bytes; counts how often they are read."""

    def __init__(self) -> None:
        self.held = 0
        self.looks = 0

    def held_bytes(self) -> int:
        self.looks += 1
        return self.held


class Node:
    """A node, as far as it holds something for clients."""

    def __init__(self) -> None:
        self.wakes = 0
        self.buffer_limit: BufferLimit[Client] = BufferLimit(MOST, self.wake)

    def wake(self) -> None:
        self.wakes += 1

    def hold(self, client: Client, size: int) -> None:
        client.held += size
        self.buffer_limit.grow(client, size)


def test_no_client_is_closed_below_the_ceiling() -> None:
    node, clients = Node(), [Client() for _ in range(10)]
    for client in clients:
        node.hold(client, MOST // 10)
    assert (node.wakes, node.buffer_limit.excess()) == (0, [])
    assert node.buffer_limit.count() == MOST // 10 * 10


def test_the_largest_go_until_the_others_fit() -> None:
    node, clients = Node(), [Client() for _ in range(5)]
    for client, size in zip(clients, [100, 700, 300, 500, 200], strict=True):
        node.hold(client, size * KIB)
    assert node.wakes == 1
    assert node.buffer_limit.excess() == [clients[1], clients[3]]


def test_what_was_taken_meanwhile_counts_for_nothing() -> None:
    node, client = Node(), Client()
    node.hold(client, MOST + 1)
    client.held = 0
    assert (node.wakes, node.buffer_limit.excess()) == (1, [])
    assert node.buffer_limit.count() == 0


def test_a_removed_client_holds_no_bytes() -> None:
    node, client = Node(), Client()
    node.hold(client, MOST + 1)
    node.buffer_limit.remove(client)
    assert node.buffer_limit.excess() == []


def test_a_full_house_is_not_counted_at_each_message() -> None:
    node, clients = Node(), [Client() for _ in range(100)]
    for client in clients:
        node.hold(client, MOST // 100)
    node.buffer_limit.excess()
    before = sum(client.looks for client in clients)
    for at in range(2000):  # each takes what it is sent, at once
        node.buffer_limit.grow(clients[at % 100], KIB)
        if node.wakes > 0:
            node.wakes = 0
            assert node.buffer_limit.excess() == []
    counts = (sum(client.looks for client in clients) - before) / 100
    assert counts <= 2000 * KIB / (MOST / 8) + 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-MOST, MOST // 4)), max_size=200))
def test_the_ceiling_is_exceeded_by_an_eighth_at_most(changes: list[tuple[int, int]]) -> None:
    node, clients = Node(), [Client() for _ in range(10)]
    for which, change in changes:
        client = clients[which]
        if change > 0:
            node.hold(client, change)
        else:
            client.held = max(0, client.held + change)
        if node.wakes:
            node.wakes = 0
            going = node.buffer_limit.excess()
            sizes = [one.held for one in going]
            assert sizes == sorted(sizes, reverse=True)
            staying = [one.held for one in clients if one not in going]
            assert not going or min(sizes) >= max(staying)
            for one in going:
                one.held = 0
        assert sum(one.held for one in clients) <= MOST + MOST // 8 + 10 * SMALL_BYTES
