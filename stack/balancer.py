"""What HAProxy says of the nodes, read from its statistics."""

import csv
import io
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from stack.place import Place
from stack.waiting import until


@dataclass(frozen=True)
class Server:
    name: str
    address: str
    status: str  # UP, DOWN, "UP 1/2" ...


def servers(place: Place) -> list[Server]:
    """The nodes HAProxy knows, in its order; none while it does not answer."""
    url = f"http://127.0.0.1:{place.admin_port}/stats;csv"
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            text = reply.read().decode()
    except (OSError, HTTPException):
        return []
    return [
        Server(row["svname"], row["addr"], row["status"])
        for row in csv.DictReader(io.StringIO(text.removeprefix("# ")))
        if row["pxname"] == "gw"
        and row["svname"] != "BACKEND"
        and not row["status"].startswith("MAINT")  # slots that Docker's DNS fills with nobody
    ]


def wait_for_all(place: Place, count: int, seconds: float, log: Path | None = None) -> None:
    """Returns when HAProxy knows `count` nodes and all are up."""

    def seen() -> str:
        return ", ".join(f"{server.name} {server.status}" for server in servers(place)) or "none"

    until(
        lambda: [server.status for server in servers(place)] == ["UP"] * count,
        seconds,
        lambda: f"HAProxy does not see {count} nodes up, but {seen()}.",
        log,
    )


def wait_for_one(place: Place, name: str, seconds: float) -> None:
    """Returns when this node is up for HAProxy, which is a few checks after it says so itself."""
    until(
        lambda: any(server.name == name and server.status == "UP" for server in servers(place)),
        seconds,
        lambda: f"HAProxy does not see {name} up again.",
    )
