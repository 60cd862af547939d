"""slots: connections of users and addresses over all living nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

NODE = "n1.boot"
LEASE_MS = 10_007
DAY_MS = 86_400_000
LET_IN, USER_FULL, ADDRESS_FULL = 0, 1, 2
LEASE_GONE, OTHERS = 1, 2


def step(
    steps: Steps, *newcomers: tuple[str, str], fresh: bool = False, counts: Mapping[str, int] | None = None,
    others: Sequence[str] = (), users: int = 2, addresses: int = 3,
) -> Any:  # fmt: skip
    """Call the step for the node `NODE`."""
    keys, counts = steps.keys, counts or {}
    rows = [keys.connection_nodes, *map(keys.node_connections, (NODE, *others))]
    arguments = [NODE, LEASE_MS, int(fresh), users, addresses, len(others), len(counts), *others]
    arguments += [part for pair in counts.items() for part in pair]
    return steps.call("count_connections", rows, *arguments, *(part for newcomer in newcomers for part in newcomer))


def join(steps: Steps, node: str, ms: int = 60_000, **counts: object) -> None:
    """Another node with its counts: `u_ann=1` is one connection of the user ann."""
    steps.redis.zadd(steps.keys.connection_nodes, {node: steps.now_ms() + ms})
    if counts:
        steps.redis.hset(
            steps.keys.node_connections(node), mapping={name: str(count) for name, count in counts.items()}
        )


@pytest.fixture
def own(steps: Steps, keys: Keys) -> str:
    """The counts of the node, under its living lease."""
    assert step(steps, fresh=True) == [0]
    return keys.node_connections(NODE)


# ---- the lease


def test_a_fresh_node_takes_a_lease_without_connections(steps: Steps, keys: Keys) -> None:
    with steps.silence():
        assert step(steps, fresh=True) == [0]
    assert steps.hash(keys.node_connections(NODE)) == {"": "0"}
    assert steps.expires(keys.node_connections(NODE), LEASE_MS)
    assert steps.scores(keys.connection_nodes).keys() == {NODE}
    assert steps.is_due(steps.scores(keys.connection_nodes)[NODE], LEASE_MS)
    assert steps.expires(keys.connection_nodes, DAY_MS)


def test_a_step_renews_the_lease(steps: Steps, keys: Keys, own: str) -> None:
    for key in (own, keys.connection_nodes):
        steps.redis.pexpire(key, 1000)
    assert step(steps) == [0]
    assert steps.expires(own, LEASE_MS)
    assert steps.expires(keys.connection_nodes, DAY_MS)
    assert steps.is_due(steps.scores(keys.connection_nodes)[NODE], LEASE_MS)
    assert steps.hash(own) == {"": "0"}


def test_without_a_lease_nothing_is_done(steps: Steps, keys: Keys, own: str) -> None:
    steps.expire(own)
    with steps.nothing_done():
        assert step(steps, ("ann", "a1"), counts={"bob": 1}) == [LEASE_GONE]
    steps.redis.set(own, "x")
    with steps.nothing_done():
        assert step(steps, ("ann", "a1"), counts={"bob": 1}) == [LEASE_GONE]


def test_a_fresh_node_drops_what_it_held(steps: Steps, keys: Keys, own: str) -> None:
    step(steps, ("ann", "a1"))
    assert step(steps, ("bob", ""), fresh=True, counts={"eve": 1}) == [0, LET_IN]
    assert steps.hash(own) == {"": "0", "bob": "1", "eve": "1"}
    steps.redis.delete(own)
    steps.redis.set(own, "x")
    assert step(steps, fresh=True) == [0]
    assert steps.hash(own) == {"": "0"}
    assert steps.expires(own, LEASE_MS)


# ---- the index


def test_unknown_living_nodes_are_named_and_nothing_is_counted(steps: Steps, keys: Keys, own: str) -> None:
    join(steps, "n2.boot", 60_000)
    join(steps, "n3.boot", 90_000)
    counts, index = steps.hash(own), steps.scores(keys.connection_nodes)
    for others in ((), ("n2.boot",), ("n3.boot",)):
        verdict, *ids = step(steps, ("ann", "a1"), counts={"bob": 1}, others=others)
        assert verdict == OTHERS
        assert ids == [b"n3.boot", b"n2.boot", NODE.encode()]
    assert (steps.hash(own), steps.scores(keys.connection_nodes)) == (counts, index)
    assert step(steps, ("ann", "a1"), fresh=True)[0] == OTHERS
    assert steps.hash(own) == counts
    assert step(steps, ("ann", "a1"), others=("n3.boot", "n2.boot")) == [0, LET_IN]


def test_nodes_whose_lease_has_ended_are_taken_out(steps: Steps, keys: Keys, own: str) -> None:
    join(steps, "dead.boot", -1)
    join(steps, "n2.boot")
    assert step(steps, others=("n2.boot",)) == [0]
    assert steps.scores(keys.connection_nodes).keys() == {NODE, "n2.boot"}
    assert step(steps, others=("n2.boot", "dead.boot")) == [0], "a node that is known may be gone"


@pytest.mark.parametrize("name", ["a b", "", "x" * 101, "n/1", 'n"'])
def test_a_member_that_is_no_node_is_left_out(steps: Steps, keys: Keys, own: str, name: str) -> None:
    join(steps, name)
    assert step(steps, ("ann", "")) == [0, LET_IN]


@pytest.mark.parametrize("name", ["x" * 100, "n-1_a.b"])
def test_a_member_that_can_be_a_node_is_named(steps: Steps, keys: Keys, own: str, name: str) -> None:
    join(steps, name)
    assert step(steps, ("ann", "")) == [OTHERS, name.encode(), NODE.encode()]


def test_at_most_a_thousand_nodes_are_named_those_that_live_longest(steps: Steps, keys: Keys, own: str) -> None:
    now = steps.now_ms()
    steps.redis.zadd(keys.connection_nodes, {f"n{at}": now + 60_000 + at for at in range(1100)})
    verdict, *ids = step(steps)
    assert verdict == OTHERS
    assert ids == [b"n%d" % at for at in range(1099, 99, -1)]
    assert step(steps, ("ann", ""), others=[node.decode() for node in ids]) == [0, LET_IN]


def test_an_index_of_another_type_is_replaced(steps: Steps, keys: Keys, own: str) -> None:
    steps.redis.delete(keys.connection_nodes)
    steps.redis.set(keys.connection_nodes, "x")
    assert step(steps, ("ann", "")) == [0, LET_IN]
    assert steps.scores(keys.connection_nodes).keys() == {NODE}


def test_no_more_than_two_thousand_members_are_looked_at(steps: Steps, keys: Keys, own: str) -> None:
    now = steps.now_ms()
    steps.redis.zadd(
        keys.connection_nodes, {f"no node {at}": now + 90_000 for at in range(1999)} | {"n2.boot": now + 60_000}
    )
    assert step(steps)[0] == OTHERS
    steps.redis.zadd(keys.connection_nodes, {"one more that is none": now + 90_000})
    assert step(steps) == [0]


# ---- counts


def test_counts_are_written_and_dropped(steps: Steps, own: str) -> None:
    assert step(steps, counts={"ann": 3, "bob": 1, "a1": 4}) == [0]
    assert steps.hash(own) == {"": "0", "ann": "3", "bob": "1", "a1": "4"}
    assert step(steps, counts={"ann": 0, "bob": 2}) == [0]
    assert steps.hash(own) == {"": "0", "bob": "2", "a1": "4"}
    assert step(steps, counts={f"u{at}": 1 for at in range(500)}) == [0]
    assert steps.redis.hlen(own) == 503


# ---- newcomers


def test_connections_are_accepted_and_counted_up_to_the_users_limit(steps: Steps, own: str) -> None:
    assert step(steps, ("ann", "a1")) == [0, LET_IN]
    assert steps.hash(own) == {"": "0", "ann": "1", "a1": "1"}
    assert step(steps, ("ann", "a2"), ("ann", "a2"), ("bob", "a2")) == [0, LET_IN, USER_FULL, LET_IN]
    assert steps.hash(own) == {"": "0", "ann": "2", "bob": "1", "a1": "1", "a2": "2"}


def test_connections_are_accepted_up_to_the_addresss_limit(steps: Steps, own: str) -> None:
    newcomers = [(user, "a1") for user in ("u1", "u2", "u3", "u4")]
    assert step(steps, *newcomers, ("u4", "a2")) == [0, LET_IN, LET_IN, LET_IN, ADDRESS_FULL, LET_IN]
    assert steps.hash(own) == {"": "0", "u1": "1", "u2": "1", "u3": "1", "u4": "1", "a1": "3", "a2": "1"}


def test_a_user_is_refused_before_an_address(steps: Steps, own: str) -> None:
    step(steps, counts={"ann": 2, "a1": 3})
    assert step(steps, ("ann", "a1"), ("bob", "a1"), ("ann", "a2")) == [0, USER_FULL, ADDRESS_FULL, USER_FULL]
    assert steps.hash(own) == {"": "0", "ann": "2", "a1": "3"}


def test_uncounted_connections_are_accepted(steps: Steps, own: str) -> None:
    assert step(steps, ("", ""), ("", "a1"), ("ann", "")) == [0, LET_IN, LET_IN, LET_IN]
    assert steps.hash(own) == {"": "0", "a1": "1", "ann": "1"}


@pytest.mark.parametrize(("users", "addresses"), [(0, 1000), (1000, 0), (0, 0)])
def test_a_limit_of_zero_is_none(steps: Steps, own: str, users: int, addresses: int) -> None:
    assert step(steps, *[("ann", "a1")] * 5, users=users, addresses=addresses) == [0] + [LET_IN] * 5
    assert steps.hash(own) == {"": "0", "ann": "5", "a1": "5"}


def test_connections_on_other_nodes_count_too(steps: Steps, own: str) -> None:
    join(steps, "n2.boot", ann=1, a1=1)
    join(steps, "n3.boot", bob=2, a1=1)
    others = ["n2.boot", "n3.boot"]
    newcomers = [("ann", "a1"), ("ann", "a2"), ("bob", "a2"), ("eve", "a1")]
    assert step(steps, *newcomers, others=others) == [0, LET_IN, USER_FULL, USER_FULL, ADDRESS_FULL]
    assert steps.hash(own) == {"": "0", "ann": "1", "a1": "1"}


def test_connections_on_a_dead_node_do_not_count(steps: Steps, keys: Keys, own: str) -> None:
    join(steps, "n2.boot", ann=2)
    assert step(steps, ("ann", ""), others=["n2.boot"]) == [0, USER_FULL]
    steps.redis.delete(keys.node_connections("n2.boot"))
    assert step(steps, ("ann", ""), others=["n2.boot"]) == [0, LET_IN]


@pytest.mark.parametrize("count", ["x", "", "-5", "nan", "inf", str(2**31), "1e300"])
def test_a_count_that_is_none_counts_nothing(steps: Steps, own: str, count: str) -> None:
    join(steps, "n2.boot", ann=count)
    steps.redis.hset(own, "ann", "1")
    assert step(steps, ("ann", ""), ("ann", ""), others=["n2.boot"]) == [0, LET_IN, USER_FULL]


def test_the_largest_count_counts(steps: Steps, own: str) -> None:
    join(steps, "n2.boot", ann=2**31 - 1, bob=1)
    newcomers = [("ann", ""), ("bob", ""), ("bob", "")]
    assert step(steps, *newcomers, others=["n2.boot"], users=2**31) == [0, LET_IN, LET_IN, LET_IN]
    assert step(steps, ("ann", ""), others=["n2.boot"], users=2**31) == [0, USER_FULL]


def test_counts_of_another_type_count_nothing(steps: Steps, keys: Keys, own: str) -> None:
    join(steps, "n2.boot")
    steps.redis.set(keys.node_connections("n2.boot"), "x")
    assert step(steps, ("ann", "a1"), others=["n2.boot"]) == [0, LET_IN]


@pytest.mark.parametrize("count", ["x", "1.5", str(2**63 - 1)])
def test_an_own_count_that_is_no_number_begins_at_one(steps: Steps, own: str, count: str) -> None:
    steps.redis.hset(own, "ann", count)
    assert step(steps, ("ann", "")) == [0, LET_IN]
    assert steps.hash(own)["ann"] == "1"


def test_five_hundred_newcomers_come_at_once(steps: Steps, own: str) -> None:
    newcomers = [(f"u{at}", "a1") for at in range(500)]
    assert step(steps, *newcomers, addresses=400) == [0] + [LET_IN] * 400 + [ADDRESS_FULL] * 100
    assert steps.hash(own)["a1"] == "400"
