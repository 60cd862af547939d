"""What is told of a service: states, an instance's record, and what all instances together amount to.  (pure)

A record is JSON, and may be written by any program in any language: `parse` takes what it understands and says what it
does not. docs/services.md describes it.
"""

from __future__ import annotations

import enum
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.core import protocol

MAX_SERVICES: Final = 200  # what the cluster lists: names come from other programs, and metrics carry them
MAX_INSTANCES: Final = 200  # records of one service
MAX_RECORD_BYTES: Final = 16 << 10
MAX_NOTICE_BYTES: Final = 2 * MAX_RECORD_BYTES  # of the notice that a record has changed, which holds it
MAX_ERROR_CHARACTERS: Final = 500
WINDOW: Final = 256  # operations that mean and p99 are taken from

_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")
_INSTANCE = re.compile(r"[A-Za-z0-9_.:\-]{1,100}")


class Status(enum.StrEnum):
    """What a service does, as one of its instances sees it."""

    STARTING = "starting"  # or held back by what it depends on
    ACTIVE = "active"  # a singleton that stands by is, too: it does not run
    DEGRADED = "degraded"  # it runs, and something went wrong lately
    ERROR = "error"  # it does not do its work
    STOPPED = "stopped"
    DISABLED = "disabled"
    OFFLINE = "offline"  # its lease has ended; nobody says this of itself


# From good to bad: what all instances amount to is the worst of them.
_BADNESS: Final = (
    Status.DISABLED, Status.STOPPED, Status.ACTIVE, Status.STARTING, Status.DEGRADED, Status.OFFLINE, Status.ERROR,
)  # fmt: skip
_ENDED: Final = (Status.STOPPED, Status.DISABLED)

Record = dict[str, Any]


class RecordError(ValueError):
    """What somebody told of a service cannot be understood; the message names the field."""


def is_service(name: object) -> bool:
    """Whether `name` is a string that can be a service's."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_reserved(service: str) -> bool:
    """Whether only nodes may report the state of `service`: ``gateway``, and what begins with ``gateway.`` or
    ``gateway:``, in any case."""
    return service.lower().replace(":", ".").partition(".")[0] == "gateway"


def is_instance(name: object) -> bool:
    """Whether `name` is a string that can be an instance's."""
    return isinstance(name, str) and _INSTANCE.fullmatch(name) is not None


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of `statuses`, in whatever order; of none, `offline`."""
    return max(statuses, key=_BADNESS.index, default=Status.OFFLINE)


# ---- one instance's record

_TEXTS: Final = ("startedAt", "lastCheck", "lastOperation", "lastError", "lastErrorAt", "waitsFor", "host")
_NUMBERS: Final = ("version", "updateCount", "token", "leaseEnds")
FIELDS: Final = frozenset({"status", "running", "standby", "singleton", "dependsOn", "stats", *_TEXTS, *_NUMBERS})


def check(record: object) -> Record:
    """`record`, if it is one: an object with a `status`, and no field that a record has not.

    Raises:
        RecordError: It is not.
    """
    if not isinstance(record, dict):
        raise RecordError("A record is a JSON object")
    for name in record:
        if name not in FIELDS:
            raise RecordError(f"{name[:60]!r} is no field of a record; there are {', '.join(sorted(FIELDS))}")
    status = record.get("status")
    if status not in tuple(Status) or status == Status.OFFLINE:
        words = ", ".join(status for status in Status if status is not Status.OFFLINE)
        raise RecordError(f"status must be one of {words}")
    for name in ("running", "standby", "singleton"):
        if not isinstance(record.get(name, False), bool):
            raise RecordError(f"{name} must be true or false")
    for name in _TEXTS:
        text = record.get(name)
        if text is not None and (not isinstance(text, str) or len(text) > MAX_ERROR_CHARACTERS):
            raise RecordError(f"{name} must be text of at most {MAX_ERROR_CHARACTERS} characters, or null")
    for name in _NUMBERS:
        number = record.get(name, 0)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 53:
            raise RecordError(f"{name} must be a whole number from 0 to 2^53 - 1")
    needs = record.get("dependsOn", [])
    if not isinstance(needs, list) or len(needs) > MAX_SERVICES or not all(map(is_service, needs)):
        raise RecordError("dependsOn must be a list of service names")
    stats = record.get("stats")
    if stats is not None and not isinstance(stats, dict):
        raise RecordError("stats must be an object, or null")
    return record


def parse(text: bytes) -> Record:
    """The record in `text`; where there is none, one with the status `error` that says so."""
    try:
        if len(text) > MAX_RECORD_BYTES:
            raise RecordError(f"A record has at most {MAX_RECORD_BYTES} bytes")
        return check(orjson.loads(text))
    except ValueError as error:
        return {"status": Status.ERROR, "lastError": f"its record is not understood: {error}"[:MAX_ERROR_CHARACTERS]}


def encode(record: Mapping[str, Any]) -> bytes:
    """`record` as JSON.

    Raises:
        RecordError: It is larger than a record may be, or no JSON.
    """
    try:
        text = protocol.dumps(record)
    except ValueError as error:
        raise RecordError(f"stats: {error}") from None
    if len(text) > MAX_RECORD_BYTES:
        raise RecordError(f"A record has at most {MAX_RECORD_BYTES} bytes, not {len(text)}")
    return text


# ---- all instances


def aggregate(service: str, records: Mapping[str, Record], now_ms: int) -> dict[str, Any]:
    """A service as a whole: its instances by name, and as its status the worst of those that live.

    `now_ms`: Redis' own time, in which leases end. Who ended in order is not `offline`, but stays what it said.
    """
    instances = []
    for instance, record in sorted(records.items()):
        alive = int(record.get("leaseEnds", 0)) > now_ms
        status = Status(record["status"])
        if not alive and status not in _ENDED:
            status = Status.OFFLINE
        row = {name: value for name, value in record.items() if name not in ("leaseEnds", "status")}
        row["running"] = alive and bool(record.get("running", status in (Status.ACTIVE, Status.DEGRADED)))
        instances.append({"instance": instance, "status": status, "alive": alive, **row})
    living = [Status(row["status"]) for row in instances if row["alive"]]
    failed = [row for row in instances if row.get("lastError")]
    return {
        "service": service,
        "status": worst(living or [Status(row["status"]) for row in instances]),
        "running": sum(bool(row["running"]) for row in instances),
        "instances": instances,
        "dependsOn": sorted({need for row in instances for need in row.get("dependsOn", [])}),
        "lastError": max(failed, key=_error_at)["lastError"] if failed else None,
    }


def _error_at(row: Mapping[str, Any]) -> str:
    return row.get("lastErrorAt") or ""


# ---- how its operations go


@dataclass(slots=True)
class Stats:
    """Operations of one instance: how many, how many failed, how long the last 256 took."""

    operations: int = 0
    failures: int = 0
    _lasted: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, seconds: float, *, failed: bool) -> None:
        """One operation has ended."""
        self.operations += 1
        self.failures += failed
        self._lasted.append(seconds)

    def told(self, breaker: str) -> dict[str, Any]:
        """As a record shows it; null where nothing was measured."""
        lasted = sorted(self._lasted)
        return {
            "operations": self.operations,
            "failures": self.failures,
            "meanMs": round(1000 * sum(lasted) / len(lasted), 3) if lasted else None,
            "p99Ms": round(1000 * lasted[math.ceil(0.99 * len(lasted)) - 1], 3) if lasted else None,
            "breaker": breaker,
        }
