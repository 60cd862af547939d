"""Publishes the states of services for administrators: all on `service`, open circuit breakers on `circuit-breaker`.

One node does this for the cluster, as the singleton `gateway.announcer`, so that each change is published once. Each
message contains the complete state, so a client that misses one is up to date with the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from gateway.broker.client import Unavailable
from gateway.broker.snapshots import Snapshots
from gateway.core import message
from gateway.core.service_records import ServiceStatus, worst_status
from gateway.core.topic_rules import BREAKERS, SERVICES
from gateway.services.manager import ServiceManager
from gateway.services.states import ServiceStates
from gateway.services.supervisor import Run, ServiceFunction

NAME: Final = "gateway.announcer"
POLL_SECONDS: Final = 0.05  # between two checks of a part that is not healthy yet
START_CHECKS: Final = 400  # number of these checks: 20 s, less than the time limit of a start
SECONDS: Final = 0.5  # between two checks for change notices; changes within this time make one message
REPUBLISH_SECONDS: Final = 86_400.0  # everything is published again at least this often: snapshots expire
READ_SECONDS: Final = 10.0  # Redis is read at least this often: other programs may write a state without a notice


class StatusPublisher:
    """Publishes service states that changed since the last message. `start`, `stop` and `tick` belong to its service.

    `change_marker` returns a new value after each change notice, and None while notices may be missed.
    """

    def __init__(self, states: ServiceStates, change_marker: Callable[[], object]) -> None:
        self._counts: dict[tuple[str, str], int] = {}  # (service, status) -> instances; empty unless this node leads
        self._states = states
        self._change_marker = change_marker
        self._read_at: object = None  # the change marker when Redis was last read
        self._republish_due = 0.0  # loop time to publish everything again
        self._read_due = 0.0  # loop time to read Redis again if no notice arrives before
        self._services: dict[str, Any] | None = None  # last published, by name; None: nothing in this run
        self._breakers: dict[str, Any] | None = None

    def instance_counts(self) -> dict[tuple[str, str], int]:
        """Instances by service and status; empty unless this node leads."""
        return self._counts

    async def start(self, _run: Run) -> None:
        """Forget the last message: another leader may have published since."""
        self._services = self._breakers = self._read_at = None

    async def stop(self, _run: Run) -> None:
        """Clear the counts: another node leads now."""
        self._counts = {}

    async def tick(self, run: Run) -> None:
        """Read all services if one may have changed, and publish the changes."""
        marker, now = self._change_marker(), asyncio.get_running_loop().time()
        if marker is not None and marker == self._read_at and now < self._read_due:
            return
        if now >= self._republish_due:
            self._services = self._breakers = None
        self._read_at = None  # read again unless everything below succeeds
        found, following = await self._states.survey()
        self._counts = count_instances(found)
        services = {service["service"]: summary(service) for service in found}
        if services != self._services:
            about = {
                "status": worst_status(service["status"] for service in found),
                "services": list(services.values()),
            }
            await run.publish(SERVICES, {**about, "changed": changed_fields(self._services, services)})
            self._services = services
        breakers = {f"{row['service']} {row['instance']}": row for service in found for row in open_breakers(service)}
        if breakers != self._breakers:
            names = sorted({name.partition(" ")[0] for name in changed_fields(self._breakers, breakers)})
            await run.publish(BREAKERS, {"breakers": list(breakers.values()), "changed": names})
            self._breakers = breakers
        if now >= self._republish_due:
            self._republish_due = now + REPUBLISH_SECONDS
        self._read_at, self._read_due = marker, now + min(READ_SECONDS, following)


def register_node_services(
    services: ServiceManager,
    status_publisher: StatusPublisher,
    check_seconds: float,
    parts: Mapping[str, Callable[[], str | None]],
) -> None:
    """Register the node's own parts as services, each depending on the previous one, then the status publisher.

    `parts`: functions that return the reason why the part is unhealthy, or None.
    """
    needs: list[str] = []
    for name, reason in parts.items():
        services.register(
            name, start=_until_healthy(reason), check=_healthy(reason), check_seconds=check_seconds, depends_on=needs
        )
        needs = [name]
    services.register(
        NAME,
        start=status_publisher.start,
        stop=status_publisher.stop,
        tick=status_publisher.tick,
        tick_seconds=SECONDS,
        depends_on=needs,
        singleton=True,
    )


def _until_healthy(reason: Callable[[], str | None]) -> ServiceFunction:
    """A start function that returns once the part is healthy; until then its status is `starting`, not an error."""

    async def start(_run: Run) -> None:
        for _ in range(START_CHECKS):
            if reason() is None:
                return
            await asyncio.sleep(POLL_SECONDS)
        raise Unavailable(reason() or "healthy only after the time limit")

    return start


def _healthy(reason: Callable[[], str | None]) -> ServiceFunction:
    async def check(_run: Run) -> None:
        found = reason()
        if found is not None:
            raise Unavailable(found)

    return check


async def last_status(snapshots: Snapshots) -> str | None:
    """The overall status of the services in the last message; None if there is no message.

    Raises:
        Unavailable: Redis did not answer in time.
    """
    body = await snapshots.read(SERVICES)
    try:
        return ServiceStatus(orjson.loads(message.unpack(body or b"")[3])["status"])
    except (ValueError, TypeError, KeyError):
        return None  # no message, or another program published there


def count_instances(services: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Number of instances by service and status."""
    counts: dict[tuple[str, str], int] = {}
    for service in services:
        for row in service["instances"]:
            key = service["service"], str(row["status"])
            counts[key] = counts.get(key, 0) + 1
    return counts


def summary(service: dict[str, Any]) -> dict[str, Any]:
    """The published fields of a service; a change of one of them is published."""
    return {
        "service": service["service"],
        "status": service["status"],
        "instances": sum(row["alive"] for row in service["instances"]),
        "running": service["running"],
        "dependsOn": service["dependsOn"],
        "lastError": service["lastError"],
    }


def open_breakers(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The circuit breakers that are not closed, of the service's living instances."""
    return [
        {"service": service["service"], "instance": row["instance"], "state": state, "lastError": row.get("lastError")}
        for row in service["instances"]
        if row["alive"] and (state := (row.get("stats") or {}).get("breaker", "closed")) != "closed"
    ]


def changed_fields(before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
    """The names whose values differ."""
    known = before or {}
    return sorted(name for name in {*known, *after} if known.get(name) != after.get(name))
