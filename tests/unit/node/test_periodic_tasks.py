"""Periodic work: a step that fails, hangs or is refused affects no other step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from gateway.broker.client import CommandRefused, Unavailable
from gateway.metrics import Metrics
from gateway.node.periodic_tasks import RETRY_SECONDS, TASK_SECONDS, PeriodicTasks
from tests.unit.virtual_time import in_virtual_time


class Step:
    """Counts its runs, and does at each what the test says."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.runs = 0
        self.act = act

    async def __call__(self) -> float | None:
        self.runs += 1
        found = self.act()
        if isinstance(found, asyncio.Future):
            await found
        return found if isinstance(found, float) else None


def fail(error: Exception) -> Callable[[], object]:
    """Has a step raise `error`."""

    def act() -> object:
        raise error

    return act


@pytest.mark.parametrize(
    "error", [Unavailable("away"), CommandRefused("WRONGTYPE"), ZeroDivisionError("a fault of ours")]
)
@in_virtual_time
async def test_a_step_that_fails_is_counted_logged_once_and_retried_while_others_run(error: Exception) -> None:
    metrics = Metrics()
    tasks = PeriodicTasks(metrics)
    good, bad = Step(), Step(fail(error))
    tasks.add("bad", bad, seconds=2)
    tasks.add("good", good, seconds=2)
    with capture_logs() as logged:
        task = asyncio.create_task(tasks.run())
        await asyncio.sleep(9.9)
        assert good.runs == 5
        assert bad.runs == pytest.approx(10, abs=1)  # once each RETRY_SECONDS
        assert not task.done()
        bad.act = lambda: None
        await asyncio.sleep(4)
    labels = {"step": "bad"}
    failures = metrics.registry.get_sample_value("gateway_housekeeping_failures_total", labels) or 0
    assert failures == pytest.approx(10, abs=1)
    assert metrics.registry.get_sample_value("gateway_housekeeping_failures_total", {"step": "good"}) is None
    events = [(line["log_level"], line["event"], line["step"]) for line in logged]
    assert events == [
        ("warning", "housekeeping step fails", "bad"), ("info", "housekeeping step succeeds again", "bad"),
    ]  # fmt: skip
    task.cancel()


@in_virtual_time
async def test_a_step_that_hangs_is_ended_and_hinders_no_other() -> None:
    tasks = PeriodicTasks(Metrics())
    good = Step()
    bad = Step(lambda: asyncio.get_running_loop().create_future())
    tasks.add("bad", bad, seconds=2)
    tasks.add("good", good, seconds=2)
    with capture_logs():
        task = asyncio.create_task(tasks.run())
        await asyncio.sleep(TASK_SECONDS + RETRY_SECONDS + 0.1)
    assert (bad.runs, good.runs) == (2, 16)
    task.cancel()


@in_virtual_time
async def test_a_step_without_a_period_runs_when_it_is_woken_until_it_succeeds() -> None:
    tasks = PeriodicTasks(Metrics())
    step = Step(fail(Unavailable("away")))
    tasks.add("once", step, seconds=None)
    with capture_logs():
        task = asyncio.create_task(tasks.run())
        await asyncio.sleep(5)
        assert step.runs == 0
        tasks.wake("once")
        await asyncio.sleep(2.5)
        assert step.runs == 3
        step.act = lambda: None
        await asyncio.sleep(5)
    assert step.runs == 4
    task.cancel()


@in_virtual_time
async def test_a_step_may_ask_to_run_sooner_than_its_period() -> None:
    tasks = PeriodicTasks(Metrics())
    soon, late = Step(lambda: 0.5), Step(lambda: 100.0)
    tasks.add("soon", soon, seconds=2)
    tasks.add("late", late, seconds=2)
    task = asyncio.create_task(tasks.run())
    await asyncio.sleep(3.9)
    assert (soon.runs, late.runs) == (8, 2)
    task.cancel()
