"""Warns of nodes whose topic rules differ from this node's: they deliver everything, but recover and show less."""

from __future__ import annotations

from typing import Final

from gateway.cluster.registry import Registry
from gateway.core.topic_rules import TopicRules
from gateway.logging import logger

COMPARE_SECONDS: Final = 10.0


class RulesComparison:
    """Compares the digest of this node's topic rules, `rules`, with those in the rows of the other nodes."""

    def __init__(self, registry: Registry, rules: TopicRules) -> None:
        self._registry = registry
        self._rules = rules
        self._warned: set[str] = set()  # digests of living nodes that were logged

    async def compare(self) -> bool:
        """Log one warning for each digest that is not this node's. Returns whether some node has other rules.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        own = self._rules.digest
        nodes: dict[str, list[str]] = {}
        for row in await self._registry.node_rows():
            if row["rules"] not in ("", own):  # version 0.1.0 writes none
                nodes.setdefault(row["rules"], []).append(row["id"])
        for digest in nodes.keys() - self._warned:
            logger().warning("nodes have other topic rules", own=own, other=digest, nodes=nodes[digest])
        self._warned = set(nodes)
        return bool(nodes)
