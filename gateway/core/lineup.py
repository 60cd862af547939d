"""Which node each server of a load balancer stands for.  (pure)

A load balancer has a fixed number of slots. A node that is ready gets a free one and keeps it, however often it
restarts at its address. A slot is freed when its node has left the registry *and* the load balancer itself has found it
down for a while: neither a lost lease nor a missed check alone says that a node is gone, and one that merely lost Redis
still has its sockets. What is in maintenance by hand stays so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

NOWHERE: Final = "192.0.2.1:9"  # where a free slot leads, here and in haproxy.cfg: nobody's address (RFC 5737)


@dataclass(frozen=True, slots=True)
class Node:
    """A living node, as the registry lists it."""

    id: str
    address: str  # ip:port, IPv6 in brackets
    ready: bool


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the backend, as the load balancer's statistics have it."""

    name: str
    address: str
    status: str  # UP, "UP 1/2", DOWN, MAINT …
    seconds: float  # since it last changed


@dataclass(frozen=True, slots=True)
class Fill:
    """Have a free slot lead to a node, and give it clients."""

    server: str
    address: str
    node: str


@dataclass(frozen=True, slots=True)
class Free:
    """Give a slot no more clients, and have it lead nowhere. Sockets it still has stay open."""

    server: str
    address: str  # where it led


Change = Fill | Free


def changes(
    nodes: Iterable[Node], servers: Sequence[Server], *, own: str, patience_seconds: float
) -> tuple[list[Change], list[str]]:
    """What is to be done, and a sentence for each node that has no place.

    `own`: slots are the servers whose names are this and a number; no other is touched. `patience_seconds`: how long a
    server must have been down for its slot to be freed.
    """
    living = sorted(nodes, key=lambda node: node.id)
    listed = {node.address for node in living}
    known = {server.address for server in servers}
    slots = [server for server in servers if re.fullmatch(rf"{re.escape(own)}\d+", server.name)]
    made: list[Change] = [
        Free(slot.name, slot.address)
        for slot in slots
        if slot.address not in {NOWHERE, *listed}
        and slot.status.startswith("DOWN")
        and slot.seconds >= patience_seconds
    ]
    free = [slot.name for slot in slots if slot.address == NOWHERE]
    homeless: list[str] = []
    for node in living:
        if node.address in known or not node.ready:
            continue
        known.add(node.address)  # two rows may have one address for a lease: of a node that was killed, and of the next
        if free:
            made.append(Fill(free.pop(0), node.address, node.id))
        else:
            homeless.append(f"no slot of {len(slots)} is free for {node.id} ({node.address})")
    return made, homeless
