"""Random histories: the steps of clients and faults in a cluster.  (pure)

Each seed draws its own kind of history: a few of the topics, clients, faults and paces. A history in which everything
may happen has little of anything; one about two topics and one fault has the same two meet again and again ("swarm
testing").
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

NODES: Final = 3
CLIENTS: Final = 4
TOPICS: Final = ("history1", "history2", "snapshot1", "room1", "value1", "conflated1", "plain1")
USERS: Final = ("ann", "bob")
# Steps that lose nothing: after them no client may receive a gap.
LOSSLESS: Final = frozenset({"publish", "subscribe", "unsubscribe", "cut", "ask", "login", "save", "start"})
OOM: Final = "OOM command not allowed when used memory > 'maxmemory'."

# Seconds before a step, and how many steps there are: at once, in order, with breaks, or so long that leases end.
PACES: Final = (
    ((0.0, 0.0, 0.002), (8, 12, 20)),
    ((0.0, 0.002, 0.05, 0.3), (8, 12, 20)),
    ((0.05, 0.3, 1.2), (6, 8)),
    ((0.002, 0.3, 5.5), (4, 6)),
)


@dataclass(frozen=True, slots=True)
class Step:
    """Wait `seconds`, then do `verb` with `arguments`."""

    seconds: float
    verb: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.seconds:.3f} {self.verb}({', '.join(map(repr, self.arguments))})"


def random_steps(seed: int) -> list[Step]:
    """The history of a seed."""
    rng = random.Random(seed)
    topics = rng.sample(TOPICS, rng.choice((1, 2, 2, 3, len(TOPICS))))
    clients = range(rng.choice((2, 3, CLIENTS)))
    nodes = range(rng.choice((1, 2, 2, NODES)))
    pace, counts = rng.choice(PACES)

    def some() -> tuple[str, ...]:
        return tuple(rng.sample(topics, rng.randint(1, min(3, len(topics)))))

    faults: dict[str, Callable[[], tuple[Any, ...]]] = {
        "kill": lambda: (rng.choice(nodes),),
        "leave": lambda: (rng.choice(nodes),),
        "isolate": lambda: (rng.choice(nodes), rng.choice((0.5, 2.0, 6.0))),
        "disconnect": lambda: (rng.choice(nodes),),
        "restart": lambda: (rng.choice((0.01, 0.5, 2.0)), rng.random() < 0.7),
        "freeze": lambda: (rng.choice((0.5, 2.0)),),
        "flush": lambda: (),
        "refuse": lambda: (OOM, 1.0),
        "slow": lambda: (rng.choice((5.0, 30.0)), 1.0),
    }
    usual: dict[str, tuple[int, Callable[[], tuple[Any, ...]]]] = {
        "publish": (30, lambda: (rng.choice(topics), rng.choice(nodes))),
        "publish except": (4, lambda: (rng.choice(topics), rng.choice(nodes), rng.choice(clients))),
        "subscribe": (12, lambda: (rng.choice(clients), some())),
        "unsubscribe": (4, lambda: (rng.choice(clients), rng.choice(topics))),
        "cut": (6, lambda: (rng.choice(clients), rng.choice((0.0, 0.0, 1.0)))),
        "ask": (2, lambda: (rng.choice(clients), "room1", rng.choice(("history", "presence")))),
        "start": (3, lambda: (rng.choice(nodes), rng.choice((None, None, "other", "same")))),
        "login": (3, lambda: (rng.choice(clients), rng.choice(USERS))),
        "newer": (1, lambda: (rng.choice(("plain1", "value1")),)),
        "save": (2, lambda: ()),
    }
    chosen = rng.sample(list(faults), rng.choice((0, 0, 1, 1, 2, 3)))
    weights = {name: weight for name, (weight, _) in usual.items() if rng.random() < 0.75}
    weights |= dict.fromkeys(chosen, 4) | {"publish": 30, "subscribe": 12}
    if "restart" in chosen:
        weights["save"] = 4
    steps = [Step(0.0, "subscribe", (client, some())) for client in clients if rng.random() < 0.8]
    if rng.random() < 0.3:
        steps.append(Step(0.0, "start", (NODES - 1, rng.choice(("same", "other")))))
    for verb in rng.choices(list(weights), list(weights.values()), k=rng.choice(counts)):
        arguments = faults[verb]() if verb in faults else usual[verb][1]()
        steps.append(Step(rng.choice(pace), verb.partition(" ")[0], arguments))
    return steps
