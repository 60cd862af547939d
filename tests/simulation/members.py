"""Nodes of the simulation, and their topic rules."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final

from gateway.core import topic_rules
from gateway.core.topic_rules import TopicRules
from gateway.node import configuration
from gateway.node.node import Node
from gateway.settings import Settings
from tests.simulation.network import Address

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE_SECONDS: Final = 5.0
SECRET: Final = "a secret of at least thirty-two bytes"
RULES: Final = """
[[topic]]
pattern = "history1"
history = 3
publish = "anyone"

[[topic]]
pattern = "history2"
history = 50
history_seconds = 3
publish = "anyone"

[[topic]]
pattern = "snapshot*"
history = 20
history_seconds = 3
snapshot = true
publish = "anyone"

[[topic]]
pattern = "room*"
history = 50
presence = true
publish = "anyone"

[[topic]]
pattern = "value*"
snapshot = true
publish = "anyone"

[[topic]]
pattern = "conflated*"
conflate_ms = 200
publish = "anyone"

[[topic]]
pattern = "plain*"
publish = "anyone"
"""
OTHER_RULES: Final = RULES.replace('"history2"\nhistory = 50', '"history2"').replace(
    '"plain*"', '"plain*"\nhistory = 30'
)


@cache
def _parsed(rules: str) -> TopicRules:
    return topic_rules.parse(rules, "rules")


class Member:
    """A node of the simulation: its process can be killed, cut off, drained and started again with other rules."""

    def __init__(self, world: World, index: int) -> None:
        self.address: Address = (f"redis-{index}", 6379)
        self.node: Node | None = None
        self._world = world
        self._index = index
        self._stack: AsyncExitStack | None = None
        self._rules = RULES

    async def start(self, rules: str | None = None) -> None:
        """Start the process, with the rules it had or others."""
        if self.node is not None:
            return
        self._rules = rules or self._rules
        host, port = self.address
        settings = Settings(
            node=f"n{self._index}", redis_url=f"redis://{host}:{port}/0", lease_seconds=LEASE_SECONDS, open=True,
            advertise=f"n{self._index}:8000", presence_grace_seconds=0.5, redis_timeout_seconds=1.0, jwt_secret=SECRET,
        )  # fmt: skip
        current = replace(configuration.read(settings), rules=_parsed(self._rules))
        self.node = Node(settings, current, lambda: current, self._world.now)
        self.node.lifecycle.shut_down = lambda: self._world.fail(self.node)
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self.node.lifespan())

    async def stop(self, *, kill: bool) -> None:
        """End the process; a killed one removes nothing from Redis."""
        if self.node is None or self._stack is None:
            return
        node, stack, self.node, self._stack = self.node, self._stack, None, None
        node.lifecycle.shut_down = lambda: None
        if kill:
            self._world.network.refuse(self.address)
            self._world.network.cut(self.address)
        for client in self._world.clients:
            if client.node is node:
                client.disconnect()
        await stack.aclose()
        if kill:
            self._world.redis.listen(self.address)
