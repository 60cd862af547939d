"""tell and recall of several services in one step."""

from __future__ import annotations

import orjson

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

LEASE_MS, KEEP_MS = 10_000, 3_600_000


def test_tell_judges_each_service_by_itself(steps: Steps, keys: Keys) -> None:
    names = ["new", "newer there", "full", "of another type", "with a notice"]
    services = [keys.service(name) for name in names]
    steps.redis.hset(services[1], "i", '{"version":9}')
    steps.redis.hset(services[2], "another", '{"leaseEnds":9e15}')
    steps.redis.set(services[3], "x")
    arguments = [
        part
        for at in range(len(names))
        for part in ("i", 5 + at, f'{{"at":{at}}}', LEASE_MS, KEEP_MS, 1, "updates" if at == 4 else "", '{"state":')
    ]
    answer = steps.call("write_service", services, *arguments)
    assert answer == [1, b"5", 0, b"9", -1, b"1", 1, b"8", 1, b"9"]
    for at in (0, 3, 4):
        record = orjson.loads(steps.redis.hget(services[at], "i"))
        assert (record["at"], record["version"]) == (at, 5 + at)
        assert steps.expires(services[at], LEASE_MS + KEEP_MS * 3 // 2)
    assert steps.hash(services[1]) == {"i": '{"version":9}'}
    assert not steps.redis.hexists(services[2], "i")
    [(channel, notice)] = steps.published()
    assert channel == "updates" and orjson.loads(notice)["state"]["at"] == 4


def test_recall_reads_each_service_by_itself(steps: Steps, keys: Keys) -> None:
    services = [keys.service(name) for name in ("a", "none", "of another type", "b")]
    steps.redis.hset(services[0], "i", "{}")
    steps.redis.set(services[2], "x")
    steps.redis.hset(services[3], mapping={"i": "1234567", "j": "{}"})
    with steps.nothing_done():
        now, *rows = steps.call("read_services", services, 100, 5)
    assert steps.is_due(now, 0)
    assert rows[:3] == [[b"i", b"{}"], [], []]
    assert dict(zip(rows[3][::2], rows[3][1::2], strict=True)) == {b"i": b"123456", b"j": b"{}"}
