"""Tells administrators how the services are: all of them on `service`, the open circuit breakers on `circuit-breaker`.

One node does it for the cluster, as the singleton `gateway.announcer`: of several, each would tell every change again.
A message holds everything, so that whoever comes has the whole picture with it, and missing one harms nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from gateway.cluster.keeper import Act, Run
from gateway.cluster.link import Unavailable
from gateway.cluster.services import ServiceManager
from gateway.cluster.snapshots import Snapshots
from gateway.cluster.states import States
from gateway.core.records import Status, worst
from gateway.core.topics import BREAKERS, SERVICES

NAME: Final = "gateway.announcer"
LOOK_SECONDS: Final = 0.05  # between two looks at a part that is not yet well
START_LOOKS: Final = 400  # so many: 20 s, less than a service's start may take
SECONDS: Final = 0.5  # between two looks at what was heard; several changes within make one message
TELL_SECONDS: Final = 86_400.0  # at least so often all is told again: last values do not live for ever
READ_SECONDS: Final = 10.0  # at least so often Redis is read: other programs may change a state without a notice


class Announcer:
    """Compares what Redis holds with what was told last. `start` and `tick` are its service's.

    `heard` gives another value after each notice of a change, and None while notices may be missed.
    """

    def __init__(self, states: States, heard: Callable[[], object]) -> None:
        self.counts: dict[tuple[str, str], int] = {}  # service and status -> instances; empty where it does not lead
        self._states = states
        self._heard = heard
        self._read_at: object = None  # what was heard when Redis was last read
        self._told_due = 0.0  # loop time to tell all again
        self._read_due = 0.0  # loop time to read it again, if nothing is heard until then
        self._services: dict[str, Any] | None = None  # told last, by name; None: nothing, in this run
        self._breakers: dict[str, Any] | None = None

    async def start(self, _run: Run) -> None:
        """Forget what was told: the last leader may have told something else."""
        self._services = self._breakers = self._read_at = None

    async def stop(self, _run: Run) -> None:
        """Another leads, and counts."""
        self.counts = {}

    async def tick(self, run: Run) -> None:
        """Read all services if something may have changed, and tell what has."""
        heard, now = self._heard(), asyncio.get_running_loop().time()
        if heard is not None and heard == self._read_at and now < self._read_due:
            return
        if now >= self._told_due:
            self._services = self._breakers = None
        self._read_at = None  # until what is read now has been told
        found, following = await self._states.survey()
        self.counts = count(found)
        services = {service["service"]: summary(service) for service in found}
        if services != self._services:
            about = {"status": worst(service["status"] for service in found), "services": list(services.values())}
            await run.publish(SERVICES, {**about, "changed": changed(self._services, services)})
            self._services = services
        breakers = {f"{row['service']} {row['instance']}": row for service in found for row in broken(service)}
        if breakers != self._breakers:
            names = sorted({name.partition(" ")[0] for name in changed(self._breakers, breakers)})
            await run.publish(BREAKERS, {"breakers": list(breakers.values()), "changed": names})
            self._breakers = breakers
        if now >= self._told_due:
            self._told_due = now + TELL_SECONDS
        self._read_at, self._read_due = heard, now + min(READ_SECONDS, following)


def register(
    services: ServiceManager, announcer: Announcer, check_seconds: float, parts: Mapping[str, Callable[[], str | None]]
) -> None:
    """Make the node's own work services, so that its state is seen: `parts`, each behind the one before; `announcer`.

    A part gives the reason why it is not well, or None.
    """
    needs: list[str] = []
    for name, reason in parts.items():
        services.register(
            name, start=_until_well(reason), check=_well(reason), check_seconds=check_seconds, depends_on=needs
        )
        needs = [name]
    services.register(
        NAME, start=announcer.start, stop=announcer.stop, tick=announcer.tick, tick_seconds=SECONDS,
        depends_on=needs, singleton=True,
    )  # fmt: skip


def _until_well(reason: Callable[[], str | None]) -> Act:
    """A start that ends when the part is well for the first time: until then the part is `starting`, not at fault."""

    async def start(_run: Run) -> None:
        for _ in range(START_LOOKS):
            if reason() is None:
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise Unavailable(reason() or "it became well too late")

    return start


def _well(reason: Callable[[], str | None]) -> Act:
    async def check(_run: Run) -> None:
        found = reason()
        if found is not None:
            raise Unavailable(found)

    return check


async def last_status(snapshots: Snapshots) -> str | None:
    """What all services amounted to when that was told last; None if nobody has told it.

    Raises:
        Unavailable: Redis did not answer in time.
    """
    text = await snapshots.read(SERVICES)
    try:
        return Status(orjson.loads(text or b"")["data"]["status"])
    except (ValueError, TypeError, KeyError):
        return None  # or another program has said something there


def count(services: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Instances by service and status."""
    counts: dict[tuple[str, str], int] = {}
    for service in services:
        for row in service["instances"]:
            key = service["service"], str(row["status"])
            counts[key] = counts.get(key, 0) + 1
    return counts


def summary(service: dict[str, Any]) -> dict[str, Any]:
    """A service in a line: what is told of it, and what changes there is told."""
    return {
        "service": service["service"],
        "status": service["status"],
        "instances": sum(row["alive"] for row in service["instances"]),
        "running": service["running"],
        "dependsOn": service["dependsOn"],
        "lastError": service["lastError"],
    }


def broken(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The circuit breakers of its living instances that are not closed."""
    return [
        {"service": service["service"], "instance": row["instance"], "state": state, "lastError": row.get("lastError")}
        for row in service["instances"]
        if row["alive"] and (state := (row.get("stats") or {}).get("breaker", "closed")) != "closed"
    ]


def changed(before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
    """The names of what is not as it was."""
    known = before or {}
    return sorted(name for name in {*known, *after} if known.get(name) != after.get(name))
