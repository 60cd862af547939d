"""Random cases, and the shortest part of one that still fails.

A case is a list of steps, each a list of a word and its values. A step that makes no sense where it stands does
nothing, so every part of a case is a case.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from tests.model.server import BAD, SECRET

Step = list[Any]
Case = list[Step]

TOPICS: Final = ["plain", "last", "kept", "both"]
HANDLES: Final = 5

# How often which step comes.
_WEIGHTS: Final = {
    "subscribe": 16, "close": 9, "publish": 18, "say": 2, "up": 14, "down": 14, "all": 6, "cut": 5, "reconnect": 2,
    "time": 8, "miss": 2, "forget": 2, "revoke": 1, "refuse": 2, "outage": 2, "restore": 2, "expire": 2,
    "refuse_tokens": 2, "token": 3,
}  # fmt: skip


def make(random: Random) -> Case:
    """A case of at most 60 steps. The first says whether there is a token."""
    case: Case = [["start", random.random() < 0.4]]
    if random.random() < 0.7:  # most begin connected
        case += [["connect"], ["all"]]
    words, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    case += [_step(word, random) for word in random.choices(words, weights, k=random.randrange(3, 58))]
    return case


def _step(word: str, random: Random) -> Step:
    match word:
        case "subscribe":
            name = random.choice(TOPICS) if random.random() < 0.92 else random.choice([SECRET, BAD])
            return [word, random.randrange(HANDLES), name]
        case "close":
            return [word, random.randrange(HANDLES)]
        case "publish" | "say" | "miss" | "revoke":
            return [word, random.choice(TOPICS)]
        case "forget":
            return [word, random.choice(["kept", "both"])]
        case "up" | "down":
            return [word, random.randrange(1, 4)]
        case "cut":
            final = random.random() < 0.02
            return [word, 3503 if final else random.choice([1000, 1001, 1006, 1006, 1009, 3001, 3005, 3008])]
        case "time":
            return [word, random.choice([1, 50, 400, 1_000, 3_000, 11_000, 30_000])]
        case "refuse":
            return [word, random.randrange(1, 3)]
        case "refuse_tokens":
            return [word, random.choice([1, 1, 2, 4])]
        case "token":
            return [word, random.choice(["fresh", "fresh", "same", "none", "fails", "never"])]
    return [word]


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A part of `case` that still fails, and of which no single step can be left out."""
    size = len(case) // 2
    while size:
        at = 1  # the first stays
        while at < len(case):
            shorter = case[:at] + case[at + size :]
            if fails(shorter):
                case = shorter
            else:
                at += size
        size = size // 2 if size > 1 or not any(fails(case[:i] + case[i + 1 :]) for i in range(1, len(case))) else 1
    return case
