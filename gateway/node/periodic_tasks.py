"""Periodic work beside the lease. A step may fail or be slow without effect on the lease or on another step.

Nothing here decides whether the node is ready. A step that fails is counted (`gateway_housekeeping_failures_total`),
logged when it begins to fail and when it succeeds again, and retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gateway.broker.client import Unavailable, explain
from gateway.logging import StateLog
from gateway.metrics import Metrics

RETRY_SECONDS: Final = 1.0
TASK_SECONDS: Final = 30.0  # time limit of one run of a step; the next run does the rest

# The function of a step. It may return the seconds until its next run, if that is before its period ends.
TaskFunction = Callable[[], Awaitable[float | None]] | Callable[[], Awaitable[float]] | Callable[[], Awaitable[None]]


class _Task:
    def __init__(self, name: str, act: TaskFunction, seconds: float | None) -> None:
        self.name = name
        self.act = act
        self.seconds = seconds
        self.wanted = asyncio.Event()
        self.state = StateLog("housekeeping step fails", over="housekeeping step succeeds again", step=name)


class PeriodicTasks:
    """Runs each step in its own task. `add` all steps, then `run`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._steps: dict[str, _Task] = {}

    def add(self, name: str, act: TaskFunction, *, seconds: float | None) -> None:
        """Run `act` every `seconds`; None: only after `wake`, and then until it succeeds."""
        self._steps[name] = _Task(name, act, seconds)

    def wake(self, *names: str) -> None:
        """Run these steps now."""
        for name in names:
            self._steps[name].wanted.set()

    async def run(self) -> None:
        """Run the steps until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for step in self._steps.values():
                tasks.create_task(self._keep(step), name=f"housekeeping {step.name}")

    async def _keep(self, step: _Task) -> None:
        wait = step.seconds if step.seconds is None else 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await step.wanted.wait()
            step.wanted.clear()
            try:
                async with asyncio.timeout(TASK_SECONDS):
                    sooner = await step.act()
            except Exception as error:
                self._metrics.housekeeping_failures.labels(step.name).inc()
                # An error of Redis needs no traceback; an internal error does.
                step.state.begin(explain(error), exc_info=None if isinstance(error, Unavailable) else error)
                wait = RETRY_SECONDS if step.seconds is None else min(RETRY_SECONDS, step.seconds)
            else:
                step.state.end()
                wait = step.seconds if sooner is None or step.seconds is None else min(sooner, step.seconds)
