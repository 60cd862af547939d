"""gateway.node.rules_comparison: one warning for each set of topic rules that other nodes have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from gateway.node.rules_comparison import RulesComparison


class Registry:
    def __init__(self) -> None:
        self.rows: dict[str, str] = {}

    async def node_rows(self) -> list[dict[str, Any]]:
        return [{"id": name, "rules": rules} for name, rules in self.rows.items()]


async def test_nodes_with_other_rules_are_named_once_until_there_are_none() -> None:
    registry = Registry()
    watch = RulesComparison(cast(Any, registry), cast(Any, SimpleNamespace(digest="own")))

    async def warned() -> list[tuple[str, list[str]]]:
        with capture_logs() as logs:
            await watch.compare()
        return [(line["other"], line["nodes"]) for line in logs]

    registry.rows = {"n1": "own", "n2": "", "n3": "own"}
    assert await warned() == []
    registry.rows |= {"n3": "new", "n4": "new"}
    assert await warned() == [("new", ["n3", "n4"])]
    registry.rows |= {"n1": "new"}
    assert await warned() == []
    registry.rows = {"n2": "own"}
    assert await warned() == []
    registry.rows = {"n3": "new"}
    assert await warned() == [("new", ["n3"])]
