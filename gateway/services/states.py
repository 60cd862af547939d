"""The states of all services in Redis: one record per instance, which contains the end of its lease.

The versions of an instance's records only grow, and Redis rejects an older one, so a delayed write never replaces a
newer record. Readers compare leases with Redis' own time, so the clocks of the hosts do not matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.broker import rows
from gateway.broker.client import RedisClient, RedisCommand, WrongType
from gateway.broker.keys import Keys
from gateway.broker.rows import MAX_TEXT_BYTES
from gateway.core import service_records
from gateway.core.service_records import MAX_INSTANCES, MAX_RECORD_BYTES, MAX_SERVICES, ServiceRecord

# A record outlives its lease by this time: the service is then shown as offline, with its last error.
KEEP_MS: Final = 3_600_000
# Services with a lease are added to the index at least this often, which restores an index that was deleted.
ENLIST_SECONDS: Final = 60.0
# A service stays in the index for this time after the lease that it was added with.
_LISTED_MS: Final = KEEP_MS + int(ENLIST_SECONDS * 1000)
MAX_READ: Final = 5 * MAX_INSTANCES  # records of one service that are read, even if another program wrote more
MAX_LEASE_MS: Final = 86_400_000  # the longest lease of a record
STEP_SERVICES: Final = 5  # services in one Lua step; on a cluster each service has its own slot


class TooManyServices(Exception):
    """The limit of services in the cluster, or of instances of a service, is reached."""


class OutdatedReport(Exception):
    """Redis already has a newer record of the instance."""


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """The record that one instance writes. `version` 0: Redis assigns one, greater than any before."""

    service: str
    instance: str
    record: ServiceRecord
    lease_ms: int
    version: int = 0
    tell: bool = True  # also publish it on `service:state:updated`; False: only renew the lease


class ServiceStates:
    """Writes the records of instances and reads services."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._index_services, self._write_service, self._read_services = (
            redis.script("index_services"),
            redis.script("write_service"),
            redis.script("read_services"),
        )
        self._page_sorted_set = redis.script("page_sorted_set")

    async def write(
        self, reports: Sequence[ServiceReport], *, enlist: bool = True
    ) -> list[int | TooManyServices | OutdatedReport]:
        """Write `reports` in one round trip; return the version of each, or the reason of its rejection.

        Without `enlist` the services are not added to the index; they must already be in it.

        Raises:
            RecordError: A record is too large or not JSON; nothing was written.
            Unavailable: Redis did not confirm.
        """
        texts = [service_records.encode(report.record) for report in reports]
        leases = [part for report in reports for part in (report.service, report.lease_ms)]
        commands: list[RedisCommand] = []
        if enlist:
            bounds = [_LISTED_MS, MAX_SERVICES, _LISTED_MS + MAX_LEASE_MS]
            commands.append(self._index_services([self._keys.services], [*bounds, *leases]))
        parts: list[list[Any]] = []  # arguments for each report
        for report, text in zip(reports, texts, strict=True):
            channel = self._keys.service_updates if report.tell else ""
            notice = orjson.dumps({"serviceName": report.service, "instance": report.instance})
            parts.append([
                report.instance, report.version, text, report.lease_ms, KEEP_MS, MAX_INSTANCES, channel,
                notice[:-1] + b',"state":',
            ])  # fmt: skip
        keys = [self._keys.service(report.service) for report in reports]
        for part in self._steps(len(reports)):
            arguments = list(itertools.chain.from_iterable(parts[part]))
            commands.append(self._write_service(keys[part], arguments))
        answers = await self._redis.execute_all(commands)
        listed = answers.pop(0) if enlist else [1] * len(reports)
        flat = itertools.chain.from_iterable(answers)
        return [_verdict(*each) for each in zip(listed, flat, flat, strict=True)]

    async def records(self, service: str) -> tuple[dict[str, ServiceRecord], int]:
        """The records of a service by instance, and Redis' time in ms. Records expire one hour after their lease.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        [found] = await self._read([service])
        return found

    async def read_service(self, service: str) -> dict[str, Any] | None:
        """A service with its instances; None if it has no record that was renewed in the last hour.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        found, now_ms = await self.records(service)
        return service_records.aggregate(service, found, now_ms) if found else None

    async def read_all(self) -> list[dict[str, Any]]:
        """All services, sorted by name.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return (await self.survey())[0]

    async def survey(self) -> tuple[list[dict[str, Any]], float]:
        """All services, sorted by name, and the seconds until the next lease of an instance ends if it is not renewed.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        # Other programs may have listed more services than the limit; the newest are shown.
        names = sorted(await self._names())
        found = [
            (name, rows, now_ms) for name, (rows, now_ms) in zip(names, await self._read(names), strict=True) if rows
        ]
        left_ms = [int(record.get("leaseEnds", 0)) - now_ms for _, rows, now_ms in found for record in rows.values()]
        following = min((left for left in left_ms if left > 0), default=math.inf)
        return [service_records.aggregate(*each) for each in found], following / 1000

    async def forget_service(self, service: str) -> bool:
        """Remove all records of a service; False if there were none. Running instances write theirs again.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        notice = orjson.dumps({"serviceName": service, "instance": None, "state": None})
        commands = [
            ("ZREM", self._keys.services, service), ("UNLINK", self._keys.service(service)),
            ("PUBLISH", self._keys.service_updates, notice),
        ]  # fmt: skip
        return any((await self._redis.execute_all(commands))[:2])

    async def _names(self) -> list[str]:
        key, decoder = self._keys.services, self._redis.rows
        arguments = ["ZREVRANGE", 0, MAX_SERVICES - 1, MAX_TEXT_BYTES]
        try:
            looked_at, flat = await self._redis.execute(*self._page_sorted_set([key], arguments))
        except WrongType as error:
            decoder.skip("service", key, error)
            return []
        if looked_at > len(flat) // 2:
            decoder.skip("service", key, "a name is too long", looked_at - len(flat) // 2)
        return list(decoder.decode_each("service", key, flat[::2], _name))

    async def _read(self, names: Sequence[str]) -> list[tuple[dict[str, ServiceRecord], int]]:
        keys = [self._keys.service(name) for name in names]
        arguments = [MAX_READ, MAX_RECORD_BYTES]
        answers = await self._redis.execute_all(
            [self._read_services(keys[part], arguments) for part in self._steps(len(keys))]
        )
        return [(_kept(dict(rows.pairs(flat)), now_ms), now_ms) for now_ms, *each in answers for flat in each]

    def _steps(self, services: int) -> Iterator[slice]:
        """Slices of a list of services, one per Lua step."""
        size = 1 if self._redis.sharded else STEP_SERVICES
        return (slice(at, at + size) for at in range(0, services, size))


def _name(member: bytes) -> str:
    name = rows.text(member)
    if not service_records.is_service(name):
        raise ValueError(f"{rows.shown(name)} is not a service name")
    return name


def _verdict(listed: int, done: int, answered: bytes) -> int | TooManyServices | OutdatedReport:
    number = int(answered)
    if not listed:
        return TooManyServices(f"The cluster lists at most {MAX_SERVICES} services: forget one before you add another")
    if done < 0:
        return TooManyServices(
            f"The service has {number} instances, which is the limit: stop one before you start another"
        )
    return number if done else OutdatedReport(f"The record is older than version {number}, which Redis already has")


def _kept(rows: dict[bytes, bytes], now_ms: int) -> dict[str, ServiceRecord]:
    found = {instance.decode(errors="replace"): service_records.parse(text) for instance, text in rows.items()}
    # A foreign record that cannot be parsed has no lease. It is shown all the same, so that people can find it.
    return {i: record for i, record in found.items() if record.get("leaseEnds", now_ms) + KEEP_MS > now_ms}
