"""Runs rounds of every target until the time is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from fuzz import api, live, pure
from fuzz.rows import rows
from tests.kit.client import Client
from tests.kit.node import Node

LIVE: Final = {**live.TARGETS, "rows": rows}
NAMES: Final = (*pure.TARGETS, *LIVE, "api")
PURE_ROUNDS: Final = 40  # of each pure target between two checks of the node
LIVE_ROUNDS: Final = 12
WARM_CYCLES: Final = 3


class Failed(Exception):
    """A round found a fault; the message describes it and the command that repeats it."""


@dataclass
class Report:
    """Counts of what was tried."""

    rounds: Counter[str] = field(default_factory=Counter)
    octets: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Plan:
    """The options of a run; with `round` only this round."""

    seed: int
    seconds: float
    targets: Sequence[str] = NAMES
    round: int | None = None
    api_examples: int = 60


async def run(plan: Plan, node: Node, folder: Path, show: Callable[[str], None]) -> Report:
    """Runs rounds against the parsers, and against `node` and its API.

    Raises:
        Failed: At the first finding.
    """
    report = Report()
    deadline, cycle = time.monotonic() + plan.seconds, 0
    if "api" in plan.targets:  # before the watching client connects: it would be disconnected
        try:
            await api.explore(node, plan.seed, plan.api_examples, folder)
        except live.Found as found:
            raise Failed(f"{found}\nrepeat: make fuzz SEED={plan.seed} TARGETS=api") from None
        report.rounds["api"] += 1
        show("api explored")
    others = [name for name in plan.targets if name != "api"]
    if not others:  # the same seed would repeat the same requests
        return report
    client = await Client.connect(node)
    watch = live.Watch(node, client)
    try:
        while cycle == 0 or (time.monotonic() < deadline and plan.round is None):
            for name in others:
                count = PURE_ROUNDS if name in pure.TARGETS else LIVE_ROUNDS
                for at in [plan.round] if plan.round is not None else range(cycle * count, (cycle + 1) * count):
                    await _play(plan, report, watch, name, at)
                    if time.monotonic() > deadline and cycle:
                        break
            cycle += 1
            if cycle == WARM_CYCLES:
                await watch.warm()
            if cycle % 20 == 0:
                show(f"{sum(report.rounds.values()):,} rounds, {sum(report.octets.values()):,} bytes")
        try:
            await watch.settle()
        except (AssertionError, TimeoutError) as found:
            raise Failed(f"after all rounds: {found}; SEED={plan.seed}") from found
    finally:
        await client.leave()
    return report


async def _play(plan: Plan, report: Report, watch: live.Watch, name: str, at: int) -> None:
    random = Random(f"{plan.seed} {name} {at}")
    try:
        if name in pure.TARGETS:
            report.octets[name] += pure.TARGETS[name](random)
        else:
            report.octets[name] += await LIVE[name](random, watch)
            await watch.look()
    except Exception as found:
        again = f"make fuzz SEED={plan.seed} TARGETS={name} ROUND={at}"
        raise Failed(f"{name}, round {at}: {type(found).__name__}: {found}\nrepeat: {again}") from found
    report.rounds[name] += 1
