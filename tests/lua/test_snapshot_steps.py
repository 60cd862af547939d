"""keep and last: the last value of a topic without history."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.fence import Fence
from gateway.broker.keys import Keys
from gateway.broker.snapshots import KEEP_MS, Snapshots
from tests.lua.steps import Steps

TEXT = b'{"price":1}'
TOPIC = "prices"


def keep(steps: Steps, text: bytes = TEXT, fence: Fence | None = None) -> int | list[bytes]:
    """Keep a value as the code does; its version, or what refused it."""
    message = Envelope(123, text, kind=EnvelopeKind.SNAPSHOT, conflate_ms=50)
    answer = steps.run(
        Snapshots(steps.redis_client, steps.keys).publish_command(TOPIC, message, "gw:prices", None, fence)
    )
    return answer if isinstance(answer, list) else int(answer)


def kept(steps: Steps, keys: Keys, version: int | list[bytes], text: bytes = TEXT) -> bool:
    """Whether this value is stored and was published once."""
    [(channel, payload)] = steps.published()
    envelope = Envelope.unpack(payload)
    stored = steps.hash(keys.snapshot(TOPIC))
    return (
        channel == "gw:prices"
        and (envelope.version, envelope.body, envelope.conflate_ms) == (version, text, 50)
        and (stored["v"], stored["m"]) == (str(version), text.decode())
        and steps.expires(keys.snapshot(TOPIC), KEEP_MS)
    )


def test_a_value_is_stored_and_published_under_a_version_of_redis_time(steps: Steps, keys: Keys) -> None:
    before = steps.now_us()
    version = keep(steps)
    assert isinstance(version, int)
    assert before <= version <= steps.now_us()
    assert kept(steps, keys, version)
    assert steps.hash(keys.snapshot(TOPIC)).keys() == {"v", "m"}


def test_versions_grow_with_each_value_and_the_time_is_renewed(steps: Steps, keys: Keys) -> None:
    versions = []
    for at in range(5):
        steps.published()
        versions.append(keep(steps, b"%d" % at))
        assert kept(steps, keys, versions[-1], b"%d" % at)
    assert versions == sorted(set(map(int, versions)))  # type: ignore[arg-type]


def test_versions_grow_where_the_clock_does_not(steps: Steps, keys: Keys) -> None:
    ahead = steps.now_us() + 10**12
    steps.redis.hset(keys.snapshot(TOPIC), "v", ahead)
    assert keep(steps) == ahead + 1
    assert kept(steps, keys, ahead + 1)
    assert keep(steps) == ahead + 2


@pytest.mark.parametrize("last", ["no number", "", "inf", "nan", "1e300", str(2**53), "-7"])
def test_a_version_that_is_none_is_replaced_by_redis_time(steps: Steps, keys: Keys, last: str) -> None:
    steps.redis.hset(keys.snapshot(TOPIC), "v", last)
    before = steps.now_us()
    version = keep(steps)
    assert isinstance(version, int)
    assert before <= version <= steps.now_us()
    assert kept(steps, keys, version)


def test_the_largest_version_is_followed_by_one_more(steps: Steps, keys: Keys) -> None:
    steps.redis.hset(keys.snapshot(TOPIC), "v", 2**53 - 1)
    assert keep(steps) == 2**53


def test_a_key_of_another_type_is_replaced(steps: Steps, keys: Keys) -> None:
    for fence in (None, Fence("s", 5, steps.now_ms() + 60_000)):
        steps.redis.delete(keys.snapshot(TOPIC))
        steps.redis.set(keys.snapshot(TOPIC), "x")
        steps.published()
        assert kept(steps, keys, keep(steps, fence=fence))


def test_a_value_goes_to_one_shard_on_a_cluster(steps: Steps, keys: Keys) -> None:
    subscriber = steps.redis.pubsub()
    subscriber.execute_command("SSUBSCRIBE", "ch")
    assert subscriber.parse_response()[0] == b"ssubscribe"
    steps.call("publish_snapshot", [keys.snapshot(TOPIC)], "ch", "h", "text", "", 0, 0, "SPUBLISH", 1000, 1)
    message = subscriber.parse_response()
    assert message[:2] == [b"smessage", b"ch"]
    assert message[2].startswith(b"h ")
    assert steps.published() == []
    subscriber.close()


# ---- fences


def test_a_living_leader_keeps_values_and_its_token_is_stored(steps: Steps, keys: Keys) -> None:
    until = steps.now_ms() + 60_000
    for token in (5, 5, 6, 10**15, 10**15):
        steps.published()
        assert kept(steps, keys, keep(steps, fence=Fence("prices", token, until)))
        assert steps.hash(keys.snapshot(TOPIC))["fence:prices"] == str(token)


def test_a_leader_with_an_older_token_is_refused(steps: Steps) -> None:
    until = steps.now_ms() + 60_000
    keep(steps, fence=Fence("prices", 1_700_000_000_000_001, until))
    with steps.nothing_done():
        assert keep(steps, b"late", Fence("prices", 1_700_000_000_000_000, until)) == [b"1700000000000001"]
    assert isinstance(keep(steps, fence=Fence("another", 1, until)), int), "each singleton has its own tokens"


def test_a_leader_whose_lease_has_ended_is_refused(steps: Steps, keys: Keys) -> None:
    with steps.nothing_done():
        assert keep(steps, fence=Fence("prices", 5, steps.now_ms())) == [b"0"]
    steps.redis.hset(keys.snapshot(TOPIC), mapping={"fence:prices": 4, "v": 1, "m": "x"})
    with steps.nothing_done():
        assert keep(steps, fence=Fence("prices", 5, steps.now_ms() - 1)) == [b"4"]


def test_a_refused_leader_leaves_a_key_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.snapshot(TOPIC), "x")
    with steps.nothing_done():
        assert keep(steps, fence=Fence("prices", 5, steps.now_ms())) == [b"0"]


@pytest.mark.parametrize("newest", ["no number", "", "inf", "nan", str(2**53)])
def test_a_newest_token_that_is_none_refuses_nothing(steps: Steps, keys: Keys, newest: str) -> None:
    steps.redis.hset(keys.snapshot(TOPIC), "fence:prices", newest)
    assert kept(steps, keys, keep(steps, fence=Fence("prices", 5, steps.now_ms() + 60_000)))
    assert steps.hash(keys.snapshot(TOPIC))["fence:prices"] == "5"


@pytest.mark.parametrize("before", [0, 1])
def test_without_memory_nothing_is_kept(steps: Steps, before: int) -> None:
    for _ in range(before):
        keep(steps)
    steps.redis.config_set("maxmemory", 1)
    try:
        for fence in (None, Fence("prices", 5, steps.now_ms() + 60_000)):
            with steps.nothing_done(), pytest.raises(OutOfMemoryError):
                keep(steps, fence=fence)
    finally:
        steps.redis.config_set("maxmemory", 0)


# ---- last


def test_last_reads_version_and_text(steps: Steps, keys: Keys) -> None:
    row = [keys.snapshot(TOPIC)]
    assert steps.call("read_snapshot", row, 100) == [None, None]
    steps.redis.hset(row[0], mapping={"v": 7, "m": "0123456789", "fence:prices": 1})
    with steps.nothing_done():
        assert steps.call("read_snapshot", row, 100) == [b"7", b"0123456789"]
        assert steps.call("read_snapshot", row, 10) == [b"7", b"0123456789"]
        assert steps.call("read_snapshot", row, 9) == []


def test_last_refuses_a_key_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.snapshot(TOPIC), "x")
    with steps.nothing_done(), pytest.raises(ResponseError, match="WRONGTYPE"):
        steps.call("read_snapshot", [keys.snapshot(TOPIC)], 100)
