"""enlist, tell, recall and members: the index of services, and their instances' records."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

KEEP_MS = 3_600_000
INDEX_MS = 90_000_001
LEASE_MS = 7003
MOST = 3
RECORD = b'{"status":"ok"}'


# ---- enlist


def enlist(steps: Steps, *services: str, most: int = MOST, lease_ms: int = LEASE_MS) -> Any:
    """Put services into the index."""
    pairs = [part for name in services for part in (name, lease_ms)]
    return steps.call("index_services", [steps.keys.services], KEEP_MS, most, INDEX_MS, *pairs)


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["c", "b", "a"]])
def test_enlist_lists_services_until_their_leases_end(steps: Steps, keys: Keys, names: list[str]) -> None:
    for _ in range(2):
        with steps.silence():
            assert enlist(steps, *names) == [1] * len(names)
        assert steps.scores(keys.services).keys() == set(names)
        assert all(steps.is_due(score, LEASE_MS) for score in steps.scores(keys.services).values())
        assert steps.expires(keys.services, INDEX_MS)


def test_enlist_gives_each_service_its_own_lease(steps: Steps, keys: Keys) -> None:
    steps.call("index_services", [keys.services], KEEP_MS, MOST, INDEX_MS, "a", 1000, "b", 2000, "c", 3000)
    scores = steps.scores(keys.services)
    assert [round(scores[name] - scores["a"]) for name in "abc"] == [0, 1000, 2000]
    assert steps.is_due(scores["a"], 1000)


def test_enlist_of_no_services_changes_nothing(steps: Steps) -> None:
    enlist(steps, "a")
    with steps.nothing_done():
        assert enlist(steps) == []


def test_enlist_never_moves_a_lease_back(steps: Steps, keys: Keys) -> None:
    enlist(steps, "a", lease_ms=60_000)
    before = steps.scores(keys.services)
    assert enlist(steps, "a", lease_ms=1000) == [1]
    assert steps.scores(keys.services) == before
    assert enlist(steps, "a", lease_ms=90_000) == [1]
    assert steps.is_due(steps.scores(keys.services)["a"], 90_000)


def test_enlist_refuses_new_services_beyond_the_bound(steps: Steps, keys: Keys) -> None:
    assert enlist(steps, "a", "b") == [1, 1]
    assert enlist(steps, "b", "c", "d", "a", "e") == [1, 1, 0, 1, 0]
    assert steps.scores(keys.services).keys() == {"a", "b", "c"}
    with steps.nothing_done():
        assert enlist(steps, "d") == [0]
    with steps.nothing_done():
        assert enlist(steps, "d", "e") == [0, 0]
    assert enlist(steps, "a", "b", "c") == [1, 1, 1]


def test_enlist_counts_a_new_service_of_several_instances_once(steps: Steps, keys: Keys) -> None:
    assert enlist(steps, "a", "a", "a", "b", "b", "c", "c", "d", "d") == [1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert steps.scores(keys.services).keys() == {"a", "b", "c"}


def test_enlist_forgets_services_whose_records_are_gone(steps: Steps, keys: Keys) -> None:
    now = steps.now_ms()
    steps.redis.zadd(keys.services, {"gone": now - KEEP_MS - 1, "kept": now - KEEP_MS + 60_000, "alive": now + 1000})
    assert enlist(steps, "alive") == [1]
    assert steps.redis.zcard(keys.services) == 3, "looked at only when a service is new"
    assert enlist(steps, "new") == [1]
    assert steps.scores(keys.services).keys() == {"kept", "alive", "new"}


def test_enlist_replaces_an_index_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.services, "x")
    assert enlist(steps, "a", "b", "c", "d") == [1, 1, 1, 0]
    assert steps.scores(keys.services).keys() == {"a", "b", "c"}


def test_enlist_takes_thousands_at_once(steps: Steps, keys: Keys) -> None:
    names = [f"s{at}" for at in range(3000)]
    assert enlist(steps, *names, most=10_000) == [1] * 3000
    assert steps.redis.zcard(keys.services) == 3000


# ---- tell


def tell(
    steps: Steps, instance: str = "i1", version: int = 0, *, most: int = MOST, channel: str = ""
) -> Any:  # fmt: skip
    """Write a record of the service "a"."""
    key = steps.keys.service("a")
    return steps.call("write_service", [key], instance, version, RECORD, LEASE_MS, KEEP_MS, most, channel, '{"state":')


def record(steps: Steps, instance: str = "i1") -> Any:
    """An instance's record as it is stored."""
    return orjson.loads(steps.redis.hget(steps.keys.service("a"), instance))


