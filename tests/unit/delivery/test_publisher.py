"""gateway.delivery.publisher: the writes and messages of a publish on a Redis in memory, and its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.broker.client import Unavailable
from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.fence import Fence, Fenced
from gateway.broker.keys import IDEMPOTENCY_MS, Keys
from gateway.core import topic_rules
from gateway.core.publication import Publication, PublicationTooLarge
from gateway.delivery.publisher import (
    MARGIN_BYTES,
    MESSAGE_BYTES,
    RULES_LIFE_SECONDS,
    RULES_SECONDS,
    MessagePublisher,
)
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time

KEYS = Keys("", False)
RULES = """
[[topic]]
pattern = "kept"
history = 5
history_bytes = 2000

[[topic]]
pattern = "last"
snapshot = true
conflate_ms = 50

[[topic]]
pattern = "both"
history = 5
snapshot = true
"""


class At:
    """A publisher of a node with rules, and what came of it."""

    def __init__(self, rules: str | None = RULES) -> None:
        self.redis = MemoryRedis()
        parsed = topic_rules.parse(rules, "rules") if rules is not None else None
        self.publisher = MessagePublisher(
            self.redis.client, KEYS, parsed, self.redis.metrics, max_message_bytes=3000, now=lambda: 1_700_000_000.0
        )

    async def publish(self, *publications: Publication, **how: Any) -> list[Any]:
        return await self.publisher.publish(publications, **how)

    def sent(self) -> list[tuple[str, Envelope]]:
        found, self.redis.published = self.redis.published, []
        return [(channel, Envelope.unpack(payload)) for channel, payload in found]

    def count(self, result: str) -> float:
        return float(self.redis.metrics.publishes.labels(result).value)


@in_virtual_time
async def test_each_topic_gets_one_message_of_its_kind_in_order_and_in_one_round_trip() -> None:
    at = At()
    positions = await at.publish(*(Publication(topic, 1) for topic in ("plain", "last", "kept", "both", "kept")))
    assert len(at.redis.trips) == 1
    sent = at.sent()
    assert [(channel.rpartition(":")[2], one.kind, one.conflate_ms) for channel, one in sent] == [
        ("plain", EnvelopeKind.PLAIN, 0),
        ("last", EnvelopeKind.SNAPSHOT, 50),
        ("kept", EnvelopeKind.HISTORY, 0),
        ("both", EnvelopeKind.HISTORY, 0),
        ("kept", EnvelopeKind.HISTORY, 0),
    ]
    assert [position and position.offset for position in positions] == [None, None, 1, 1, 2]
    assert all(one.published_ms == 1_700_000_000_000 for _, one in sent)
    assert at.redis.run("XLEN", KEYS.history("kept")) == 2
    assert at.redis.run("EXISTS", KEYS.snapshot("last"), KEYS.history("plain"), KEYS.snapshot("plain")) == 1
    assert (at.count("ok"), at.count("unavailable")) == (5, 0)


@in_virtual_time
@pytest.mark.parametrize(("to", "ends"), [
    (("user", "ann"), "user:ann"), (("role", "admin"), "role:admin"), (("client", "n.b.1"), "n.b"),
])  # fmt: skip
async def test_a_message_to_somebody_is_published_once_and_kept_nowhere(to: Any, ends: str) -> None:
    at = At()
    assert await at.publish(Publication("kept", 1, to=to)) == [None]
    [(channel, envelope)] = at.sent()
    assert channel.endswith(ends)
    assert envelope.only == (to[1] if to[0] == "client" else None)
    assert at.redis.run("DBSIZE") in (0, b"0") or at.redis.run("EXISTS", KEYS.history("kept")) == 0


@in_virtual_time
async def test_one_message_that_is_refused_leaves_all_unpublished() -> None:
    at = At()
    good = Publication("kept", 1)
    with pytest.raises(PublicationTooLarge, match="3000"):
        await at.publish(good, Publication("plain", "x" * 3000))
    with pytest.raises(PublicationTooLarge, match="history_bytes"):
        await at.publish(good, Publication("kept", "x" * (2000 - MARGIN_BYTES)))
    assert (at.redis.trips, at.sent()) == ([], [])
    await at.publish(Publication("kept", "x" * (2000 - MARGIN_BYTES - 200)))
    await at.publish(Publication("plain", "x" * (2000 - MARGIN_BYTES)))


@in_virtual_time
async def test_the_same_key_is_published_once() -> None:
    at = At()
    first = await at.publish(Publication("kept", 1, key="k"))
    assert await at.publish(Publication("kept", 1, key="k")) == first
    assert len(at.sent()) == 1
    assert await at.publish(Publication("kept", 1, key="l")) != first


@pytest.mark.parametrize("topic", ["plain", "last"])
@in_virtual_time
async def test_a_key_is_found_for_five_minutes_on_a_topic_without_history(topic: str) -> None:
    at = At()
    for key in ("k", "k", "l", "k"):
        assert await at.publish(Publication(topic, key, key=key), Publication("kept", 1)) != [None, None]
    assert [envelope.body.split()[-1] for _, envelope in at.sent() if b"kept" not in envelope.body] == [b'"k"', b'"l"']
    assert at.redis.run("PTTL", KEYS.publish_answer(topic, "k")) == IDEMPOTENCY_MS
    at.redis.now_ms += IDEMPOTENCY_MS
    await at.publish(Publication(topic, "again", key="k"))
    assert len(at.sent()) == 1
    await at.publish(Publication("kept", 1, key="k"), Publication(topic, "another topic's key", key="m"))
    assert len(at.sent()) == 2


@in_virtual_time
async def test_redis_away_is_counted_for_each_message() -> None:
    at = At()
    at.redis.away = True
    with pytest.raises(Unavailable):
        await at.publish(Publication("plain", 1), Publication("kept", 1))
    assert (at.count("ok"), at.count("unavailable")) == (0, 2)


@in_virtual_time
@pytest.mark.parametrize("topic", ["kept", "last"])
async def test_a_former_leader_publishes_nothing(topic: str) -> None:
    at = At()
    new, old = (Fence("s", token, at.redis.now_ms + 60_000) for token in (8, 7))
    await at.publish(Publication(topic, 1), fence=new)
    assert len(at.sent()) == 1
    with pytest.raises(Fenced):
        await at.publish(Publication(topic, 2), fence=old)
    assert at.sent() == []
    with pytest.raises(ValueError, match="neither history nor a snapshot"):
        await at.publish(Publication("plain", 1), fence=new)


@in_virtual_time
async def test_a_program_without_rules_reads_those_of_the_nodes_and_again_after_half_a_minute() -> None:
    at, node = At(None), At()
    node.redis = at.redis
    node.publisher._redis = at.redis.client
    with pytest.raises(Unavailable, match="start a node"):
        await at.publish(Publication("kept", 1))
    await node.publisher.write_rules()
    assert at.redis.ttl_ms(KEYS.rules) == 1000 * RULES_LIFE_SECONDS
    assert (await at.publish(Publication("kept", 1)))[0] is not None
    trips = len(at.redis.trips)
    await at.publish(Publication("kept", 1))
    assert len(at.redis.trips) == trips + 1
    at.redis.run("SET", KEYS.rules, "not [ toml")
    await asyncio.sleep(RULES_SECONDS)
    assert (await at.publish(Publication("kept", 1)))[0] is not None, "rules that are known stay"
    at.redis.run("SET", KEYS.rules, '[[topic]]\npattern = "other"\nhistory = 5\n')
    await at.publish(Publication("kept", 1))
    await asyncio.sleep(RULES_SECONDS)
    assert await at.publish(Publication("kept", 1)) == [None]


@in_virtual_time
async def test_only_publications_that_redis_recognizes_on_all_their_topics_get_a_key() -> None:
    at = At()
    own = Publication("kept", 1, key="mine")
    others = [Publication("kept", 1), Publication("both", 1), Publication("last", 1), Publication("plain", 1)]
    keyed = await at.publisher.with_keys([own, *others, Publication("kept", 1, to=("user", "ann"))])
    assert [one.key is not None for one in keyed] == [True, True, True, False, False, False]
    assert keyed[0].key == "mine" and keyed[1].key != keyed[2].key
    assert [at.publisher.is_repeatable(one) for one in keyed] == [True, True, True, False, False, False]
    assert at.publisher.is_repeatable(Publication("plain", 1, key="mine"))
    assert not at.publisher.is_repeatable(Publication("kept", 1))
    assert await at.publish(keyed[1]) == await at.publish(keyed[1])
    assert len(at.sent()) == 1


def test_what_a_publish_keeps_is_counted_by_copies() -> None:
    at = At()

    def size(topic: str, **how: Any) -> tuple[int, list[str]]:
        return at.publisher.storage_cost(Publication(topic, "x" * 100, **how))

    assert size("plain") == size("kept", to=("user", "ann")) == (0, [])
    one, two, three = size("last"), size("kept"), size("both")
    assert (one[1], two[1], three[1]) == ([], [KEYS.history("kept")], [KEYS.history("both")])
    assert 100 < one[0] - MESSAGE_BYTES == two[0] - MESSAGE_BYTES < 300
    assert three[0] - MESSAGE_BYTES == 2 * (one[0] - MESSAGE_BYTES)
