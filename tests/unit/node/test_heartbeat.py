"""The heartbeat renews the lease in time, retries soon after a failure, and does nothing else."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.broker.client import Unavailable
from gateway.node.heartbeat import BEATS_PER_LEASE, RETRY_SECONDS, Heartbeat, LeaseState
from tests.unit.virtual_time import in_virtual_time

LEASE_SECONDS = 10.0


class FakeRegistry:
    """Stands for the registry."""

    def __init__(self) -> None:
        self.beats: list[float] = []
        self.kept = False
        self.away = False

    async def renew_lease(self) -> bool:
        self.beats.append(asyncio.get_running_loop().time())
        if self.away:
            raise Unavailable("connection refused")
        kept, self.kept = self.kept, True
        return kept


def make(registry: FakeRegistry, taken: list[str]) -> tuple[Heartbeat, LeaseState]:
    lease = LeaseState()
    heartbeat = Heartbeat(
        cast(Any, registry),
        lease,
        lease_seconds=LEASE_SECONDS,
        renewed=lambda kept: taken.append("kept" if kept else "taken"),
    )
    return heartbeat, lease


def reason(lease: LeaseState) -> str | None:
    """Why there is no lease. A function, because mypy does not know that the heartbeat changes it."""
    return lease.reason


@in_virtual_time
async def test_the_lease_is_renewed_five_times_in_its_life_and_taken_once() -> None:
    registry, taken = FakeRegistry(), list[str]()
    heartbeat, lease = make(registry, taken)
    assert reason(lease) == "lease not yet taken"
    task = asyncio.create_task(heartbeat.run())
    await asyncio.sleep(LEASE_SECONDS - 0.1)
    assert (len(registry.beats), taken, reason(lease)) == (BEATS_PER_LEASE, ["taken", *["kept"] * 4], None)
    registry.kept = False  # Redis was flushed
    heartbeat.wake()
    await asyncio.sleep(0.01)
    assert taken[BEATS_PER_LEASE:] == ["taken"]
    task.cancel()


@in_virtual_time
async def test_a_beat_that_fails_is_repeated_soon_and_is_the_reason() -> None:
    registry, taken = FakeRegistry(), list[str]()
    heartbeat, lease = make(registry, taken)
    task = asyncio.create_task(heartbeat.run())
    await asyncio.sleep(0.01)
    registry.away = True
    heartbeat.wake()
    await asyncio.sleep(3 * RETRY_SECONDS)
    assert len(registry.beats) >= 4
    assert reason(lease) == "lease not renewed: connection refused"
    registry.away = False
    await asyncio.sleep(RETRY_SECONDS)
    assert reason(lease) is None
    task.cancel()