def store(steps: Steps, **records: object) -> None:
    """Write records as another program does."""
    steps.redis.hset(steps.keys.service("a"), mapping={name: orjson.dumps(one) for name, one in records.items()})


def test_tell_stores_a_record_and_publishes_it_once(steps: Steps, keys: Keys) -> None:
    before = steps.now_us()
    done, version = tell(steps, channel="updates")
    assert done == 1
    assert before <= int(version) <= steps.now_us()
    stored = record(steps)
    assert stored == {"status": "ok", "version": int(version), "leaseEnds": stored["leaseEnds"]}
    assert steps.is_due(stored["leaseEnds"], LEASE_MS)
    assert steps.expires(keys.service("a"), LEASE_MS + KEEP_MS + KEEP_MS // 2)
    assert steps.published() == [("updates", b'{"state":' + steps.redis.hget(keys.service("a"), "i1") + b"}")]


def test_tell_without_a_channel_publishes_nothing(steps: Steps) -> None:
    with steps.silence():
        assert tell(steps)[0] == 1
        assert tell(steps)[0] == 1


def test_tell_gives_versions_that_grow(steps: Steps) -> None:
    versions = [int(tell(steps)[1]) for _ in range(5)]
    assert versions == sorted(set(versions))
    ahead = steps.now_us() + 10**12
    store(steps, i1={"version": ahead})
    assert tell(steps) == [1, b"%d" % (ahead + 1)]
    assert record(steps)["version"] == ahead + 1


def test_tell_takes_a_version_that_is_not_older(steps: Steps, keys: Keys) -> None:
    for version in (5, 5, 6, 2**53 - 1):
        assert tell(steps, version=version) == [1, b"%d" % version]
        assert record(steps)["version"] == version
    assert tell(steps, "i2", 1) == [1, b"1"], "each instance has its own versions"


def test_tell_refuses_an_older_version(steps: Steps) -> None:
    tell(steps, version=1_700_000_000_000_001)
    with steps.nothing_done():
        assert tell(steps, version=1_700_000_000_000_000, channel="updates") == [0, b"1700000000000001"]
        assert tell(steps, version=1, channel="updates") == [0, b"1700000000000001"]


@pytest.mark.parametrize(
    "text",
    [
        b"no JSON", b"5", b'{"version":null}', b'{"version":[1]}', b'{"version":"x"}', b"{}",
        b'{"version":9007199254740992}', b'{"version":1e300}', b'{"version":NaN}', b'{"version":Infinity}', b"",
        b"[" * 5000, b'{"version":5,"pad":"' + b"x" * (65537 - 22) + b'"}',
    ],
)  # fmt: skip
def test_tell_replaces_a_record_without_a_version(steps: Steps, keys: Keys, text: bytes) -> None:
    steps.redis.hset(keys.service("a"), "i1", text)
    assert tell(steps, version=1) == [1, b"1"]
    steps.redis.hset(keys.service("a"), "i1", text)
    before = steps.now_us()
    version = int(tell(steps)[1])
    assert before <= version <= steps.now_us()
    assert record(steps)["version"] == version


def test_tell_reads_a_record_of_the_largest_size(steps: Steps, keys: Keys) -> None:
    text = b'{"version":7,"pad":"' + b"x" * (65536 - 22) + b'"}'
    assert len(text) == 65536
    steps.redis.hset(keys.service("a"), "i1", text)
    assert tell(steps, version=6) == [0, b"7"]


def test_tell_renews_the_time_only_when_it_runs_low(steps: Steps, keys: Keys) -> None:
    tell(steps)
    key, full = keys.service("a"), LEASE_MS + KEEP_MS + KEEP_MS // 2
    first = steps.redis.pexpiretime(key)
    tell(steps)
    assert steps.redis.pexpiretime(key) == first
    steps.redis.pexpire(key, LEASE_MS + KEEP_MS + 1000)
    tell(steps)
    assert steps.redis.pttl(key) <= LEASE_MS + KEEP_MS + 1000
    steps.redis.pexpire(key, LEASE_MS + KEEP_MS - 1)
    tell(steps)
    assert steps.expires(key, full)
    steps.redis.persist(key)
    tell(steps)
    assert steps.expires(key, full)


def test_tell_refuses_a_new_instance_beyond_the_bound(steps: Steps, keys: Keys) -> None:
    for at in range(MOST):
        assert tell(steps, f"i{at}")[0] == 1
    with steps.nothing_done():
        assert tell(steps, "one more", channel="updates") == [-1, b"3"]
        assert tell(steps, "one more", 5, channel="updates") == [-1, b"3"]
    assert tell(steps, "i0")[0] == 1
    assert steps.redis.hlen(keys.service("a")) == MOST


@pytest.mark.parametrize(
    "ends",
    [-KEEP_MS - 1000, None, "x", [1], True],
)
def test_a_new_instance_takes_the_place_of_a_record_whose_time_is_over(steps: Steps, keys: Keys, ends: Any) -> None:
    now = steps.now_ms()
    kept = {"i1": {"leaseEnds": now - KEEP_MS + 60_000}, "i2": {"leaseEnds": now + 1000}}
    store(steps, old={"leaseEnds": now + ends if type(ends) is int else ends}, **kept)
    assert tell(steps, "i1")[0] == 1
    assert steps.redis.hexists(keys.service("a"), "old"), "looked at only for a new instance"
    assert tell(steps, "new")[0] == 1
    assert steps.hash(keys.service("a")).keys() == {"i1", "i2", "new"}


def test_a_record_that_is_too_large_gives_way(steps: Steps, keys: Keys) -> None:
    now = steps.now_ms()
    head = b'{"leaseEnds":%d,"pad":"' % (now + 60_000)
    for size, number in ((65536, 2), (65537, 1)):
        text = head + b"x" * (size - len(head) - 2) + b'"}'
        assert len(text) == size
        steps.redis.delete(keys.service("a"))
        steps.redis.hset(keys.service("a"), "large", text)
        tell(steps, "new")
        assert steps.redis.hlen(keys.service("a")) == number


def test_tell_replaces_a_key_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.service("a"), "x")
    assert tell(steps, version=4) == [1, b"4"]
    assert record(steps)["version"] == 4
    assert steps.expires(keys.service("a"), LEASE_MS + KEEP_MS + KEEP_MS // 2)


def test_tell_looks_at_five_times_as_many_records_as_there_may_be(steps: Steps, keys: Keys) -> None:
    """A hash of many fields is looked at in part: the rest is for the next calls."""
    store(steps, **{f"old{at}": {"leaseEnds": 1, "pad": "x" * 100} for at in range(3000)})
    assert tell(steps, "new", most=3000)[0] == 1, "all of them were looked at"
    assert steps.hash(keys.service("a")).keys() == {"new"}
    store(steps, **{f"old{at}": {"leaseEnds": 1, "pad": "x" * 100} for at in range(3000)})
    done, number = tell(steps, "newer", most=20)
    assert (done, steps.redis.hlen(keys.service("a"))) == (-1, int(number))
    assert 3001 - 5 * 20 - 50 <= int(number) <= 3001 - 5 * 20 + 1


def test_tell_without_memory_writes_nothing(steps: Steps) -> None:
    tell(steps)
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            tell(steps, channel="updates")
    finally:
        steps.redis.config_set("maxmemory", 0)


# ---- recall


def test_recall_reads_all_records_and_redis_time(steps: Steps, keys: Keys) -> None:
    key = [keys.service("a")]
    now, rows = steps.call("read_services", key, 100, 1000)
    assert rows == []
    assert steps.is_due(now, 0)
    steps.redis.hset(key[0], mapping={"i1": "one", "i2": "two"})
    with steps.nothing_done():
        _, rows = steps.call("read_services", key, 100, 1000)
    assert dict(zip(rows[::2], rows[1::2], strict=True)) == {b"i1": b"one", b"i2": b"two"}


def test_recall_sends_the_start_of_a_long_record_and_leaves_out_long_names(steps: Steps, keys: Keys) -> None:
    key = [keys.service("a")]
    steps.redis.hset(key[0], mapping={"i": "0123456789", "n" * 400: "short", "m" * 401: "short"})
    _, rows = steps.call("read_services", key, 100, 5)
    assert dict(zip(rows[::2], rows[1::2], strict=True)) == {b"i": b"012345", b"n" * 400: b"short"}


def test_recall_looks_at_no_more_than_it_is_asked_for(steps: Steps, keys: Keys) -> None:
    store(steps, **{f"i{at}": {} for at in range(3000)})
    _, rows = steps.call("read_services", [keys.service("a")], 100, 1000)
    assert 100 <= len(rows) // 2 <= 200
    _, rows = steps.call("read_services", [keys.service("a")], 5000, 1000)
    assert len(rows) // 2 == 3000


def test_recall_of_a_key_of_another_type_finds_nothing(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.service("a"), "x")
    with steps.nothing_done():
        assert steps.call("read_services", [keys.service("a")], 100, 1000)[1] == []


# ---- members


def test_members_reads_a_page_in_either_order(steps: Steps, keys: Keys) -> None:
    key = [keys.services]
    assert steps.call("page_sorted_set", key, "ZRANGE", 0, 9, 100) == [0, []]
    steps.redis.zadd(key[0], {"a": 1, "b": 2.5, "c": 3})
    with steps.nothing_done():
        assert steps.call("page_sorted_set", key, "ZRANGE", 0, 1, 100) == [2, [b"a", b"1", b"b", b"2.5"]]
        assert steps.call("page_sorted_set", key, "ZREVRANGE", 0, 1, 100) == [2, [b"c", b"3", b"b", b"2.5"]]
        assert steps.call("page_sorted_set", key, "ZRANGE", 2, 2, 100) == [1, [b"c", b"3"]]
        assert steps.call("page_sorted_set", key, "ZRANGE", 3, 9, 100) == [0, []]


def test_members_leaves_out_what_is_too_long_and_counts_it(steps: Steps, keys: Keys) -> None:
    steps.redis.zadd(keys.services, {"abc": 1, "abcd": 2, "ab": 3})
    assert steps.call("page_sorted_set", [keys.services], "ZRANGE", 0, 9, 3) == [3, [b"abc", b"1", b"ab", b"3"]]


def test_members_reads_thousands(steps: Steps, keys: Keys) -> None:
    steps.redis.zadd(keys.services, {f"m{at}": at for at in range(10_000)})
    looked_at, page = steps.call("page_sorted_set", [keys.services], "ZRANGE", 0, 9999, 100)
    assert (looked_at, len(page)) == (10_000, 20_000)


def test_members_refuses_a_key_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.services, "x")
    with steps.nothing_done(), pytest.raises(ResponseError, match="WRONGTYPE"):
        steps.call("page_sorted_set", [keys.services], "ZRANGE", 0, 9, 100)
