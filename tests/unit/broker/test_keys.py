"""Keys and channels: their exact names, since other programs read them too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from gateway.broker.keys import Keys, node_of
from gateway.core import hub

NODE = "web-1.f00d"
node_ids = st.from_regex(r"[A-Za-z0-9_.\-]{1,20}\.[0-9a-f]{4}", fullmatch=True)
names = st.text(min_size=1, max_size=20)


def test_keys_have_these_names() -> None:
    keys = Keys("gw:")
    assert keys.nodes == "gw:ws:nodes"
    assert keys.node(NODE) == "gw:ws:node:{web-1.f00d}"
    assert keys.clients(NODE) == "gw:ws:node:{web-1.f00d}:clients"
    assert keys.topics(NODE) == "gw:ws:node:{web-1.f00d}:topics"


def test_channels_have_these_names() -> None:
    keys = Keys("gw:")
    assert keys.audience(hub.topic_audience("contest")) == "gw:ws:topic:contest"
    assert keys.audience(hub.user_audience("ann")) == "gw:ws:user:ann"
    assert keys.audience(hub.role_audience("admin")) == "gw:ws:role:admin"
    assert keys.node_channel(NODE) == "gw:ws:node:web-1.f00d"
    assert (keys.control, keys.node_ready, keys.ingest) == ("gw:ws:control", "gw:websocket:ready", "gw:ws:broadcast")


def test_on_a_cluster_a_channel_lies_in_the_slot_of_what_its_step_writes() -> None:
    keys = Keys("gw:", sharded=True)
    assert keys.audience(hub.topic_audience("contest")) == "gw:ws:topic:{contest}"
    assert keys.audience(hub.user_audience("a:b")) == "gw:ws:user:{a:b}"
    assert keys.node_channel(NODE) == "gw:ws:node:{web-1.f00d}"
    channel = keys.audience(hub.topic_audience("contest")).encode()
    assert key_slot(channel) == key_slot(keys.history("contest").encode())
    assert key_slot(channel) == key_slot(keys.snapshot("contest").encode())
    assert not any("{" in name for name in (keys.control, keys.node_ready, keys.ingest, keys.cache_changes))


@settings(deadline=None)
@given(
    names,
    st.sampled_from([hub.topic_audience, hub.user_audience, hub.role_audience]),
    st.booleans(),
    st.sampled_from(["gw:", ""]),
)
def test_a_channel_tells_its_audience(name: str, kind: Callable[[str], str], sharded: bool, namespace: str) -> None:
    keys = Keys(namespace, sharded)
    assert keys.audience_of(keys.audience(kind(name))) == kind(name)


def test_the_caches_rows_have_these_names() -> None:
    keys = Keys("gw:")
    assert (keys.cache_value("contest:5"), keys.cache_lock("a")) == ("gw:cache:{contest:5}", "gw:cache:{a}:lock")
    assert keys.cache_pattern("contest:") == "gw:cache:{contest:*"
    assert keys.cache_pattern("a*[b]?\\") == "gw:cache:{a\\*\\[b\\]\\?\\\\*"
    assert keys.cache_changes == "gw:cache:changed"


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_value_and_its_lock_lie_in_one_slot(key: str) -> None:
    keys = Keys("gw:")
    assert key_slot(keys.cache_value(key).encode()) == key_slot(keys.cache_lock(key).encode())


def test_an_empty_namespace_gives_the_original_plans_names() -> None:
    keys = Keys("")
    assert (keys.node_ready, keys.ingest, keys.nodes) == ("websocket:ready", "ws:broadcast", "ws:nodes")


def test_what_limits_count_has_these_names_and_all_nodes_slots_lie_in_one_slot() -> None:
    keys = Keys("gw:")
    assert (keys.connection_nodes, keys.node_connections(NODE)) == ("gw:ws:{slots}", "gw:ws:{slots}:web-1.f00d")
    assert key_slot(keys.connection_nodes.encode()) == key_slot(keys.node_connections(NODE).encode())
    assert keys.quota("ann") == "gw:ws:quota:ann"


@settings(deadline=None)
@given(node_ids)
def test_what_one_script_touches_lies_in_one_slot(node_id: str) -> None:
    keys = Keys("gw:")
    rows = [keys.node(node_id), keys.clients(node_id), keys.topics(node_id)]
    assert len(set(rows)) == 3
    assert len({key_slot(row.encode()) for row in rows}) == 1


@settings(deadline=None)
@given(names, names, names, node_ids, st.booleans())
def test_no_name_makes_one_channel_look_like_another(
    topic: str, user: str, role: str, node_id: str, sharded: bool
) -> None:
    keys = Keys("gw:", sharded)
    channels = [keys.audience(a) for a in (hub.topic_audience(topic), hub.user_audience(user), hub.role_audience(role))]
    channels += [keys.node_channel(node_id), keys.control, keys.node_ready, keys.ingest, keys.cache_changes]
    assert len(set(channels)) == len(channels)


@settings(deadline=None)
@given(node_ids, st.integers(1, 10**9))
def test_a_client_id_tells_its_node(node_id: str, counter: int) -> None:
    assert node_of(f"{node_id}.{counter}") == node_id


@pytest.mark.parametrize("other", ["", "nothing", "12"])
def test_what_is_no_client_id_names_no_node(other: str) -> None:
    assert node_of(other) == ""
