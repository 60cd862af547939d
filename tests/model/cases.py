"""Random cases, and the search for the shortest failing part of a case.

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
HANDLES: Final = 4

# Upon which event a callback of the caller's does what: ends its subscription, subscribes once more, both, ends all
# subscriptions to the topic, or gives up the connection.
EVENTS: Final = ["subscribed", "recovered", "message", "initial", "gap", "ended"]
REACTIONS: Final = ["close", "again", "swap", "all", "reconnect"]

# What no server sends.
ODD: Final = [
    "", "{", "\x00", "[]", "7", "null", '"text"', "{}", '{"type":7}', '{"type":"DATA"}', '{"type":"DATA","topic":7}',
    '{"type":"DATA","topic":"odd","offset":"x","epoch":[]}', '{"type":"PRESENCE","topic":null}', '{"type":"SYSTEM"}',
    '{"type":"SYSTEM","action":"gap"}', '{"type":"SYSTEM","action":"gap","data":{"topics":7}}', '{"type":"ERROR"}',
    '{"type":"SYSTEM","action":"unsubscribed","data":[]}', '{"type":"ERROR","code":"x","requestId":[]}',
    '{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":7,"positions":7}', '{"type":"ACKNOWLEDGMENT"}',
    '{"type":"SYSTEM","action":"shutdown","data":{"reconnectMs":"soon"}}', '{"type":"SYSTEM","action":7,"data":7}',
]  # fmt: skip

# How often which step comes.
_WEIGHTS: Final = {
    "subscribe": 18, "close": 10, "publish": 16, "say": 2, "up": 14, "down": 20, "all": 5, "cut": 5, "reconnect": 3,
    "time": 8, "miss": 2, "forget": 2, "repeat": 2, "odd": 1, "revoke": 2, "refuse": 3, "outage": 2, "restore": 2,
    "expire": 2, "refuse_tokens": 2, "token": 3,
}  # fmt: skip


def make(random: Random) -> Case:
    """A case of some dozen steps. The first says whether there is a token.

    It is about a topic or two, so that what happens to one meets what else happens to it.
    """
    topics = random.sample(TOPICS, random.randrange(1, 3))
    case: Case = [["start", random.random() < 0.3]]
    case += [["publish", topic] for topic in topics if random.random() < 0.7]
    if random.random() < 0.8:  # most begin connected
        case += [["connect"], ["all"]]
    words, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    for word in random.choices(words, weights, k=random.randrange(3, 50)):
        case.append(_step(word, topics, random))
        if word == "subscribe" and random.random() < 0.4:  # the next step comes amid the answer
            case += [["up", 1], ["down", 1]]
    return case


def _step(word: str, topics: list[str], random: Random) -> Step:
    match word:
        case "subscribe":
            name = random.choice(topics) if random.random() < 0.92 else random.choice([*TOPICS, SECRET, BAD])
            step = [word, random.randrange(HANDLES), name]
            if random.random() < 0.25:
                step += [random.choice(EVENTS), random.choice(REACTIONS)]
            return step
        case "close":
            return [word, random.randrange(HANDLES)]
        case "publish" | "say" | "miss" | "revoke" | "forget" | "repeat":
            return [word, random.choice(topics)]
        case "up" | "down":
            return [word, random.choice([1, 1, 2, 3])]
        case "cut":
            final = random.random() < 0.02
            return [word, 3503 if final else random.choice([1000, 1001, 1006, 1006, 1009, 3001, 3005, 3008])]
        case "odd":
            return [word, random.choice(ODD)]
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
