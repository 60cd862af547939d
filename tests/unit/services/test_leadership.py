"""Singletons' leases, in virtual time and with a Redis that does what acquire_leadership.lua does."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.keys import Keys
from gateway.services.leadership import RENEWALS_PER_LEASE, LeaderElection, LeaderLease
from tests.unit.virtual_time import in_virtual_time, later

LEASE = 3.0


class FakeElection:
    """The lease of one singleton; `away` while Redis is."""

    def __init__(self) -> None:
        self.away = False
        self.holder: tuple[str, int] | None = None
        self.ends = 0.0
        self.newest = 0
        self.asked = 0

    def script(self, name: str) -> Any:
        """One of the Lua steps."""
        step = self._lead if name == "acquire_leadership" else self._resign
        return lambda keys, arguments: (step, keys, arguments)

    async def execute(self, step: Any, *command: Any) -> Any:
        """Within the deadline, or not."""
        self.asked += 1
        if self.away:
            raise Unavailable("away")
        return await step(*command)

    def flush(self) -> None:
        """Forget all."""
        self.holder, self.newest = None, 0

    async def _lead(self, _keys: list[str], arguments: list[Any]) -> list[Any]:
        instance, token, lease_ms = arguments
        now = asyncio.get_running_loop().time()
        holder = self.holder if self.holder is not None and now < self.ends else None
        if holder is not None and holder[0] != instance:
            return [b"0", int(1000 * (self.ends - now)), holder[0].encode()]
        if holder != (instance, token):
            self.newest = max(self.newest + 1, int(1_000_000 * now))
            token = self.newest
        self.holder, self.ends = (instance, token), now + lease_ms / 1000
        return [str(token).encode(), int(1000 * self.ends), b""]

    async def _resign(self, _keys: list[str], arguments: list[Any]) -> int:
        if self.holder != (arguments[0], arguments[1]):
            return 0
        self.holder = None
        return 1


def part(election: FakeElection, instance: str) -> LeaderElection:
    return LeaderElection(cast(RedisClient, election), Keys(""), "job", instance, LEASE)


def nothing() -> None:
    pass


@in_virtual_time
async def test_the_first_candidate_leads_and_stays() -> None:
    election = FakeElection()
    lease = await part(election, "a").campaign(nothing)
    held = asyncio.create_task(part(election, "a").hold(lease))
    await later(100)
    assert not held.done()
    assert election.holder == ("a", lease.token)
    assert election.asked <= 100 / LEASE * RENEWALS_PER_LEASE + 2
    held.cancel()


@in_virtual_time
async def test_the_other_stands_by_and_takes_over_when_the_lease_of_a_dead_one_ends() -> None:
    election, stood_by = FakeElection(), []
    first = await part(election, "a").campaign(nothing)  # and dies
    second = await part(election, "b").campaign(lambda: stood_by.append(1))
    assert stood_by
    assert second.token > first.token
    assert LEASE <= asyncio.get_running_loop().time() < LEASE + 0.1


@in_virtual_time
async def test_one_that_resigns_is_followed_sooner() -> None:
    election = FakeElection()
    leader = part(election, "a")
    lease = await leader.campaign(nothing)
    waiting = asyncio.create_task(part(election, "b").campaign(nothing))
    await later(0.1)
    await leader.resign(lease.token)
    await waiting
    assert asyncio.get_running_loop().time() < LEASE / RENEWALS_PER_LEASE + 0.1


@in_virtual_time
async def test_a_lease_that_passed_to_another_is_given_up() -> None:
    election = FakeElection()
    leader = part(election, "a")
    lease = await leader.campaign(nothing)
    election.flush()
    newer = await part(election, "b").campaign(nothing)
    await leader.hold(lease)
    assert asyncio.get_running_loop().time() <= LEASE / RENEWALS_PER_LEASE + 0.01
    assert election.holder == ("b", newer.token)


@in_virtual_time
async def test_after_a_flush_the_old_token_ends_and_a_new_one_begins() -> None:
    election = FakeElection()
    leader = part(election, "a")
    await later(5)
    lease = await leader.campaign(nothing)
    election.flush()
    await leader.hold(lease)
    assert election.holder is None, "it returned the new lease that it got while the old work ran"
    assert (await leader.campaign(nothing)).token > lease.token


@in_virtual_time
async def test_without_redis_a_lease_lasts_no_longer_than_it_was_given() -> None:
    election = FakeElection()
    leader = part(election, "a")
    lease = await leader.campaign(nothing)
    election.away = True
    await leader.hold(lease)
    assert asyncio.get_running_loop().time() <= LEASE + 0.001
    back = asyncio.create_task(part(election, "b").campaign(nothing))
    await later(60)
    election.away = False
    assert (await back).token > lease.token


@in_virtual_time
async def test_a_short_outage_costs_no_lease() -> None:
    election = FakeElection()
    leader = part(election, "a")
    lease = await leader.campaign(nothing)
    held = asyncio.create_task(leader.hold(lease))
    for _ in range(5):
        election.away = True
        await later(LEASE / 2)
        election.away = False
        await later(LEASE)
    assert not held.done()
    held.cancel()


@in_virtual_time
async def test_one_whose_answer_was_lost_need_not_wait_for_its_own_lease() -> None:
    election = FakeElection()
    await part(election, "a").campaign(nothing)  # its answer is lost
    began = asyncio.get_running_loop().time()
    await part(election, "a").campaign(nothing)
    assert asyncio.get_running_loop().time() == began


def test_a_fence_shows_what_redis_compares() -> None:
    assert tuple(LeaderLease("job", 7, 1000, 1.0).fence()) == ("job", 7, 1000)
