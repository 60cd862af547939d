"""Service status for administrators: published whole after a change, and only then."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from gateway.broker.client import Unavailable
from gateway.broker.snapshots import Snapshots
from gateway.core import service_records
from gateway.services import status_publisher
from gateway.services.states import ServiceStates
from gateway.services.status_publisher import StatusPublisher
from gateway.services.supervisor import Run
from tests.unit.raw import body

NOW = 1000


class FakeStates:
    """States as the test has them."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, service_records.ServiceRecord]] = {}
        self.reads = 0
        self.following = math.inf  # seconds until the next lease ends
        self.received: tuple[int, int] | None = None

    async def survey(self) -> tuple[list[dict[str, Any]], float]:
        """All services, and when the next lease ends."""
        self.reads += 1
        return [service_records.aggregate(name, rows, NOW) for name, rows in sorted(self.rows.items())], self.following


class FakeRun:
    """A run that remembers what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []
        self.failing = False

    async def publish(self, topic: str, data: Any) -> None:
        """One message."""
        if self.failing:
            raise Unavailable("Redis is away")
        self.published.append((topic, data))

    def take(self) -> dict[str, Any]:
        """What was published since it was last asked."""
        taken, self.published = dict(self.published), []
        return taken


@pytest.fixture
def states() -> FakeStates:
    return FakeStates()


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
async def tick(states: FakeStates, run: FakeRun) -> Any:
    one = StatusPublisher(cast(ServiceStates, states), lambda: states.received)
    await one.start(cast(Run, run))

    async def look() -> dict[str, Any]:
        await one.tick(cast(Run, run))
        return run.take()

    look.announcer = one  # type: ignore[attr-defined]
    return look


def record(status: str, breaker: str = "closed", **more: Any) -> service_records.ServiceRecord:
    return {"status": status, "leaseEnds": NOW + 1, "stats": {"breaker": breaker}, **more}


async def test_a_new_leader_tells_all_at_once(tick: Any, states: FakeStates) -> None:
    states.rows = {"feed": {"a": record("active")}, "mail": {"a": record("error", lastError="no relay")}}
    sent = await tick()
    assert sent["service"]["status"] == "error"
    assert [(s["service"], s["status"], s["lastError"]) for s in sent["service"]["services"]] == [
        ("feed", "active", None), ("mail", "error", "no relay"),
    ]  # fmt: skip
    assert sent["service"]["changed"] == ["feed", "mail"]
    assert sent["circuit-breaker"] == {"breakers": [], "changed": []}
    assert tick.announcer.instance_counts() == {("feed", "active"): 1, ("mail", "error"): 1}


async def test_only_changes_are_published_with_their_names(tick: Any, states: FakeStates) -> None:
    states.rows = {"feed": {"a": record("active", version=1)}, "mail": {"a": record("active")}}
    await tick()
    states.rows["feed"]["a"]["version"] = 2
    assert await tick() == {}
    states.rows["feed"]["a"]["status"] = "degraded"
    sent = await tick()
    assert sent["service"]["changed"] == ["feed"]
    assert len(sent["service"]["services"]) == 2
    assert "circuit-breaker" not in sent


async def test_breakers_that_open_and_close_are_published(tick: Any, states: FakeStates) -> None:
    states.rows = {"feed": {"a": record("active"), "b": record("active")}}
    await tick()
    states.rows["feed"]["b"] = record("active", "open", lastError="no answer")
    sent = await tick()
    assert sent["circuit-breaker"] == {
        "breakers": [{"service": "feed", "instance": "b", "state": "open", "lastError": "no answer"}],
        "changed": ["feed"],
    }
    states.rows["feed"]["b"] = record("active")
    assert (await tick())["circuit-breaker"] == {"breakers": [], "changed": ["feed"]}


async def test_a_former_leader_does_not_count(tick: Any, states: FakeStates, run: FakeRun) -> None:
    states.rows = {"feed": {"a": record("active")}}
    await tick()
    await tick.announcer.stop(cast(Run, run))
    assert tick.announcer.instance_counts() == {}


@pytest.mark.parametrize(
    ("data", "status"),
    [(b'{"status":"error"}', "error"), (None, None), (b'{"status":"nice"}', None), (b"[]", None), (b"{", None)],
)  # fmt: skip
async def test_the_last_published_status(data: bytes | None, status: str | None) -> None:
    class Kept:
        async def read(self, topic: str) -> bytes | None:
            assert topic == "service"
            return None if data is None else body(data, topic)

    assert await status_publisher.last_status(cast(Snapshots, Kept())) == status


async def test_a_part_that_is_not_yet_well_is_starting_and_has_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_publisher, "POLL_SECONDS", 0)
    reasons = iter(["not yet connected", "not yet connected"])
    start = status_publisher._until_healthy(lambda: next(reasons, None))
    await start(cast(Run, None))
    monkeypatch.setattr(status_publisher, "START_CHECKS", 3)
    with pytest.raises(Unavailable, match="connection refused"):
        await status_publisher._until_healthy(lambda: "connection refused")(cast(Run, None))


async def test_redis_is_read_again_only_after_a_notice_or_the_end_of_a_lease(tick: Any, states: FakeStates) -> None:
    states.received = (1, 0)
    states.rows = {"feed": {"a": record("active")}}
    assert (await tick())["service"]["status"] == "active"
    states.rows = {"feed": {"a": record("error")}}
    assert (await tick(), states.reads) == ({}, 1), "no notice arrived"
    states.received = (1, 1)
    assert (await tick())["service"]["status"] == "error"
    states.following = 0.0  # a lease ends at once
    states.received = (2, 1)
    assert (await tick(), states.reads) == ({}, 3), "notices may have been missed between two connections"
    states.rows = {"feed": {"a": record("active")}}
    assert (await tick())["service"]["status"] == "active"


async def test_redis_is_read_at_each_check_while_notices_may_be_lost(tick: Any, states: FakeStates) -> None:
    await tick()
    await tick()
    assert states.reads == 2


async def test_an_unpublished_status_is_read_and_published_again(tick: Any, states: FakeStates, run: FakeRun) -> None:
    states.received = (1, 0)
    states.rows = {"feed": {"a": record("active")}}
    run.failing = True
    with pytest.raises(Unavailable):
        await tick()
    run.failing = False
    assert (await tick())["service"]["status"] == "active"
