"""The background services of the cluster over HTTP: list, show, report, forget."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.core import dependency_graph, service_records
from gateway.core.service_records import MAX_ERROR_CHARACTERS, MAX_RECORD_BYTES, RecordError, ServiceStatus
from gateway.http.api.openapi import COUNT, Schema, answer, array, in_path, operation, record, ref
from gateway.http.api.resource import ApiError, api_key, node_of, read_body, resource
from gateway.services.states import MAX_LEASE_MS, OutdatedReport, ServiceReport, TooManyServices

MAX_LEASE_SECONDS: Final = MAX_LEASE_MS // 1000
_RESERVED: Final = ("leaseEnds", "token", "standby", "singleton", "updateCount")  # only nodes set these fields


async def list_services(request: Request) -> Any:
    """All services, and the worst of their statuses."""
    found = await node_of(request).services.states.read_all()
    return {"status": service_records.worst_status(service["status"] for service in found), "services": found}


async def show_service(request: Request) -> Any:
    """One service with its instances, its dependencies and its dependants."""
    name, states = _name(request), node_of(request).services.states
    found = {service["service"]: service for service in await states.read_all()}
    if name not in found:
        raise ApiError(404, "not_found", f"No program has reported a service {name}")
    graph = {other: service["dependsOn"] for other, service in found.items()}
    needs = [{"service": need, "status": found[need]["status"] if need in found else None} for need in graph[name]]
    needed = [
        {"service": other, "status": found[other]["status"]} for other in dependency_graph.dependents(graph, name)
    ]
    return {**found[name], "dependencies": needs, "dependants": needed}


async def report_service(request: Request) -> Any:
    """Store the report of one instance: ``{"status", "leaseSeconds", …}``. It is valid until its lease ends."""
    name, key = _name(request), api_key(request)
    if service_records.is_reserved(name):
        raise ApiError(403, "forbidden", f"Only nodes report the state of {name}: choose a name outside gateway.*")
    if not key.may_report(name):
        raise ApiError(403, "forbidden", f"The key {key.name} may not report the state of {name}")
    body = await read_body(request, MAX_RECORD_BYTES)
    if not isinstance(body, dict):
        raise ApiError(400, "bad_request", 'Send {"status", "leaseSeconds", …}')
    report = dict(body)
    instance, seconds = report.pop("instance", "default"), report.pop("leaseSeconds", None)
    if not service_records.is_instance(instance):
        raise ApiError(400, "bad_request", "instance must be 1 to 100 of A-Z a-z 0-9 _ . : -")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= MAX_LEASE_SECONDS:
        raise ApiError(400, "bad_request", f"leaseSeconds must be from 1 to {MAX_LEASE_SECONDS}")
    for field in _RESERVED:
        if field in report:
            raise ApiError(400, "bad_request", f"{field} is set by the gateway; remove it from the report")
    try:
        version = service_records.check(report).pop("version", 0)
        if version > MAX_VERSION:
            raise RecordError(f"version must be at most {MAX_VERSION}")
        [verdict] = await node_of(request).services.states.write(
            [ServiceReport(name, instance, report, int(seconds * 1000), version)]
        )
    except RecordError as error:
        raise ApiError(400, "bad_request", str(error)) from None
    if isinstance(verdict, OutdatedReport):
        raise ApiError(409, "outdated", str(verdict))
    if isinstance(verdict, TooManyServices):
        raise ApiError(409, "too_many", str(verdict))
    return {"service": name, "instance": instance, "version": verdict}


async def forget_service(request: Request) -> Any:
    """Remove the records of a service. A living instance reports again."""
    name = _name(request)
    if not await node_of(request).services.states.forget_service(name):
        raise ApiError(404, "not_found", f"No program has reported a service {name}")
    return {"forgotten": name}


def _name(request: Request) -> str:
    name: str = request.path_params["service"]
    if not service_records.is_service(name):
        raise ApiError(
            404, "not_found", f"{name[:60]!r} is not a service: a name has 1 to 64 characters of A-Z a-z 0-9 _ . : -"
        )
    return name


# The largest version in a report. Redis counts on from it if a report has no version, and JSON readers must be able to
# hold the number exactly.
MAX_VERSION: Final = (1 << 52) - 1

_SERVICE: Final[Schema] = {
    "type": "string", "pattern": r"^[A-Za-z0-9_.:\-]{1,64}$", "examples": ["price-feed"],
}  # fmt: skip
_INSTANCE: Final[Schema] = {"type": "string", "pattern": r"^[A-Za-z0-9_.:\-]{1,100}$", "examples": ["worker-1"]}
_STATUS: Final[Schema] = {"type": "string", "enum": [status.value for status in ServiceStatus]}
_REPORTED_STATUS: Final[Schema] = {
    "type": "string",
    "enum": [s.value for s in ServiceStatus if s is not ServiceStatus.OFFLINE],
}
_TEXT: Final[Schema] = {"type": ["string", "null"], "maxLength": MAX_ERROR_CHARACTERS}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": (1 << 53) - 1}
_STATS: Final[Schema] = {
    "type": ["object", "null"],
    "description": "Of a ServiceManager: operations, failures, meanMs, p99Ms, breaker (closed, open, half-open)",
}
_MORE: Final[Schema] = {
    "running": {"type": "boolean"},
    "startedAt": {**_TEXT, "description": "ISO 8601; so are the other times"},
    "lastCheck": _TEXT,
    "lastOperation": _TEXT,
    "lastError": _TEXT,
    "lastErrorAt": _TEXT,
    "waitsFor": {**_TEXT, "description": "The dependency that it waits for"},
    "host": _TEXT,
    "dependsOn": array(_SERVICE),
    "stats": _STATS,
    "version": {**_WHOLE, "description": "An older record never replaces a newer one of the same instance"},
}
_SUMMARY: Final[Schema] = {
    "service": _SERVICE,
    "status": {**_STATUS, "description": "The worst status of its living instances"},
    "running": {**COUNT, "description": "The number of running instances"},
    "instances": array(ref("ServiceInstance")),
    "dependsOn": array(_SERVICE),
    "lastError": {**_TEXT, "description": "The newest error of any instance"},
}
_RELATED: Final[Schema] = array(record(service=_SERVICE, status={"type": ["string", "null"]}))


def _report_body() -> Schema:
    schema = {
        "type": "object",
        "properties": {
            "status": _REPORTED_STATUS,
            "leaseSeconds": {
                "type": "number", "minimum": 1, "maximum": MAX_LEASE_SECONDS,
                "description": "Without another report the instance is offline after this time",
            },
            "instance": {**_INSTANCE, "default": "default"},
            **_MORE,
            "version": {**_MORE["version"], "maximum": MAX_VERSION},
        },
        "required": ["status", "leaseSeconds"],
        "additionalProperties": False,
    }  # fmt: skip
    example = {"status": "active", "leaseSeconds": 30, "instance": "worker-1", "lastOperation": "fetched 3,500 prices"}
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": {"one": {"value": example}}}},
    }


PATHS: Final[Schema] = {
    "/api/services": {
        "get": operation(
            "listServices", "All services of the cluster with their instances",
            answer(record(status=_STATUS, services=array(ref("Service"))), "Ordered by name, with the worst `status`"),
            description="A service is listed until an hour after the lease of its last instance has ended. At most "
            f"{service_records.MAX_SERVICES} services are listed.",
        )
    },
    "/api/services/{service}": {
        "get": operation(
            "showService", "One service with its dependencies and dependants",
            answer(
                record(**_SUMMARY, dependencies=_RELATED, dependants=_RELATED),
                "`status` is null for a dependency that no program has reported",
            ),
            "NotFound", parameters=[in_path("service", _SERVICE)],
        ),
        "put": operation(
            "reportService", "Report the state of one instance of a service",
            answer(
                record(service=_SERVICE, instance=_INSTANCE, version=_WHOLE),
                "Redis has stored the report, and subscribers are notified",
            ),
            "NoSuchName", "Conflict", parameters=[in_path("service", _SERVICE)], body=_report_body(),
            description="For any program whose key has the scope `services`, or `services:` with a matching pattern. "
            "Names that begin with `gateway.` are reserved for nodes (403). If a report has a `version`, it must grow; "
            "otherwise Redis assigns one.",
        ),
        "delete": operation(
            "forgetService", "Remove the records of a service",
            answer(record(forgotten=_SERVICE), "The records are removed. A living instance reports again"),
            "NotFound", parameters=[in_path("service", _SERVICE)],
        ),
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {
    "Service": record(**_SUMMARY),
    "ServiceInstance": {
        "type": "object",
        "properties": {
            "instance": _INSTANCE,
            "status": _STATUS,
            "alive": {"type": "boolean", "description": "Whether its lease has not ended"},
            "singleton": {"type": "boolean", "description": "Only one of all instances runs"},
            "standby": {"type": "boolean", "description": "It takes over if the running instance dies"},
            "token": {**_WHOLE, "description": "The fencing token of the running instance"},
            "updateCount": _WHOLE,
            **_MORE,
        },
        "required": ["instance", "status", "alive", "running"],
        "additionalProperties": False,
    },
}

ROUTES: Final = [
    resource("/api/services", GET=("read", list_services)),
    resource(
        "/api/services/{service}",
        GET=("read", show_service), PUT=("services", report_service), DELETE=("admin", forget_service),
    ),
]  # fmt: skip
