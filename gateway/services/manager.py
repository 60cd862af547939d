"""Background services: the manager starts them in order, checks them and publishes their states to the cluster.

A singleton service runs on one instance in the whole cluster:

    async with ServiceManager.connect("redis://127.0.0.1:6379/0") as services:

        @services.every(0.1, singleton=True)
        async def counter(run: Run) -> None:
            await run.publish("counter", {"token": run.token})

        await services.start()
        await asyncio.Event().wait()

An error in a service never stops the manager. When Redis is unreachable, only singletons stop; the manager writes the
changes that it could not write once Redis is back. docs/reference/services.md describes it in full.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import orjson

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.fence import Fenced
from gateway.broker.keys import Keys
from gateway.broker.pubsub import PubSub
from gateway.core import service_records
from gateway.core.service_records import RecordError, ServiceRecord, ServiceStatus
from gateway.delivery.publisher import MAX_MESSAGE_BYTES, MessagePublisher
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.services.leadership import LeaderElection
from gateway.services.service_set import ServiceError, ServiceSet
from gateway.services.states import ENLIST_SECONDS, ServiceReport, ServiceStates, TooManyServices
from gateway.services.supervisor import CHECK_SECONDS, STOP_SECONDS, Publish, Run, Service, ServiceFunction, Supervisor

LEASE_SECONDS: Final = 10.0
RENEWALS_PER_LEASE: Final = 2  # a failed renewal is retried every half second until the lease ends
RETRY_SECONDS: Final = 0.5

ServiceWatcher = Callable[[str, dict[str, Any]], None]  # arguments: the service, and its record with the `instance`
T = TypeVar("T", bound=ServiceFunction)


class ServiceManager:
    """The services of one process. A standalone program uses `connect`; a node creates its own manager."""

    def __init__(
        self, redis: RedisClient, keys: Keys, pubsub: PubSub, publish: Publish, instance: str, *, lease_seconds: float
    ) -> None:
        self.instance = instance
        self.states = ServiceStates(redis, keys)
        self._redis = redis
        self._keys = keys
        self._publish = publish
        self._lease_seconds = lease_seconds
        self._log = logger()
        self._supervisors = ServiceSet(socket.gethostname()[:100], self._on_record_changed)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False
        self._refused: set[str] = set()  # services over the limit, which have been logged
        self._enlist_due = 0.0  # loop time to add all services to the index again
        self._dirty: set[str] = set()  # services whose change is not written yet
        self._wake = asyncio.Event()
        # The last answer of Redis for each service: records, Redis' time and the loop time of the read.
        self._known: dict[str, tuple[dict[str, ServiceRecord], int, float]] = {}
        self._watchers: list[ServiceWatcher] = []
        self._pubsub = pubsub
        self._changes = 0  # number of change notices received, including this process's own
        pubsub.subscribe([keys.service_updates], self._on_update, lambda: None)

    # ---- for a standalone program

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, *, namespace: str = "gw:", name: str | None = None, lease_seconds: float = LEASE_SECONDS,
        timeout_seconds: float = 2.0,
    ) -> AsyncIterator[ServiceManager]:  # fmt: skip
        """A manager on the Redis at `url`, which may still be unreachable. Leaving the context stops the services.

        `name`: name of this program, by default the host name; `namespace`: as the nodes have it; `lease_seconds`: time
        after which a dead instance counts as offline and another instance takes over its singletons.

        Raises:
            ServiceError: `name` is not allowed.
        """
        instance = f"{name or socket.gethostname()[:64]}.{secrets.token_hex(4)}"
        if not service_records.is_instance(instance):
            raise ServiceError(f"{name!r} cannot be a program's name: use at most 90 of A-Z a-z 0-9 _ . : -")
        metrics = Metrics()
        redis = RedisClient(url, timeout_seconds=timeout_seconds, name=f"services-{instance}", metrics=metrics)
        keys = Keys(namespace, redis.sharded)
        pubsub = PubSub(redis, keys.node_channel(instance), metrics)
        publisher = MessagePublisher(redis, keys, None, metrics, max_message_bytes=MAX_MESSAGE_BYTES, now=time.time)

        manager = cls(redis, keys, pubsub, publisher.publish_one, instance, lease_seconds=lease_seconds)
        # No TaskGroup: it would wrap the errors of the caller's block in an ExceptionGroup.
        tasks = [
            asyncio.get_running_loop().create_task(work) for work in (redis.run(), pubsub.run(manager), manager.run())
        ]
        for task in tasks:
            task.add_done_callback(manager._ended)
        try:
            yield manager
        finally:
            try:
                await manager.stop()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await redis.close()

    def pubsub_lost(self, reason: str, _channels: list[str]) -> None:
        """Redis is unreachable: reads are answered from the local copy."""
        self._log.warning("Redis unreachable, service states not written", reason=reason)

    def pubsub_missed(self, channels: list[str]) -> None:
        """Nothing to do: callbacks do not receive changes that were missed (see `watch`)."""

    def pubsub_restored(self) -> None:
        """Redis is back, possibly empty: write all records again."""
        self.rewrite_all()

    # ---- registration

    def register(
        self,
        name: str,
        *,
        start: ServiceFunction | None = None,
        stop: ServiceFunction | None = None,
        tick: ServiceFunction | None = None,
        tick_seconds: float = 0.0,
        check: ServiceFunction | None = None,
        check_seconds: float = CHECK_SECONDS,
        depends_on: Iterable[str] = (),
        singleton: bool = False,
        enabled: bool = True,
    ) -> None:
        """Add one service (see `Service`). Register the services that it depends on first.

        Raises:
            ServiceError: The service is invalid, or depends on an unknown service.
        """
        service = Service(
            name=name, start=start, stop=stop, tick=tick, tick_seconds=tick_seconds, check=check,
            check_seconds=check_seconds, depends_on=tuple(depends_on), singleton=singleton, enabled=enabled,
        )  # fmt: skip
        self.register_all([service])

    def register_all(self, services: Iterable[Service]) -> None:
        """Add several services in any order: either all of them or none.

        Raises:
            ServiceError: A service is invalid, depends on an unknown service, or the dependencies form a cycle.
        """
        added = self._supervisors.add(services)
        if self._started:
            self._launch(added)

    def every(
        self, seconds: float, *, name: str | None = None, depends_on: Iterable[str] = (), singleton: bool = False,
        enabled: bool = True,
    ) -> Callable[[T], T]:  # fmt: skip
        """A decorator that registers an async function as a service, called with its `Run` every `seconds`.

        The default name is the function's name with hyphens.

        Raises:
            ServiceError: As `register`.
        """

        def add(function: T) -> T:
            own = name if name is not None else getattr(function, "__name__", "").replace("_", "-")
            self.register(
                own, tick=function, tick_seconds=seconds, depends_on=depends_on, singleton=singleton, enabled=enabled
            )
            return function

        return add

    def supervisors(self) -> Iterator[Supervisor]:
        """The services of this process."""
        return iter(self._supervisors.values())

    def operation_counts(self) -> Iterator[tuple[str, int, int]]:
        """The services of this process with their numbers of operations and failures."""
        return ((k.service.name, k.stats.operations, k.stats.failures) for k in self._supervisors.values())

    # ---- life

    async def start(self) -> None:
        """Start all services, each after those it depends on. Returns at once; the states show the progress."""
        if not self._started:
            self._started = True
            self._launch(self._supervisors.order)

    async def stop(self) -> None:
        """Stop all services, dependants first. Each has 10 s; one that hangs does not block the others."""
        self._started = False
        for name in reversed(self._supervisors.order):
            supervisor, task = self._supervisors[name], self._tasks.pop(name, None)
            if task is not None:
                task.cancel()
                _, late = await asyncio.wait([task], timeout=STOP_SECONDS + self._redis.timeout_seconds)
                if late:
                    self._log.error("service stop timed out", service=name)
            if supervisor.version and supervisor.record["status"] != ServiceStatus.DISABLED:
                supervisor.update(ServiceStatus.STOPPED, running=False, waitsFor=None)
        with suppress(Unavailable):  # otherwise the leases expire
            await self._write(self._dirty)

    async def run(self) -> None:
        """Write changed records and renew leases until cancelled."""
        loop = asyncio.get_running_loop()
        renewal = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renewal):
                    await self._wake.wait()
            self._wake.clear()
            due = loop.time() >= renewal
            enlist = due and loop.time() >= self._enlist_due
            if enlist:
                self._enlist_due = loop.time() + ENLIST_SECONDS
            try:
                await self._write(self._supervisors if due else self._dirty, enlist=enlist)
            except Unavailable:
                self._enlist_due = 0.0
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
                continue
            if due:
                renewal = loop.time() + self._lease_seconds / RENEWALS_PER_LEASE

    def rewrite_all(self) -> None:
        """Schedule a write of every record: Redis may have lost them."""
        self._dirty.update(self._supervisors)
        self._wake.set()

    def _launch(self, names: Iterable[str]) -> None:
        for name in names:
            supervisor = self._supervisors[name]
            supervisor.update(urgent=True)
            if not supervisor.service.enabled:
                continue
            needs = [self._supervisors[need] for need in supervisor.service.depends_on]
            election = None
            if supervisor.service.singleton:
                election = LeaderElection(self._redis, self._keys, name, self.instance, self._lease_seconds)
            work = supervisor.run(needs, self._publish, election)
            self._tasks[name] = task = asyncio.get_running_loop().create_task(work, name=f"service {name}")
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:  # an error of the manager itself
            self._log.critical("service manager task failed", task=task.get_name(), exc_info=task.exception())

    # ---- states

    async def update_service_state(
        self, service: str, *, status: str, error: str | None = None, operation: str | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Set the state of `service` on this instance. A service that is not registered is registered as disabled.

        True if Redis has the state; False if Redis is unreachable, in which case it is written once Redis is back.

        Raises:
            ServiceError: The service name is invalid, or the limit of services is reached.
            RecordError: The state is invalid.
        """
        more = {"lastOperation": operation, "stats": dict(stats) if stats is not None else None}
        given = {name: value for name, value in more.items() if value is not None}
        service_records.encode(service_records.check({"status": status, **given}))
        if service not in self._supervisors:
            self.register(service, enabled=False)
        running = status in (ServiceStatus.ACTIVE, ServiceStatus.DEGRADED)
        self._supervisors[service].update(ServiceStatus(status), error, running=running, urgent=True, **given)
        try:
            refused = await self._write([service])
        except Unavailable:
            return False
        if service in refused:
            raise ServiceError(refused[service])
        return True

    async def get_service_state(self, service: str) -> dict[str, Any] | None:
        """A service in the whole cluster, with `stale` false; None if there is no record of it.

        If Redis is unreachable, this is the last known state, with `stale` true and `ageSeconds`.
        """
        loop = asyncio.get_running_loop()
        try:
            found, now_ms = await self.states.records(service)
        except Unavailable:
            return self._stale(service)
        if not found:
            self._known.pop(service, None)
            return None
        self._known[service] = found, now_ms, loop.time()
        return {**service_records.aggregate(service, found, now_ms), "stale": False}

    def watch(self, callback: ServiceWatcher) -> Callable[[], None]:
        """Call `callback` with each change of a service's state. The returned function removes it again.

        Changes made while Redis is unreachable are not delivered: read the states that you rely on again.
        """
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def change_marker(self) -> tuple[int, int] | None:
        """A value that differs after any change notice; None if this process receives no notices now.

        While the value stays the same, no service's state has changed, except by the end of a lease.
        """
        confirmed_since = self._pubsub.confirmed_since(self._keys.service_updates)
        return None if confirmed_since is None else (confirmed_since, self._changes)

    def _stale(self, service: str) -> dict[str, Any] | None:
        rows, now_ms, read = self._known.get(service, ({}, 0, None))
        supervisor = self._supervisors.get(service)
        if supervisor is not None and supervisor.version:  # this process knows the newest record of its own instance
            rows = {
                **rows,
                self.instance: {**supervisor.current_record(), "version": supervisor.version, "leaseEnds": now_ms + 1},
            }
        if not rows:
            return None
        age = asyncio.get_running_loop().time() - read if read is not None else 0.0
        return {**service_records.aggregate(service, rows, now_ms), "stale": True, "ageSeconds": round(age, 3)}

    def _on_record_changed(self, service: str, urgent: bool) -> None:
        if urgent:  # other changes wait for the next renewal
            self._dirty.add(service)
            self._wake.set()

    async def _write(self, names: Iterable[str], *, enlist: bool = False) -> dict[str, str]:
        """Write these records; return the services that were rejected because of a limit, with the reason.

        Services with a change are added to the index; with `enlist`, all are.

        Raises:
            Unavailable: Redis did not confirm; the changes stay scheduled.
        """
        written = [name for name in names if self._supervisors[name].version]
        if not written:
            return {}
        dirty = self._dirty.intersection(written)
        self._dirty -= dirty
        reports = [
            ServiceReport(
                name, self.instance, self._supervisors[name].current_record(), int(self._lease_seconds * 1000),
                self._supervisors[name].version, name in dirty,
            )
            for name in written
        ]  # fmt: skip
        try:
            verdicts = await self.states.write(reports, enlist=enlist or bool(dirty or self._refused))
        except BaseException:
            self._dirty |= dirty
            raise
        # An outdated record was overtaken by the next write of this process, which its version shows.
        answered = zip(reports, verdicts, strict=True)
        refused = {report.service: str(verdict) for report, verdict in answered if isinstance(verdict, TooManyServices)}
        for service, reason in refused.items():
            if service not in self._refused:  # Redis rejects it at every renewal; log it once
                self._log.warning("service not listed", service=service, reason=reason)
        self._refused = (self._refused - set(written)) | refused.keys()
        return refused

    def _on_update(self, _channel: str, payload: bytes) -> None:
        self._changes += 1
        try:
            notice = orjson.loads(payload) if len(payload) <= service_records.MAX_NOTICE_BYTES else {}
            if notice["state"] is None:  # `ServiceStates.forget_service` has removed the service from the index
                self._enlist_due = 0.0
                return
            service, state = notice["serviceName"], {"instance": notice.get("instance"), **notice["state"]}
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # other programs can publish anything on this channel
        if not service_records.is_service(service):
            return
        for watcher in list(self._watchers):
            try:
                watcher(service, state)
            except Exception:
                self._log.exception("service watcher failed", service=service)


__all__ = ["Fenced", "RecordError", "Run", "Service", "ServiceError", "ServiceManager", "Unavailable"]
