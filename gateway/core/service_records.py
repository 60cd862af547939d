"""Service records: the status values, the record of one instance, and the aggregate of all instances.  (pure)

A record is JSON. Programs in any language may write it, so `parse` turns an invalid record into one that names the
error. docs/reference/services.md describes the fields.
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

from gateway.core import json_text

MAX_SERVICES: Final = 200  # in the cluster: other programs choose the names, and each name becomes a metric label
MAX_INSTANCES: Final = 200  # records of one service
MAX_RECORD_BYTES: Final = 16 << 10
MAX_NOTICE_BYTES: Final = 2 * MAX_RECORD_BYTES  # of the pub/sub message about a changed record, which contains it
MAX_ERROR_CHARACTERS: Final = 500
STATS_WINDOW: Final = 256  # the latest operations, from which the mean and p99 are computed

_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")
_INSTANCE = re.compile(r"[A-Za-z0-9_.:\-]{1,100}")


class ServiceStatus(enum.StrEnum):
    """The status of a service, as one of its instances reports it."""

    STARTING = "starting"  # also while it waits for its dependencies
    ACTIVE = "active"  # also a standby instance of a singleton, which does not run
    DEGRADED = "degraded"  # it runs, but an error occurred recently
    ERROR = "error"  # it does not work
    STOPPED = "stopped"
    DISABLED = "disabled"
    OFFLINE = "offline"  # its lease has ended; no instance reports this itself


# From best to worst. The aggregate status of a service is the worst status of its instances.
_SEVERITY: Final = (
    ServiceStatus.DISABLED,
    ServiceStatus.STOPPED,
    ServiceStatus.ACTIVE,
    ServiceStatus.STARTING,
    ServiceStatus.DEGRADED,
    ServiceStatus.OFFLINE,
    ServiceStatus.ERROR,
)
_ENDED: Final = (ServiceStatus.STOPPED, ServiceStatus.DISABLED)

ServiceRecord = dict[str, Any]


class RecordError(ValueError):
    """A service record is invalid. The message names the field."""


def is_service(name: object) -> bool:
    """Whether `name` is a valid service name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_reserved(service: str) -> bool:
    """Whether only nodes may report the state of `service`.

    This holds for ``gateway`` and for names that begin with ``gateway.`` or ``gateway:``, in upper or lower case.
    """
    return service.lower().replace(":", ".").partition(".")[0] == "gateway"


def is_instance(name: object) -> bool:
    """Whether `name` is a valid instance name."""
    return isinstance(name, str) and _INSTANCE.fullmatch(name) is not None


def worst_status(statuses: Iterable[ServiceStatus]) -> ServiceStatus:
    """The worst of `statuses`; `offline` if there are none."""
    return max(statuses, key=_SEVERITY.index, default=ServiceStatus.OFFLINE)


# ---- one instance's record

_TEXTS: Final = ("startedAt", "lastCheck", "lastOperation", "lastError", "lastErrorAt", "waitsFor", "host")
_NUMBERS: Final = ("version", "updateCount", "token", "leaseEnds")
FIELDS: Final = frozenset({"status", "running", "standby", "singleton", "dependsOn", "stats", *_TEXTS, *_NUMBERS})


def check(record: object) -> ServiceRecord:
    """Return `record` if it is valid: an object with a `status`, and no unknown field.

    Raises:
        RecordError: The record is invalid.
    """
    if not isinstance(record, dict):
        raise RecordError("A record is a JSON object")
    for name in record:
        if name not in FIELDS:
            raise RecordError(f"{name[:60]!r} is not a field of a record; the fields are {', '.join(sorted(FIELDS))}")
    status = record.get("status")
    if status not in tuple(ServiceStatus) or status == ServiceStatus.OFFLINE:
        words = ", ".join(status for status in ServiceStatus if status is not ServiceStatus.OFFLINE)
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


def parse(text: bytes) -> ServiceRecord:
    """Parse the record in `text`. An invalid text gives a record with the status `error` and the reason."""
    try:
        if len(text) > MAX_RECORD_BYTES:
            raise RecordError(f"A record has at most {MAX_RECORD_BYTES} bytes")
        return check(orjson.loads(text))
    except ValueError as error:
        return {"status": ServiceStatus.ERROR, "lastError": f"its record is invalid: {error}"[:MAX_ERROR_CHARACTERS]}


def encode(record: Mapping[str, Any]) -> bytes:
    """Encode `record` as JSON.

    Raises:
        RecordError: The JSON text is too large, or JSON cannot hold a value.
    """
    try:
        text = json_text.dumps(record)
    except ValueError as error:
        raise RecordError(f"stats: {error}") from None
    if len(text) > MAX_RECORD_BYTES:
        raise RecordError(f"A record has at most {MAX_RECORD_BYTES} bytes, not {len(text)}")
    return text


# ---- all instances


def aggregate(service: str, records: Mapping[str, ServiceRecord], now_ms: int) -> dict[str, Any]:
    """Combine the records of all instances of a service. Its status is the worst status of its living instances.

    `now_ms` is the time of the Redis server, which also counts the leases. An instance whose lease has ended is
    `offline`, unless it reported `stopped` or `disabled` before.
    """
    instances = []
    for instance, record in sorted(records.items()):
        alive = int(record.get("leaseEnds", 0)) > now_ms
        status = ServiceStatus(record["status"])
        if not alive and status not in _ENDED:
            status = ServiceStatus.OFFLINE
        row = {name: value for name, value in record.items() if name not in ("leaseEnds", "status")}
        row["running"] = alive and bool(record.get("running", status in (ServiceStatus.ACTIVE, ServiceStatus.DEGRADED)))
        instances.append({"instance": instance, "status": status, "alive": alive, **row})
    living = [ServiceStatus(row["status"]) for row in instances if row["alive"]]
    failed = [row for row in instances if row.get("lastError")]
    return {
        "service": service,
        "status": worst_status(living or [ServiceStatus(row["status"]) for row in instances]),
        "running": sum(bool(row["running"]) for row in instances),
        "instances": instances,
        "dependsOn": sorted({need for row in instances for need in row.get("dependsOn", [])}),
        "lastError": max(failed, key=_error_at)["lastError"] if failed else None,
    }


def _error_at(row: Mapping[str, Any]) -> str:
    return row.get("lastErrorAt") or ""


# ---- statistics of operations


@dataclass(slots=True)
class OperationStats:
    """The operations of one instance: their number, the failures, and the durations of the last 256."""

    operations: int = 0
    failures: int = 0
    _durations: deque[float] = field(default_factory=lambda: deque(maxlen=STATS_WINDOW))

    def add(self, seconds: float, *, failed: bool) -> None:
        """Count an operation that has ended after `seconds`."""
        self.operations += 1
        self.failures += failed
        self._durations.append(seconds)

    def as_dict(self, breaker: str) -> dict[str, Any]:
        """The `stats` of a record. Values are null if no operation has ended yet."""
        durations = sorted(self._durations)
        return {
            "operations": self.operations,
            "failures": self.failures,
            "meanMs": round(1000 * sum(durations) / len(durations), 3) if durations else None,
            "p99Ms": round(1000 * durations[math.ceil(0.99 * len(durations)) - 1], 3) if durations else None,
            "breaker": breaker,
        }
