"""A short slice of `make fuzz`, by a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from fuzz import pure
from fuzz.run import NAMES, Failed, Plan, run
from tests.kit.cluster import Cluster
from tests.kit.node import Node

FROM_CLIENTS = tuple(name for name in NAMES if name != "api")


def nowhere(_line: str) -> None:
    """What a person would read."""


@pytest.fixture
def node(cluster: Callable[..., Cluster]) -> Node:
    """One that lets a client say as much as it can."""
    return cluster(1, client_messages_per_second=1_000_000, client_log_lines_per_second=10_000)[0]


async def test_nothing_is_found_in_any_input(node: Node, folder: Path) -> None:
    report = await run(Plan(seed=1, seconds=10, targets=FROM_CLIENTS), node, folder, nowhere)
    assert report.rounds.keys() == set(FROM_CLIENTS)
    assert min(report.rounds.values()) >= 10
    assert report.octets["frames"] > 1_000_000


async def test_the_api_conforms_to_its_description(node: Node, folder: Path) -> None:
    report = await run(Plan(seed=1, seconds=0, targets=("api",), api_examples=10), node, folder, nowhere)
    assert report.rounds == {"api": 1}


async def test_a_finding_names_the_command_to_repeat(node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(random: Random) -> int:
        if random.random() < 0.1:
            raise ValueError("found")
        return 1

    monkeypatch.setitem(pure.TARGETS, "frames", find)
    with pytest.raises(Failed, match=r"make fuzz SEED=7 TARGETS=frames ROUND=\d+") as first:
        await run(Plan(seed=7, seconds=60, targets=("frames",)), node, folder, nowhere)
    number = int(str(first.value).rpartition("=")[2])
    with pytest.raises(Failed) as again:
        await run(Plan(seed=7, seconds=60, targets=("frames",), round=number), node, folder, nowhere)
    assert str(again.value) == str(first.value)
    assert (await run(Plan(seed=7, seconds=60, targets=("rules",), round=0), node, folder, nowhere)).rounds == {
        "rules": 1
    }
