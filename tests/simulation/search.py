"""Look for a history that breaks a promise, and make it as short as it can be."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from tests.simulation.histories import Step, random_steps
from tests.simulation.world import run_history

SHRINK_SECONDS: Final = 90.0  # then the shortest steps so far must do


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
    seed: int,
    steps: Sequence[Step],
    fails: Callable[[int, Sequence[Step]], str | None] = failure,
    seconds: float = SHRINK_SECONDS,
) -> list[Step]:
    """The steps without those that the failure does not need; after `seconds` the shortest that were found."""
    ends = time.monotonic() + seconds
    kind = _kind(fails(seed, steps) or "")
    shortest = list(steps)
    size = max(1, len(shortest) // 2)
    while True:
        for at in reversed(range(0, len(shortest), size)):
            if time.monotonic() > ends:
                return shortest
            shorter = shortest[:at] + shortest[at + size :]
            if _kind(fails(seed, shorter) or "") == kind:
                shortest = shorter
        if size == 1:
            return shortest
        size //= 2


def play(seed: int) -> str | None:
    """What the history of a seed breaks; None if it breaks nothing."""
    what = failure(seed, random_steps(seed))
    return what and f"seed {seed}: {what}"


def shortest(seed: int) -> str:
    """What the history of a seed breaks, with the shortest steps that still do."""
    steps = shrink(seed, random_steps(seed))
    lines = "\n".join(f"    Step({step.seconds}, {step.verb!r}, {step.arguments!r})," for step in steps)
    return f"seed {seed}: {failure(seed, steps)}\n{lines}"
