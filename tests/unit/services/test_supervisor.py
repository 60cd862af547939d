"""One service kept running, in virtual time: start conditions, retries, pauses and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.broker.client import Unavailable
from gateway.broker.fence import Fence, Fenced
from gateway.core.circuit_breaker import OPEN_SECONDS
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.service_records import ServiceStatus
from gateway.services.supervisor import START_SECONDS, STOP_SECONDS, Run, Service, ServiceFunction, Supervisor
from tests.unit.virtual_time import in_virtual_time, later, quiet


class Supervised:
    """A supervisor of one service; records what it reports."""

    def __init__(self, **about: Any) -> None:
        self.changes: list[bool] = []
        self.published: list[tuple[str, Fence | None]] = []
        about.setdefault("name", "s")
        self.supervisor = Supervisor(Service(**about), "host", lambda _name, tell: self.changes.append(tell))

    @property
    def status(self) -> ServiceStatus:
        """As its record says."""
        return ServiceStatus(self.supervisor.record["status"])

    async def publish(self, publication: Publication, fence: Fence | None) -> Position | None:
        """Publishing, for its runs."""
        self.published.append((publication.topic, fence))
        return None

    @asynccontextmanager
    async def kept(self, needs: Sequence[Supervisor] = ()) -> AsyncIterator[None]:
        """Kept running meanwhile; stopped at the end."""
        task = asyncio.get_running_loop().create_task(self.supervisor.run(needs, self.publish, None))
        try:
            await quiet()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert not self.supervisor.record["running"]


def failing(error: Exception, times: int = 1_000_000) -> tuple[ServiceFunction, list[float]]:
    """A function that fails so often, and when it was called."""
    calls: list[float] = []

    async def act(_run: Run) -> None:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) <= times:
            raise error

    return act, calls


@in_virtual_time
async def test_a_service_without_functions_is_active_until_it_is_stopped() -> None:
    supervised = Supervised()
    async with supervised.kept():
        assert (supervised.status, supervised.supervisor.record["running"]) == (ServiceStatus.ACTIVE, True)
        assert supervised.supervisor.record["startedAt"]


@in_virtual_time
async def test_a_service_waits_for_its_dependencies_and_reports_it() -> None:
    need, supervised = Supervised(name="db"), Supervised(depends_on=("db",))
    async with supervised.kept([need.supervisor]):
        await later(3600)
        assert (supervised.status, supervised.supervisor.record["waitsFor"]) == (ServiceStatus.STARTING, "db")
        async with need.kept():
            await quiet()
            assert (supervised.status, supervised.supervisor.record["waitsFor"]) == (ServiceStatus.ACTIVE, None)


@in_virtual_time
async def test_a_start_that_fails_is_tried_again_with_a_growing_pause() -> None:
    start, calls = failing(OSError("no route\nto host"), times=3)
    supervised = Supervised(start=start)
    async with supervised.kept():
        assert (supervised.status, supervised.supervisor.record["lastError"]) == (
            ServiceStatus.ERROR,
            "start: no route",
        )
        assert not supervised.supervisor.up.is_set()
        await later(10)
        assert [round(at) for at in calls] == [0, 1, 3, 7]
        assert supervised.status is ServiceStatus.ACTIVE
        assert supervised.supervisor.up.is_set()


@in_virtual_time
async def test_the_breaker_leaves_it_alone_and_tries_once() -> None:
    start, calls = failing(OSError("no"))
    supervised = Supervised(start=start)
    async with supervised.kept():
        await later(30)
        assert len(calls) == 5
        assert supervised.supervisor.breaker.state == "open"
        assert supervised.supervisor.current_record()["stats"]["breaker"] == "open"
        await later(OPEN_SECONDS)
        assert len(calls) == 6


@in_virtual_time
async def test_a_start_has_a_deadline() -> None:
    async def forever(_run: Run) -> None:
        await asyncio.get_running_loop().create_future()

    supervised = Supervised(start=forever)
    async with supervised.kept():
        await later(START_SECONDS)
        assert supervised.supervisor.record["lastError"] == "start: timed out"


@in_virtual_time
async def test_ticks_come_at_their_time_and_missed_ones_are_not_made_up_for() -> None:
    calls = []

    async def tick(_run: Run) -> None:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 2:
            await asyncio.sleep(3.5)

    supervised = Supervised(tick=tick, tick_seconds=1)
    async with supervised.kept():
        await later(6)
    assert [round(at, 1) for at in calls] == [0.0, 1.0, 4.5, 5.5]


@in_virtual_time
async def test_a_tick_that_fails_degrades_it_until_one_succeeds() -> None:
    tick, _ = failing(ValueError("odd"), times=1)
    supervised = Supervised(tick=tick, tick_seconds=1)
    async with supervised.kept():
        assert (supervised.status, supervised.supervisor.record["lastError"]) == (ServiceStatus.DEGRADED, "tick: odd")
        await later(1)
        assert supervised.status is ServiceStatus.ACTIVE
        assert supervised.supervisor.record["lastError"] == "tick: odd", "the last error is kept"
        stats = supervised.supervisor.current_record()["stats"]
        assert (stats["operations"], stats["failures"]) == (3, 1)


@in_virtual_time
async def test_ticks_that_go_on_failing_stop_for_the_breaker() -> None:
    tick, calls = failing(ValueError("odd"))
    supervised = Supervised(tick=tick, tick_seconds=1)
    async with supervised.kept():
        await later(30)
        assert (supervised.status, len(calls)) == (ServiceStatus.ERROR, 5)
        await later(OPEN_SECONDS)
        assert len(calls) == 6


@in_virtual_time
async def test_that_redis_is_away_opens_no_breaker() -> None:
    tick, calls = failing(Unavailable("gone"), times=20)
    supervised = Supervised(tick=tick, tick_seconds=1)
    async with supervised.kept():
        await later(19.5)
        assert (supervised.status, supervised.supervisor.breaker.state) == (ServiceStatus.DEGRADED, "closed")
        await later(1)
        assert (supervised.status, len(calls)) == (ServiceStatus.ACTIVE, 21)


@in_virtual_time
async def test_a_check_that_gives_false_is_a_failure() -> None:
    async def check(_run: Run) -> bool:
        return False

    supervised = Supervised(check=check, check_seconds=30)
    async with supervised.kept():
        assert (supervised.status, supervised.supervisor.record["lastError"]) == (
            ServiceStatus.DEGRADED,
            "check: the check returned False",
        )
        assert supervised.supervisor.record["lastCheck"]


@in_virtual_time
async def test_it_is_stopped_within_its_time() -> None:
    async def stop(_run: Run) -> None:
        await asyncio.get_running_loop().create_future()

    supervised = Supervised(stop=stop)
    async with supervised.kept():
        began = asyncio.get_running_loop().time()
    assert round(asyncio.get_running_loop().time() - began) == STOP_SECONDS
    assert supervised.supervisor.record["lastError"] == "stop: timed out"


@in_virtual_time
async def test_what_was_not_started_is_not_stopped() -> None:
    start, _ = failing(OSError("no"))
    stopped = []

    async def stop(run: Run) -> None:
        stopped.append(run.name)

    async with Supervised(start=start, stop=stop).kept():
        pass
    assert not stopped


@in_virtual_time
async def test_a_fenced_service_stops_without_a_fault() -> None:
    tick, _ = failing(Fenced("late"))
    supervised = Supervised(tick=tick, tick_seconds=1)
    await supervised.supervisor.run([], supervised.publish, None)
    assert supervised.supervisor.current_record()["stats"]["failures"] == 0


@in_virtual_time
async def test_ticks_are_not_urgent_changes() -> None:
    async def tick(_run: Run) -> None:
        pass

    supervised = Supervised(tick=tick, tick_seconds=1)
    async with supervised.kept():
        await later(0.5)
        supervised.changes.clear()
        await later(5)
        assert supervised.changes == [False] * 5


@in_virtual_time
async def test_a_run_publishes_what_the_api_would() -> None:
    async def start(run: Run) -> None:
        await run.publish("contest", {"a": 1}, action="NEW")
        assert run.token == 0

    supervised = Supervised(start=start)
    async with supervised.kept():
        assert supervised.published == [("contest", None)]
        assert supervised.status is ServiceStatus.ACTIVE
