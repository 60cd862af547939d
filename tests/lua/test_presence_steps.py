"""attend and reap: who is on a topic from one node, and their removal once the node's lease has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

NODE = "n1.boot"
PEOPLE_MS = 86_400_007


@pytest.fixture
def rows(keys: Keys) -> list[str]:
    """A node's lease, its people on the topic "news", and its topics."""
    return [keys.node(NODE), keys.presence(NODE, "news"), keys.topics(NODE)]


def attend(
    steps: Steps, rows: list[str], joined: dict[str, str], left: Sequence[str], *, drop_first: bool = False,
    channel: str = "",
) -> Any:  # fmt: skip
    """Call the step about the topic "news"."""
    pairs = [part for pair in joined.items() for part in pair]
    arguments = ["news", int(drop_first), PEOPLE_MS, channel, "a message", len(joined), *pairs, *left]
    return steps.call("write_presence", rows, *arguments)


# ---- attend


def test_attend_writes_people_under_a_lease_and_publishes_once(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    assert attend(steps, rows, {"c1": "ann", "c2": "bob"}, [], channel="gw:news") == 1
    assert steps.published() == [("gw:news", b"a message")]
    assert steps.hash(rows[1]) == {"c1": "ann", "c2": "bob"}
    assert steps.expires(rows[1], PEOPLE_MS)
    assert steps.hash(rows[2]) == {"news": "2"}
    assert steps.redis.pttl(rows[2]) == -1
    assert steps.hash(rows[0]) == {"name": "n1"}


def test_attend_adds_to_the_people_and_renews_their_time(steps: Steps, rows: list[str]) -> None:
    for key in rows:
        steps.redis.hset(key, "c1", "ann")
    steps.redis.pexpire(rows[1], 5000)
    steps.redis.hset(rows[2], "news", 7)  # subscribers, which the registry counts
    steps.redis.hset(rows[1], "bob", "a client that is named as the row of another")
    with steps.silence():
        assert attend(steps, rows, {"c2": "bob"}, ["c1", "c9"]) == 1
    assert steps.hash(rows[1]) == {"c2": "bob", "bob": "a client that is named as the row of another"}
    assert steps.expires(rows[1], PEOPLE_MS)
    assert steps.hash(rows[2])["news"] == "7"


def test_attend_renews_the_time_of_people_where_only_one_leaves(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    steps.redis.hset(rows[1], mapping={"c1": "ann", "c2": "bob"})
    assert attend(steps, rows, {}, ["c1"]) == 1
    assert steps.hash(rows[1]) == {"c2": "bob"}
    assert steps.expires(rows[1], PEOPLE_MS)
    assert steps.hash(rows[2]) == {"news": "1"}


def test_attend_without_members_publishes_and_leaves_no_topic(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    before = steps.state()
    assert attend(steps, rows, {}, [], channel="gw:news") == 1
    assert steps.state() == before
    assert steps.published() == [("gw:news", b"a message")]
    assert attend(steps, rows, {}, ["c1"]) == 1
    assert steps.state() == before


def test_attend_that_removes_the_last_one_leaves_no_people(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    steps.redis.hset(rows[1], "c1", "ann")
    assert attend(steps, rows, {}, ["c1"]) == 1
    assert not steps.redis.exists(*rows[1:])


def test_attend_drops_all_members_first_only_on_request(steps: Steps, rows: list[str]) -> None:
    for key in rows:
        steps.redis.hset(key, "c1", "ann")
    assert attend(steps, rows, {"c2": "bob"}, [], drop_first=True) == 1
    assert steps.hash(rows[1]) == {"c2": "bob"}
    assert attend(steps, rows, {"c3": "eve"}, [], drop_first=False) == 1
    assert steps.hash(rows[1]) == {"c2": "bob", "c3": "eve"}
    assert steps.hash(rows[0]) == {"c1": "ann"}
    assert attend(steps, rows, {}, [], drop_first=True) == 1
    assert not steps.redis.exists(rows[1])


def test_attend_without_a_lease_does_nothing(steps: Steps, rows: list[str]) -> None:
    for key in rows[1:]:
        steps.redis.hset(key, "c1", "ann")
    for drop_first in (False, True):
        with steps.nothing_done():
            assert attend(steps, rows, {"c2": "bob"}, ["c1"], drop_first=drop_first, channel="gw:news") == 0


@pytest.mark.parametrize("broken", [1, 2])
def test_attend_replaces_keys_of_another_type(steps: Steps, rows: list[str], broken: int) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    steps.redis.set(rows[broken], "x")
    assert attend(steps, rows, {"c2": "bob"}, [], channel="gw:news") == 1
    assert steps.hash(rows[1]) == {"c2": "bob"}
    assert steps.hash(rows[2]) == {"news": "1"}
    assert steps.published() == [("gw:news", b"a message")]


def test_attend_takes_as_many_rows_as_its_caller_sends(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    ids = [f"c{at}" for at in range(2000)]
    assert attend(steps, rows, dict.fromkeys(ids, "x"), []) == 1
    assert steps.redis.hlen(rows[1]) == 2000
    assert attend(steps, rows, dict.fromkeys(["c1", "new"], "y"), ids[2:]) == 1
    assert steps.hash(rows[1]) == {"c0": "x", "c1": "y", "new": "y"}


def test_attend_without_memory_does_nothing(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    steps.redis.hset(rows[1], "c1", "ann")
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            attend(steps, rows, {"c2": "bob"}, ["c1"], channel="gw:news")
    finally:
        steps.redis.config_set("maxmemory", 0)


# ---- reap


def reap(steps: Steps, keys: Keys, *topics: tuple[str, str, Sequence[str]]) -> Any:
    """Call the step about topics, each with its channel and the ids to remove."""
    rows = [keys.node(NODE), keys.topics(NODE), *(keys.presence(NODE, topic) for topic, _, _ in topics)]
    arguments = [part for topic, channel, ids in topics for part in (topic, channel, len(ids), *ids)]
    return steps.call("reap_presence", rows, '{"left":[', '],"dead":true}', *arguments)


@pytest.fixture
def dead(steps: Steps, keys: Keys) -> Keys:
    """A node whose lease has ended; it had people on two topics."""
    steps.redis.hset(keys.presence(NODE, "news"), mapping={"c1": "ann", "c2": "bob", "c3": "eve"})
    steps.redis.hset(keys.presence(NODE, "chat"), mapping={"c1": "ann"})
    steps.redis.hset(keys.topics(NODE), mapping={"news": 3, "chat": 1, "other": 5})
    return keys


def test_reap_removes_people_of_several_topics_and_announces_each_once(steps: Steps, dead: Keys) -> None:
    steps.published()
    assert reap(steps, dead, ("news", "ch:news", ["c1", "c2", "c3"]), ("chat", "ch:chat", ["c1"])) == 1
    assert steps.published() == [
        ("ch:news", b'{"left":["c1","c2","c3"],"dead":true}'), ("ch:chat", b'{"left":["c1"],"dead":true}'),
    ]  # fmt: skip
    assert steps.state().keys() == {dead.topics(NODE).encode()}
    assert steps.hash(dead.topics(NODE)) == {"other": "5"}
    with steps.silence():  # another survivor did it
        assert reap(steps, dead, ("news", "ch:news", ["c1", "c2", "c3"]), ("chat", "ch:chat", ["c1"])) == 1


def test_reap_keeps_a_topic_that_has_people_left(steps: Steps, dead: Keys) -> None:
    steps.published()
    assert reap(steps, dead, ("news", "ch:news", ["c2", "never seen"])) == 1
    assert steps.published() == [("ch:news", b'{"left":["c2"],"dead":true}')]
    assert steps.hash(dead.presence(NODE, "news")) == {"c1": "ann", "c3": "eve"}
    assert steps.hash(dead.presence(NODE, "chat")) == {"c1": "ann"}
    assert steps.hash(dead.topics(NODE)) == {"news": "3", "chat": "1", "other": "5"}


def test_reap_without_a_channel_announces_nothing(steps: Steps, dead: Keys) -> None:
    with steps.silence():
        assert reap(steps, dead, ("news", "", ["c1", "c2", "c3"])) == 1
    assert not steps.redis.exists(dead.presence(NODE, "news"))
    assert steps.hash(dead.topics(NODE)) == {"chat": "1", "other": "5"}


def test_reap_takes_out_a_topic_without_people(steps: Steps, dead: Keys) -> None:
    with steps.silence():
        assert reap(steps, dead, ("other", "ch:other", []), ("news", "ch:news", [])) == 1
    assert steps.hash(dead.topics(NODE)) == {"news": "3", "chat": "1"}


def test_reap_of_no_topics_changes_nothing(steps: Steps, dead: Keys) -> None:
    with steps.nothing_done():
        assert reap(steps, dead) == 1


def test_reap_removes_nothing_while_the_lease_lives(steps: Steps, dead: Keys) -> None:
    steps.redis.hset(dead.node(NODE), "name", "n1")
    with steps.nothing_done():
        assert reap(steps, dead, ("news", "ch:news", ["c1"]), ("other", "ch:other", [])) == 0


def test_reap_takes_as_many_people_and_topics_as_its_caller_sends(steps: Steps, keys: Keys) -> None:
    ids = [f"c{at}" for at in range(5000)]
    names = [f"t{at}" for at in range(200)]
    steps.redis.hset(keys.presence(NODE, "t0"), mapping=dict.fromkeys(ids, "x"))
    steps.redis.hset(keys.topics(NODE), mapping=dict.fromkeys(names, 1))
    assert reap(steps, keys, ("t0", "ch", ids), *((name, "ch", []) for name in names[1:])) == 1
    [(channel, message)] = steps.published()
    assert channel == "ch"
    assert message.count(b",") == 5000
    assert steps.state() == {}
