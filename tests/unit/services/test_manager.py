"""gateway.services.manager: order, leases, silence and stale answers of a manager, on a Redis in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
import pytest

from gateway.broker.keys import Keys
from gateway.core.service_records import MAX_SERVICES, RecordError
from gateway.services.manager import Service, ServiceError, ServiceManager
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time, later, quiet

KEYS = Keys("", False)
LEASE = 9.0


class Redis(MemoryRedis):
    """Its clock is the loop's."""

    async def execute_each(self, commands: Any) -> list[Any]:
        self.now_ms = 1_700_000_000_000 + round(1000 * asyncio.get_running_loop().time())
        return await super().execute_each(commands)


class At:
    """A manager; its bus hears everything."""

    def __init__(self) -> None:
        self.redis = Redis()
        self.redis.timeout_seconds = 2.0  # type: ignore[attr-defined]
        self.hearing: int | None = 1
        self.events: list[str] = []
        self.manager = ServiceManager(
            self.redis.client, KEYS, cast(Any, self), cast(Any, None), "host.1", lease_seconds=LEASE
        )

    def subscribe(self, channels: list[str], callback: Any, _confirmed: Any) -> bool:
        assert channels == [KEYS.service_updates]
        self.notice = callback
        return True

    def confirmed_since(self, _channel: str) -> int | None:
        return self.hearing

    def act(self, event: str) -> Any:
        async def act(_run: Any) -> None:
            self.events.append(event)

        return act

    def service(self, name: str, *needs: str, **about: Any) -> Service:
        return Service(
            name=name, start=self.act(f"{name} starts"), stop=self.act(f"{name} stops"), depends_on=needs, **about
        )

    def sent(self) -> list[tuple[str, str]]:
        found, self.redis.published = self.redis.published, []
        notices = [orjson.loads(payload) for _, payload in found]
        return [(notice["serviceName"], notice["state"]["status"]) for notice in notices]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.manager.run())
        try:
            await self.manager.start()
            await later(1)
            yield
        finally:
            await self.manager.stop()
            task.cancel()


@in_virtual_time
async def test_services_start_after_what_they_need_and_stop_before_it() -> None:
    at = At()
    at.manager.register_all([at.service("web", "db", "cache"), at.service("cache", "db"), at.service("db")])
    async with at.running():
        assert at.events == ["db starts", "cache starts", "web starts"]
        assert [supervisor.service.name for supervisor in at.manager.supervisors()] == ["web", "cache", "db"]
        at.events.clear()
        await at.manager.start()
        await later(1)
        assert at.events == [], "a second start does nothing"
    assert at.events == ["web stops", "cache stops", "db stops"]
    assert [state["status"] for state in await at.manager.states.read_all()] == ["stopped"] * 3


@in_virtual_time
async def test_a_service_registered_while_the_others_run_starts_too_and_a_disabled_one_does_not() -> None:
    at = At()
    at.manager.register_all([at.service("db"), at.service("off", enabled=False)])
    async with at.running():
        at.manager.register_all([at.service("late", "db")])
        await later(1)
        assert at.events == ["db starts", "late starts"]
        found = await at.manager.get_service_state("off")
        assert found is not None and (found["status"], found["stale"]) == ("disabled", False)


@pytest.mark.parametrize("services", [
    [("a", "b"), ("b", "a")], [("a", "none")], [("a",), ("a",)], [("no name",)], [("a", "a")],
])  # fmt: skip
def test_invalid_services_are_refused_and_none_is_added(services: list[tuple[str, ...]]) -> None:
    at = At()
    at.manager.register_all([at.service("first")])
    with pytest.raises(ServiceError):
        at.manager.register_all([at.service("good"), *(at.service(*service) for service in services)])
    assert [supervisor.service.name for supervisor in at.manager.supervisors()] == ["first"]
    at.manager.register_all([at.service("good", "first")])


def test_a_program_registers_so_many_services() -> None:
    at = At()
    at.manager.register_all([at.service(f"s{number}") for number in range(MAX_SERVICES)])
    with pytest.raises(ServiceError, match=str(MAX_SERVICES)):
        at.manager.register_all([at.service("more")])


