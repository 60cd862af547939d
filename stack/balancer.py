"""State of the nodes, read from HAProxy's statistics."""

import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from gateway.core.haproxy_slots import statistics_rows
from stack.place import Place
from stack.waiting import until


@dataclass(frozen=True)
class Server:
    name: str
    address: str
    status: str  # UP, DOWN, "UP 1/2" ...


def servers(place: Place) -> list[Server]:
    """The nodes in HAProxy's order; an empty list while HAProxy does not answer."""
    url = f"http://127.0.0.1:{place.admin_port}/stats;csv"
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            text = reply.read().decode()
    except (OSError, HTTPException):
        return []
    return [
        Server(row["svname"], row["addr"], row["status"])
        for row in statistics_rows(text)
        if row["pxname"] == "gw"
        and row["svname"] != "BACKEND"
        and not row["status"].startswith("MAINT")  # empty slots of Docker's DNS
    ]


def wait_for_all(place: Place, count: int, seconds: float, log: Path | None = None) -> None:
    """Returns when HAProxy reports `count` nodes, all up."""

    def seen() -> str:
        return ", ".join(f"{server.name} {server.status}" for server in servers(place)) or "none"

    until(
        lambda: [server.status for server in servers(place)] == ["UP"] * count,
        seconds,
        lambda: f"HAProxy should report {count} nodes up, but reports {seen()}.",
        log,
    )


def wait_for_one(place: Place, name: str, seconds: float) -> None:
    """Returns when HAProxy reports this node up, a few checks after the node is ready."""
    until(
        lambda: any(server.name == name and server.status == "UP" for server in servers(place)),
        seconds,
        lambda: f"HAProxy does not report {name} up again.",
    )
