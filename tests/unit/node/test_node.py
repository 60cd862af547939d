"""A node stops when one of its essential tasks fails."""

from __future__ import annotations

import asyncio

import pytest

from gateway.app import create_app
from gateway.node.node import Node
from gateway.settings import Settings


class BrokenLog:
    """A log that cannot be written."""

    def critical(self, event: str, **fields: object) -> None:
        raise OSError("the disk is full")


async def test_a_node_whose_task_dies_leaves_even_if_logging_fails() -> None:
    node: Node = create_app(Settings(node="n1")).state.node
    happened: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, about: happened.append(str(about["exception"])))
    node.lifecycle.shut_down = lambda: happened.append("leave")
    node.lifecycle._log = BrokenLog()  # type: ignore[assignment]

    async def die() -> None:
        raise ZeroDivisionError("a fault of ours")

    task = node.lifecycle.spawn(die(), "work")
    with pytest.raises(ZeroDivisionError):
        await task
    await asyncio.sleep(0)
    assert happened == ["leave", "the disk is full"]
    assert node.lifecycle.failure is task.exception()  # so the process ends with 1


async def test_a_task_that_ends_or_is_cancelled_ends_no_node() -> None:
    node: Node = create_app(Settings(node="n1")).state.node
    left: list[str] = []
    node.lifecycle.shut_down = lambda: left.append("leave")
    await node.lifecycle.spawn(asyncio.sleep(0), "work")
    task = node.lifecycle.spawn(asyncio.sleep(60), "work")
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert left == [] and node.lifecycle.failure is None
