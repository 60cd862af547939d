"""gateway.node.reload: all nodes or none, and a node that does not report is named."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.core.control_messages import ReloadReport
from gateway.node.configuration import Configuration
from gateway.node.reload import Reloader, ReloadRefused
from tests.unit.virtual_time import in_virtual_time


class Nodes:
    """Nodes on one control channel; each reads what `reads` says, and a silent one receives nothing."""

    def __init__(self, **reads: str) -> None:
        self.reads = reads
        self.now = dict.fromkeys(reads, "old")  # the configuration that each uses
        self.silent: dict[str, str] = {}  # node -> from which step on
        self.reloaders = {
            node: Reloader(
                node, cast(Any, SimpleNamespace(replace=self._replacer(node))), read=self._reader(node),
                broadcast=self._broadcast, node_ids=self._ids,
            )
            for node in reads
        }  # fmt: skip

    async def _ids(self) -> list[str]:
        return list(self.reads)

    def _reader(self, node: str) -> Any:
        async def read() -> Configuration:
            if self.reads[node] == "bad":
                raise ValueError("topics.toml, line 1: pattern must be text")
            return cast(Configuration, SimpleNamespace(digest=self.reads[node]))

        return read

    def _replacer(self, node: str) -> Any:
        async def replace(configuration: Configuration) -> None:
            self.now[node] = configuration.digest

        return replace

    async def _broadcast(self, op: str, **about: Any) -> None:
        step = op.removesuffix("_reload")
        async with asyncio.TaskGroup() as group:
            for node, reloader in self.reloaders.items():
                if op == "reload_report":
                    group.create_task(reloader.report_received(ReloadReport(**about)))
                elif step not in self.silent.get(node, ""):
                    group.create_task(getattr(reloader, step)(**about))


async def test_all_nodes_change_when_all_have_read_the_same() -> None:
    nodes = Nodes(n1="new", n2="new")
    assert await nodes.reloaders["n2"].reload_all() == ["n1", "n2"]
    assert nodes.now == {"n1": "new", "n2": "new"}


@pytest.mark.parametrize(
    ("reads", "says"),
    [
        ({"n1": "new", "n2": "bad"}, "n2: topics.toml, line 1: pattern must be text; nothing has changed"),
        ({"n1": "new", "n2": "other"}, "the nodes read different topic rules or API keys (n1: new; n2: other)"),
    ],
)
async def test_no_node_changes_if_one_reads_something_invalid_or_different(reads: dict[str, str], says: str) -> None:
    nodes = Nodes(**reads)
    with pytest.raises(ReloadRefused) as refused:
        await nodes.reloaders["n1"].reload_all()
    assert str(refused.value).startswith(says)
    assert nodes.now == {"n1": "old", "n2": "old"}


@in_virtual_time
async def test_a_silent_node_is_named() -> None:
    nodes = Nodes(n1="new", n2="new")
    nodes.silent = {"n2": "check"}
    with pytest.raises(ReloadRefused, match="n2 did not report in 3 s; nothing has changed"):
        await nodes.reloaders["n1"].reload_all()
    nodes.silent = {"n2": "apply"}
    with pytest.raises(ReloadRefused, match="n2 did not report the change; the others have it; reload again"):
        await nodes.reloaders["n1"].reload_all()
    assert nodes.now == {"n1": "new", "n2": "old"}


async def test_a_node_applies_only_what_it_has_checked_for_that_request() -> None:
    nodes = Nodes(n1="new")
    await nodes.reloaders["n1"].check("a")
    await nodes.reloaders["n1"].apply("b")
    assert nodes.now == {"n1": "old"}
    nodes.reads["n1"] = "newer"  # the file changes between the steps
    await nodes.reloaders["n1"].apply("a")
    assert nodes.now == {"n1": "new"}


async def test_a_node_alone_keeps_its_configuration_if_a_file_is_invalid() -> None:
    nodes = Nodes(n1="bad")
    await nodes.reloaders["n1"].reload_node()
    assert nodes.now == {"n1": "old"}
    nodes.reads["n1"] = "new"
    await nodes.reloaders["n1"].reload_node()
    assert nodes.now == {"n1": "new"}
