"""Look for a history that breaks a promise, and make it as short as it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from tests.simulation.histories import Step, random_steps
from tests.simulation.world import run_history


class Finding(AssertionError):
    """A history that breaks a promise; the message has its seed and its steps."""


def failure(seed: int, steps: Sequence[Step]) -> str | None:
    """What a history breaks; None if it breaks nothing."""
    try:
        run_history(seed, steps)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _kind(what: str) -> str:
    """A failure without the numbers and names that change when steps are left out."""
    return re.sub(r"[0-9a-f]{8}|\d+|'[^']*'|\[.*?\]|\{.*?\}", "", what)[:60]


def shrink(
    seed: int, steps: Sequence[Step], fails: Callable[[int, Sequence[Step]], str | None] = failure
) -> list[Step]:
    """The steps without those that the failure does not need."""
    kind = _kind(fails(seed, steps) or "")
    shortest = list(steps)
    size = max(1, len(shortest) // 2)
    while True:
        for at in reversed(range(0, len(shortest), size)):
            shorter = shortest[:at] + shortest[at + size :]
            if _kind(fails(seed, shorter) or "") == kind:
                shortest = shorter
        if size == 1:
            return shortest
        size //= 2


def report(seed: int) -> str | None:
    """What the history of a seed breaks, with the shortest steps that still do; None if it breaks nothing."""
    steps = random_steps(seed)
    if failure(seed, steps) is None:
        return None
    shortest = shrink(seed, steps)
    lines = "\n".join(f"    Step({step.seconds}, {step.verb!r}, {step.arguments!r})," for step in shortest)
    return f"seed {seed}: {failure(seed, shortest)}\n{lines}"


def seeds(first: int) -> Iterator[int]:
    """All seeds from `first` on."""
    while True:
        yield first
        first += 1
