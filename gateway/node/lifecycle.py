"""Start, run and stop of a node: owns its tasks, and stops everything in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gateway.logging import logger


def _do_nothing() -> None:
    """The node runs without a server, as in tests."""


class Lifecycle:
    """Runs the work that was added from `start` to `stop`, and then the steps at the end, one after the other."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None  # the error that ended a task of the node
        self.shut_down: Callable[[], None] = _do_nothing  # makes the process drain and exit; the server sets it
        self._work: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self._at_end: list[Callable[[], Awaitable[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logger()

    def add(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` from `start` to `stop` as the task `name`."""
        self._work[name] = work

    def at_end(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """Await these steps in `stop`, once all tasks have ended."""
        self._at_end += steps

    def start(self) -> None:
        """Start all work in the order in which it was added."""
        for name, work in self._work.items():
            self.spawn(work(), name)

    async def stop(self) -> None:
        """Cancel all tasks, wait until they have ended, then run the steps at the end."""
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for step in self._at_end:
            await step()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` as a task of the node. If it fails, the node shuts down."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        # A node with a dead task must not go on: it leaves, and its supervisor starts another. Logging comes last.
        self.failure = task.exception()
        self.shut_down()
        self._log.critical("task failed, node leaves", task=task.get_name(), exc_info=self.failure)
