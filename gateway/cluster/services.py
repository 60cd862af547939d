"""Background services: started in order, watched, shown to the whole cluster; some of them once in it.

    async with ServiceManager.connect("redis://127.0.0.1:6379/0") as services:

        @services.every(0.1, singleton=True)
        async def counter(run: Run) -> None:
            await run.publish("counter", {"token": run.token})

        await services.start()
        await asyncio.Event().wait()

Nothing that a service raises ends the manager. Redis' absence ends no service but singletons; what could not be told is
told after the return. docs/services.md has the whole story.
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

from gateway.cluster.bus import Bus
from gateway.cluster.keeper import CHECK_SECONDS, STOP_SECONDS, Act, Keeper, Publish, Run, Service
from gateway.cluster.keys import Keys
from gateway.cluster.leader import Fence, Fenced, Leadership
from gateway.cluster.link import Link, Unavailable
from gateway.cluster.outgoing import MAX_MESSAGE_BYTES, Outgoing
from gateway.cluster.states import ENLIST_SECONDS, Report, States, TooMany
from gateway.core import dependencies, records
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.records import Record, RecordError, Status
from gateway.logs import logger
from gateway.metrics import Metrics

LEASE_SECONDS: Final = 10.0
BEATS_A_LEASE: Final = 2  # a failed one is tried again every half second, until the lease ends
RETRY_SECONDS: Final = 0.5

Watcher = Callable[[str, dict[str, Any]], None]  # service, its changed record with the `instance` it is of
T = TypeVar("T", bound=Act)


class ServiceError(ValueError):
    """A service that cannot be registered; the message names it."""


class ServiceManager:
    """The services of one process. `connect` makes one for a program of its own; a node makes its own."""

    def __init__(
        self, link: Link, keys: Keys, bus: Bus, publish: Publish, instance: str, *, lease_seconds: float
    ) -> None:
        self.instance = instance
        self.states = States(link, keys)
        self._link = link
        self._keys = keys
        self._publish = publish
        self._lease_seconds = lease_seconds
        self._host = socket.gethostname()[:100]
        self._log = logger()
        self._keepers: dict[str, Keeper] = {}
        self._order: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False
        self._refused: set[str] = set()  # services that Redis lists no more, which was logged
        self._enlist_due = 0.0  # loop time to put all into the index again
        self._dirty: set[str] = set()  # services whose change is to be told
        self._wake = asyncio.Event()
        # What Redis said last of a service: records, Redis' time then, and ours.
        self._known: dict[str, tuple[dict[str, Record], int, float]] = {}
        self._watchers: list[Watcher] = []
        self._bus = bus
        self._changes = 0  # notices of other programs' and our own changes
        bus.listen([keys.service_updates], self._on_update, lambda: None)

    # ---- for a program of its own

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, *, namespace: str = "gw:", name: str | None = None, lease_seconds: float = LEASE_SECONDS,
        timeout_seconds: float = 2.0,
    ) -> AsyncIterator[ServiceManager]:  # fmt: skip
        """A manager on the Redis at `url`; at the end its services are stopped. Redis need not be there yet.

        `name`: of this program, default the host's; `namespace`: the nodes' own; `lease_seconds`: after which a dead
        instance is offline, and a singleton is another's.

        Raises:
            ServiceError: No instance can be called `name`.
        """
        instance = f"{name or socket.gethostname()[:64]}.{secrets.token_hex(4)}"
        if not records.is_instance(instance):
            raise ServiceError(f"{name!r} cannot be a program's name: at most 90 of A-Z a-z 0-9 _ . : -")
        metrics = Metrics()
        link = Link(url, timeout_seconds=timeout_seconds, name=f"services-{instance}", metrics=metrics)
        keys = Keys(namespace, link.sharded)
        bus = Bus(link, keys.own(instance), metrics)
        outgoing = Outgoing(link, keys, None, metrics, max_message_bytes=MAX_MESSAGE_BYTES, now=time.time)

        async def publish(publication: Publication, fence: Fence | None) -> Position | None:
            return (await outgoing.publish([publication], fence=fence))[0]

        manager = cls(link, keys, bus, publish, instance, lease_seconds=lease_seconds)
        # No TaskGroup: it would wrap in a group whatever is raised in the caller's own block.
        tasks = [asyncio.get_running_loop().create_task(work) for work in (link.run(), bus.run(manager), manager.run())]
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
                await link.close()

    def bus_lost(self, reason: str, _channels: list[str]) -> None:
        """Redis is away; what is asked for is answered from the local copy."""
        self._log.warning("Redis is away, the states of services are not told", reason=reason)

    def bus_missed(self, channels: list[str]) -> None:
        """What others told meanwhile is not known; `watch` says so."""

    def bus_resumed(self) -> None:
        """Redis is back, perhaps empty: all is told again."""
        self.tell_all()

    # ---- what there is

    def register(
        self, name: str, *, start: Act | None = None, stop: Act | None = None, tick: Act | None = None,
        tick_seconds: float = 0.0, check: Act | None = None, check_seconds: float = CHECK_SECONDS,
        depends_on: Iterable[str] = (), singleton: bool = False, enabled: bool = True,
    ) -> None:  # fmt: skip
        """Add one service (see `Service`); those it depends on are registered before it.

        Raises:
            ServiceError: It cannot be, or depends on one that is not there.
        """
        service = Service(
            name=name, start=start, stop=stop, tick=tick, tick_seconds=tick_seconds, check=check,
            check_seconds=check_seconds, depends_on=tuple(depends_on), singleton=singleton, enabled=enabled,
        )  # fmt: skip
        self.register_all([service])

    def register_all(self, services: Iterable[Service]) -> None:
        """Add several, in any order, or none of them.

        Raises:
            ServiceError: One cannot be; or they depend on one that is not there, or on each other in a circle.
        """
        added: dict[str, Service] = {}
        for service in services:
            if service.name in self._keepers or service.name in added:
                raise ServiceError(f"{service.name} is registered already")
            added[_possible(service).name] = service
        if len(self._keepers) + len(added) > records.MAX_SERVICES:
            raise ServiceError(f"There may be {records.MAX_SERVICES} services, and no more")
        graph = {name: keeper.service.depends_on for name, keeper in self._keepers.items()}
        graph |= {name: service.depends_on for name, service in added.items()}
        try:
            self._order = dependencies.order(graph)
        except dependencies.DependencyError as error:
            raise ServiceError(str(error)) from None
        self._keepers |= {name: Keeper(service, self._host, self._touch) for name, service in added.items()}
        if self._started:
            self._launch(added)

    def every(
        self, seconds: float, *, name: str | None = None, depends_on: Iterable[str] = (), singleton: bool = False,
        enabled: bool = True,
    ) -> Callable[[T], T]:  # fmt: skip
        """A decorator: the async function is a service, called every `seconds` with its `Run`; it gives it its name.

        Raises:
            ServiceError: as `register`.
        """

        def add(function: T) -> T:
            own = name if name is not None else getattr(function, "__name__", "").replace("_", "-")
            self.register(
                own, tick=function, tick_seconds=seconds, depends_on=depends_on, singleton=singleton, enabled=enabled
            )
            return function

        return add

    def local(self) -> Iterator[Keeper]:
        """This process's services."""
        return iter(self._keepers.values())

    # ---- life

    async def start(self) -> None:
        """Start all, each once what it depends on is up. That is not waited for: the states tell."""
        if not self._started:
            self._started = True
            self._launch(self._order)

    async def stop(self) -> None:
        """Stop all, dependants first; each within 10 s, and none keeps the others from it."""
        self._started = False
        for name in reversed(self._order):
            keeper, task = self._keepers[name], self._tasks.pop(name, None)
            if task is not None:
                task.cancel()
                _, late = await asyncio.wait([task], timeout=STOP_SECONDS + self._link.timeout_seconds)
                if late:
                    self._log.error("service does not stop, and is left to itself", service=name)
            if keeper.version and keeper.record["status"] != Status.DISABLED:
                keeper.say(Status.STOPPED, running=False, waitsFor=None)
        with suppress(Unavailable):  # else the leases end by themselves
            await self._write(self._dirty)

    async def run(self) -> None:
        """Tell what changes, and renew the leases of what was told, for ever."""
        loop = asyncio.get_running_loop()
        beat = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(beat):
                    await self._wake.wait()
            self._wake.clear()
            due = loop.time() >= beat
            enlist = due and loop.time() >= self._enlist_due
            if enlist:
                self._enlist_due = loop.time() + ENLIST_SECONDS
            try:
                await self._write(self._keepers if due else self._dirty, enlist=enlist)
            except Unavailable:
                self._enlist_due = 0.0
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
                continue
            if due:
                beat = loop.time() + self._lease_seconds / BEATS_A_LEASE

    def tell_all(self) -> None:
        """Have every record written again: Redis may have lost them."""
        self._dirty.update(self._keepers)
        self._wake.set()

    def _launch(self, names: Iterable[str]) -> None:
        for name in names:
            keeper = self._keepers[name]
            keeper.say(loud=True)
            if not keeper.service.enabled:
                continue
            needs = [self._keepers[need] for need in keeper.service.depends_on]
            leadership = None
            if keeper.service.singleton:
                leadership = Leadership(self._link, self._keys, name, self.instance, self._lease_seconds)
            work = keeper.keep(needs, self._publish, leadership)
            self._tasks[name] = task = asyncio.get_running_loop().create_task(work, name=f"service {name}")
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:  # a fault of ours: theirs are caught
            self._log.critical("a task of the services died", task=task.get_name(), exc_info=task.exception())

    # ---- states

    async def update_service_state(
        self, service: str, *, status: str, error: str | None = None, operation: str | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Say how `service` is on this instance; one that is not registered here is told of from now on.

        True if Redis has it; False if Redis is away: it is kept, and written after the return.

        Raises:
            ServiceError: There can be no such service, or no more of them.
            RecordError: There can be no such state.
        """
        more = {"lastOperation": operation, "stats": dict(stats) if stats is not None else None}
        given = {name: value for name, value in more.items() if value is not None}
        records.encode(records.check({"status": status, **given}))
        if service not in self._keepers:
            self.register(service, enabled=False)
        running = status in (Status.ACTIVE, Status.DEGRADED)
        self._keepers[service].say(Status(status), error, running=running, loud=True, **given)
        try:
            refused = await self._write([service])
        except Unavailable:
            return False
        if service in refused:
            raise ServiceError(refused[service])
        return True

    async def get_service_state(self, service: str) -> dict[str, Any] | None:
        """A service in the whole cluster, with `stale` false; None if nobody has told of it.

        Without Redis: what was known of it last, with `stale` true and `ageSeconds`.
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
        return {**records.aggregate(service, found, now_ms), "stale": False}

    def watch(self, callback: Watcher) -> Callable[[], None]:
        """Have `callback` called with each change of any service's state; call what it returns to end that.

        What changes while Redis is away is not heard: read again what you rely on.
        """
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def heard(self) -> tuple[int, int] | None:
        """What this process has heard of changes; None if it hears none now.

        While the value stays the same no service's state has changed, except by the end of a lease.
        """
        confirmed_since = self._bus.confirmed_since(self._keys.service_updates)
        return None if confirmed_since is None else (confirmed_since, self._changes)

    def _stale(self, service: str) -> dict[str, Any] | None:
        rows, now_ms, read = self._known.get(service, ({}, 0, None))
        keeper = self._keepers.get(service)
        if keeper is not None and keeper.version:  # of ourselves we know the newest
            rows = {**rows, self.instance: {**keeper.told(), "version": keeper.version, "leaseEnds": now_ms + 1}}
        if not rows:
            return None
        age = asyncio.get_running_loop().time() - read if read is not None else 0.0
        return {**records.aggregate(service, rows, now_ms), "stale": True, "ageSeconds": round(age, 3)}

    def _touch(self, service: str, tell: bool) -> None:
        if tell:  # all else waits for the next beat
            self._dirty.add(service)
            self._wake.set()

    async def _write(self, names: Iterable[str], *, enlist: bool = False) -> dict[str, str]:
        """Write these records; of which there may be no more, and why. Services with a change to tell are put into the
        index, and so are all with `enlist`.

        Raises:
            Unavailable: Redis did not confirm; what was to be told will be.
        """
        told = [name for name in names if self._keepers[name].version]
        if not told:
            return {}
        dirty = self._dirty.intersection(told)
        self._dirty -= dirty
        reports = [
            Report(
                name, self.instance, self._keepers[name].told(), int(self._lease_seconds * 1000),
                self._keepers[name].version, name in dirty,
            )
            for name in told
        ]  # fmt: skip
        try:
            verdicts = await self.states.write(reports, enlist=enlist or bool(dirty or self._refused))
        except BaseException:
            self._dirty |= dirty
            raise
        # An outdated one was overtaken by our own next: that is what versions are for.
        answered = zip(reports, verdicts, strict=True)
        refused = {report.service: str(verdict) for report, verdict in answered if isinstance(verdict, TooMany)}
        for service, reason in refused.items():
            if service not in self._refused:  # it is refused at each beat
                self._log.warning("service not told", service=service, reason=reason)
        self._refused = (self._refused - set(told)) | refused.keys()
        return refused

    def _on_update(self, _channel: str, payload: bytes) -> None:
        self._changes += 1
        try:
            notice = orjson.loads(payload) if len(payload) <= records.MAX_NOTICE_BYTES else {}
            if notice["state"] is None:  # `States.forget` has taken it out of the index
                self._enlist_due = 0.0
                return
            service, state = notice["serviceName"], {"instance": notice.get("instance"), **notice["state"]}
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # other programs may say anything there
        if not records.is_service(service):
            return
        for watcher in list(self._watchers):
            try:
                watcher(service, state)
            except Exception:
                self._log.exception("a watcher of services failed", service=service)


def _possible(service: Service) -> Service:
    if not records.is_service(service.name):
        raise ServiceError(f"{service.name!r} cannot be a service's name: 1 to 64 of A-Z a-z 0-9 _ . : -")
    if service.tick is not None and service.tick_seconds <= 0:
        raise ServiceError(f"{service.name}: tick_seconds must be above 0")
    if service.check_seconds <= 0:
        raise ServiceError(f"{service.name}: check_seconds must be above 0")
    return service


__all__ = ["Fenced", "RecordError", "Run", "Service", "ServiceError", "ServiceManager", "Unavailable"]
