"""Assigns the nodes of the cluster to the server slots of a load balancer.  (pure)

A load balancer has a fixed number of slots. A ready node gets a free slot and keeps it, even if it restarts at the same
address. A slot becomes free when its node has left the registry *and* the load balancer has found the node down for a
while. One of the two is not enough: a node that only lost Redis still has its sockets. A server that an operator has
put into maintenance stays in maintenance.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

UNUSED_ADDRESS: Final = "192.0.2.1:9"  # the address of a free slot, here and in haproxy.cfg; reserved (RFC 5737)


@dataclass(frozen=True, slots=True)
class ListedNode:
    """A living node, as the registry lists it."""

    id: str
    address: str  # ip:port, IPv6 in brackets
    ready: bool


@dataclass(frozen=True, slots=True)
class HaproxyServer:
    """A server of the backend, as the statistics of the load balancer show it."""

    name: str
    address: str
    status: str  # UP, "UP 1/2", DOWN, MAINT …
    idle_seconds: float  # since the last status change


def statistics_rows(text: str) -> list[dict[str, str]]:
    """The rows of HAProxy's statistics in CSV (`show stat`, `/stats;csv`), by column name."""
    return list(csv.DictReader(text.removeprefix("# ").splitlines()))


@dataclass(frozen=True, slots=True)
class AssignSlot:
    """Assign the free slot `server` to a node and enable it."""

    server: str
    address: str
    node: str


@dataclass(frozen=True, slots=True)
class FreeSlot:
    """Disable the slot `server` and make it free. Its open sockets stay open."""

    server: str
    address: str  # before the change


SlotChange = AssignSlot | FreeSlot


def slot_changes(
    nodes: Iterable[ListedNode], servers: Sequence[HaproxyServer], *, own: str, patience_seconds: float
) -> tuple[list[SlotChange], list[str]]:
    """The changes to make, and a sentence for each node that gets no slot.

    Args:
        nodes: The living nodes.
        servers: The servers of the backend.
        own: Servers named `own` plus a number are slots. Other servers do not change.
        patience_seconds: How long a server must be down before its slot becomes free.
    """
    living = sorted(nodes, key=lambda node: node.id)
    listed = {node.address for node in living}
    known = {server.address for server in servers}
    slots = [server for server in servers if re.fullmatch(rf"{re.escape(own)}\d+", server.name)]
    made: list[SlotChange] = [
        FreeSlot(slot.name, slot.address)
        for slot in slots
        if slot.address not in {UNUSED_ADDRESS, *listed}
        and slot.status.startswith("DOWN")
        and slot.idle_seconds >= patience_seconds
    ]
    free = [slot.name for slot in slots if slot.address == UNUSED_ADDRESS]
    without_slot: list[str] = []
    for node in living:
        if node.address in known or not node.ready:
            continue
        known.add(node.address)  # a killed node and its successor may both be listed with this address
        if free:
            made.append(AssignSlot(free.pop(0), node.address, node.id))
        else:
            without_slot.append(f"no slot of {len(slots)} is free for {node.id} ({node.address})")
    return made, without_slot