@in_virtual_time
async def test_renewed_leases_are_not_published_and_changes_are_published_once() -> None:
    at = At()
    at.manager.register_all([at.service("a"), at.service("b")])
    async with at.running():
        sent = at.sent()
        assert [sent.count((name, "active")) for name in "ab"] == [1, 1]
        trips = len(at.redis.trips)
        for _ in range(20):
            await later(LEASE / 2)
            assert [state["status"] for state in await at.manager.states.read_all()] == ["active", "active"]
        assert at.sent() == []
        assert len(at.redis.trips) - trips < 20 * 2 + 45, "three renewals a lease, each of one round trip"


@in_virtual_time
async def test_what_redis_lost_is_written_again_and_the_index_within_a_minute() -> None:
    at = At()
    at.manager.register_all([at.service("a")])
    async with at.running():
        at.redis.run("UNLINK", KEYS.services)
        await later(70)
        assert [state["status"] for state in await at.manager.states.read_all()] == ["active"]
        at.redis.run("FLUSHALL")
        at.sent()
        at.manager.pubsub_restored()
        await later(0.1)
        assert [state["status"] for state in await at.manager.states.read_all()] == ["active"]
        assert at.sent() == [("a", "active")]


@in_virtual_time
async def test_without_redis_the_last_known_state_is_given_with_its_age_and_written_later() -> None:
    at = At()
    at.manager.register_all([at.service("a")])
    async with at.running():
        assert await at.manager.get_service_state("none") is None
        assert await at.manager.get_service_state("a") is not None
        at.redis.away = True
        await later(5)
        assert not await at.manager.update_service_state("a", status="degraded", error="slow")
        found = await at.manager.get_service_state("a")
        assert found is not None and (found["status"], found["stale"]) == ("degraded", True)
        assert found["ageSeconds"] == pytest.approx(5, abs=0.1)
        assert await at.manager.get_service_state("none") is None
        at.sent()
        at.redis.away = False
        await later(5)
        assert at.sent() == [("a", "degraded")]
        found = await at.manager.get_service_state("a")
        assert found is not None and (found["status"], found["stale"]) == ("degraded", False)


@in_virtual_time
async def test_the_state_of_an_unregistered_service_is_published_and_kept_by_its_lease() -> None:
    at = At()
    async with at.running():
        assert await at.manager.update_service_state("job", status="active", operation="import", stats={"rows": 7})
        assert at.sent() == [("job", "active")]
        await later(3 * LEASE)
        found = await at.manager.get_service_state("job")
        assert found is not None
        assert (found["status"], found["instances"][0]["stats"]) == ("active", {"rows": 7})
        assert (found["running"], found["instances"][0]["lastOperation"]) == (1, "import")
        assert await at.manager.update_service_state("job", status="error", error="no file")
        found = await at.manager.get_service_state("job")
        assert found is not None
        assert (found["running"], found["lastError"] is not None) == (0, True)
        with pytest.raises(RecordError):
            await at.manager.update_service_state("job", status="fine")
        with pytest.raises(ServiceError):
            await at.manager.update_service_state("no name", status="active")


@in_virtual_time
async def test_a_service_over_the_clusters_limit_gets_an_error() -> None:
    at = At()
    for number in range(MAX_SERVICES):
        at.redis.run("ZADD", KEYS.services, 2_000_000_000_000 + number, f"s{number}")
    async with at.running():
        with pytest.raises(ServiceError, match=str(MAX_SERVICES)):
            await at.manager.update_service_state("more", status="active")


@in_virtual_time
async def test_watchers_get_each_change_and_one_that_fails_affects_no_other() -> None:
    at = At()
    found: list[Any] = []

    def broken(_service: str, _state: Any) -> None:
        raise LookupError

    at.manager.watch(broken)
    remove = at.manager.watch(lambda service, state: found.append((service, state["status"], state["instance"])))
    notice = orjson.dumps({"serviceName": "a", "instance": "i", "state": {"status": "active"}})
    before = at.manager.change_marker()
    at.notice("", notice)
    for other in (b"", b"[]", b'{"state":null}', b'{"state":{}}', b'{"serviceName":"no name","state":{}}'):
        at.notice("", other)
    assert found == [("a", "active", "i")]
    assert at.manager.change_marker() not in (None, before)
    remove()
    at.notice("", notice)
    assert len(found) == 1
    at.hearing = None
    assert at.manager.change_marker() is None
    await quiet()
