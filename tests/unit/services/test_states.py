"""gateway.services.states: many reports in a round trip, silence, leases, and rows of other programs."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import orjson
import pytest

from gateway.broker.keys import Keys
from gateway.core.service_records import MAX_INSTANCES, MAX_SERVICES
from gateway.services.states import (
    KEEP_MS,
    MAX_LEASE_MS,
    STEP_SERVICES,
    OutdatedReport,
    ServiceReport,
    ServiceStates,
    TooManyServices,
)
from tests.unit.memory_redis import MemoryRedis

KEYS = Keys("", False)
LEASE_MS = 10_000


class At:
    """States on an empty Redis."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        self.states = ServiceStates(self.redis.client, KEYS)

    def write(self, *reports: ServiceReport, **how: Any) -> list[Any]:
        return asyncio.run(self.states.write(reports, **how))

    def read(self, service: str = "s") -> Any:
        return asyncio.run(self.states.read_service(service))


def report(service: str = "s", instance: str = "i", **about: Any) -> ServiceReport:
    about.setdefault("record", {"status": "active"})
    about.setdefault("lease_ms", LEASE_MS)
    return ServiceReport(service, instance, **about)


def test_twelve_reports_are_written_in_order_in_one_round_trip() -> None:
    at = At()
    reports = [report(f"s{number}", record={"status": "active", "lastError": str(number)}) for number in range(12)]
    versions = at.write(*reports)
    assert versions == [at.redis.now_ms * 1000] * 12
    assert at.redis.trips == [["EVALSHA"] * (1 + math.ceil(12 / STEP_SERVICES))]
    found = asyncio.run(at.states.read_all())
    assert [service["service"] for service in found] == sorted(f"s{number}" for number in range(12))
    assert [service["lastError"] for service in found] == [service["service"][1:] for service in found]


def test_a_report_is_published_once_with_its_record_and_a_renewal_is_not() -> None:
    at = At()
    at.write(report("s", "i"), report("t", "i", tell=False))
    [(channel, payload)] = at.redis.published
    assert channel == KEYS.service_updates
    notice = orjson.loads(payload)
    assert (notice["serviceName"], notice["instance"], notice["state"]["status"]) == ("s", "i", "active")
    assert notice["state"]["leaseEnds"] == at.redis.now_ms + LEASE_MS
    at.redis.published.clear()
    at.write(report("s", "i", tell=False))
    assert at.redis.published == []


def test_an_older_version_changes_nothing_and_returns_the_current_one() -> None:
    at = At()
    [version] = at.write(report(version=7))
    assert version == 7
    at.redis.published.clear()
    before = at.redis.run("HGETALL", KEYS.service("s"))
    [refused, other] = at.write(report(version=6), report("t", version=1))
    assert isinstance(refused, OutdatedReport) and "version 7" in str(refused)
    assert other == 1, "the others of the round trip are written"
    assert at.redis.run("HGETALL", KEYS.service("s")) == before
    assert [orjson.loads(payload)["serviceName"] for _, payload in at.redis.published] == ["t"]
    assert at.write(report(version=7)) == [7]


def test_the_cluster_lists_so_many_services_and_a_service_so_many_instances() -> None:
    at = At()
    for number in range(MAX_SERVICES):
        at.write(report(f"s{number}"))
    [refused] = at.write(report("more"))
    assert isinstance(refused, TooManyServices) and str(MAX_SERVICES) in str(refused)
    at = At()
    for number in range(MAX_INSTANCES):
        at.write(report(instance=f"i{number}"))
    [refused] = at.write(report(instance="more"))
    assert isinstance(refused, TooManyServices) and str(MAX_INSTANCES) in str(refused)
    assert len(at.read()["instances"]) == MAX_INSTANCES


def test_without_enlisting_the_index_is_not_written() -> None:
    at = At()
    assert at.write(report(), enlist=False) == [at.redis.now_ms * 1000]
    assert at.redis.run("EXISTS", KEYS.services) == 0
    assert asyncio.run(at.states.read_all()) == []
    at.write(report())
    assert [service["service"] for service in asyncio.run(at.states.read_all())] == ["s"]


def test_a_service_is_offline_when_its_lease_has_ended_and_gone_an_hour_later() -> None:
    at = At()
    at.write(report())
    at.redis.now_ms += LEASE_MS - 1
    assert at.read()["status"] == "active"
    at.redis.now_ms += 1
    assert at.read()["status"] == "offline"
    at.redis.now_ms += KEEP_MS - 1
    assert at.read()["status"] == "offline"
    at.redis.now_ms += 1
    assert at.read() is None
    assert asyncio.run(at.states.survey()) == ([], math.inf)


def test_each_key_ends_after_the_longest_lease_in_it() -> None:
    at = At()
    at.write(report(lease_ms=MAX_LEASE_MS), report(instance="j"))
    assert MAX_LEASE_MS + KEEP_MS <= at.redis.ttl_ms(KEYS.service("s")) <= MAX_LEASE_MS + 2 * KEEP_MS
    assert MAX_LEASE_MS + KEEP_MS <= at.redis.ttl_ms(KEYS.services) <= MAX_LEASE_MS + 2 * KEEP_MS


def test_a_survey_returns_the_end_of_the_next_lease() -> None:
    at = At()
    at.write(report("a", lease_ms=30_000), report("b", lease_ms=20_000), report("c", lease_ms=5_000))
    assert asyncio.run(at.states.survey())[1] == 5
    at.redis.now_ms += 6_000
    found, following = asyncio.run(at.states.survey())
    assert ([service["status"] for service in found], following) == (["active", "active", "offline"], 14)


def test_a_forgotten_service_is_removed_and_published_once() -> None:
    at = At()
    at.write(report("s"), report("t"))
    at.redis.published.clear()
    assert asyncio.run(at.states.forget_service("s"))
    assert (at.read("s"), at.read("t")["status"]) == (None, "active")
    assert at.redis.published == [
        (KEYS.service_updates, orjson.dumps({"serviceName": "s", "instance": None, "state": None})),
    ]  # fmt: skip
    assert not asyncio.run(at.states.forget_service("s")), "no subscriber, and no such service"


@pytest.mark.parametrize("name", [b"no name", b"\xff", b"n" * 5000])
def test_a_name_that_is_none_is_skipped_and_counted(name: bytes) -> None:
    at = At()
    at.write(report())
    at.redis.run("ZADD", KEYS.services, at.redis.now_ms, name)
    assert [service["service"] for service in asyncio.run(at.states.read_all())] == ["s"]
    assert at.redis.metrics.malformed.labels("service").value == 1


def test_an_index_of_another_type_is_an_empty_one() -> None:
    at = At()
    at.redis.run("SET", KEYS.services, "x")
    assert asyncio.run(at.states.read_all()) == []
    assert at.redis.metrics.malformed.labels("service").value == 1


def test_a_record_that_is_not_understood_is_shown_beside_the_others() -> None:
    at = At()
    at.write(report())
    at.redis.run("HSET", KEYS.service("s"), "strange", "not json")
    assert {row["instance"] for row in at.read()["instances"]} == {"i", "strange"}
    assert asyncio.run(at.states.survey())[1] == LEASE_MS / 1000
