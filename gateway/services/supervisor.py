"""Keeps one service of this process running: starts it after its dependencies and restarts it after an error.

An error in a service does not affect other services. The supervisor counts it and restarts the service after a pause.
The circuit breaker stops the attempts when they keep failing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.broker.client import Unavailable
from gateway.broker.fence import Fence, Fenced
from gateway.core import service_records, timestamps
from gateway.core.circuit_breaker import CircuitBreaker
from gateway.core.position import Position
from gateway.core.publication import Publication, refuse_reserved
from gateway.core.service_records import MAX_ERROR_CHARACTERS, OperationStats, ServiceRecord, ServiceStatus
from gateway.logging import logger
from gateway.services.leadership import LeaderElection, LeaderLease

CHECK_SECONDS: Final = 30.0
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 1.0  # pause after a failed start, doubled up to MAX_RETRY_SECONDS
MAX_RETRY_SECONDS: Final = 30.0

# These fields change with every operation. They are written with the next renewal, not at once.
_QUIET: Final = frozenset({"updateCount", "lastCheck", "lastOperation", "lastErrorAt"})

Publish = Callable[[Publication, Fence | None], Awaitable[Position | None]]
ServiceFunction = Callable[["Run"], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Definition of a service. Each of its functions receives the current `Run`."""

    name: str
    start: ServiceFunction | None = None
    stop: ServiceFunction | None = None  # called after a successful start; has 10 s
    tick: ServiceFunction | None = None  # periodic work
    tick_seconds: float = 0.0  # from the start of one tick to the start of the next
    check: ServiceFunction | None = None  # raises or returns False if the service is unhealthy
    check_seconds: float = CHECK_SECONDS
    depends_on: tuple[str, ...] = ()
    singleton: bool = False
    enabled: bool = True


class Run:
    """One run of a service, from start to stop. It is the argument of the service's functions."""

    def __init__(self, supervisor: Supervisor, publish: Publish, lease: LeaderLease | None) -> None:
        self.name = supervisor.service.name
        self._supervisor = supervisor
        self._publish = publish
        self._lease = lease

    @property
    def token(self) -> int:
        """The fencing token of a singleton: send it with every write, and reject older tokens. 0: not a singleton."""
        return self._lease.token if self._lease is not None else 0

    async def publish(self, topic: str, data: Any, **more: Any) -> Position | None:
        """Publish on `topic`; `more` holds the fields of the HTTP API (`action`, `to`, …).

        The message of a singleton is fenced: Redis rejects it once the lease has ended. This requires a topic with
        history or a snapshot.

        Raises:
            Fenced: Another instance may lead; the run is about to stop.
            ProtocolError: The message is invalid, or the topic is reserved for the gateway.
            TooLarge, Unconfirmed, Unavailable: As `MessagePublisher.publish`.
        """
        publication = Publication.of_python({"topic": topic, "data": data, **more})
        if not service_records.is_reserved(self.name):
            refuse_reserved(publication.topic)
        return await self._publish(publication, self._lease.fence() if self._lease is not None else None)

    @asynccontextmanager
    async def operation(self, name: str) -> AsyncIterator[None]:
        """Measure the block. An exception counts as a failure and propagates."""
        started = asyncio.get_running_loop().time()
        try:
            yield
        except Fenced:
            raise  # the end of a lease is not an error of the service
        except Exception as error:
            self._supervisor.operation_ended(name, started, error)
            raise
        self._supervisor.operation_ended(name, started, None)


class Supervisor:
    """Runs one service (`run`) and holds its record. Calls `changed` with its name and whether to write it at once."""

    def __init__(self, service: Service, host: str, changed: Callable[[str, bool], None]) -> None:
        self.service = service
        self.breaker = CircuitBreaker()
        self.stats = OperationStats()
        self.up = asyncio.Event()  # services that depend on it may start
        self.version = 0  # version of the record; 0: no state was set yet
        self.record: ServiceRecord = {
            "status": ServiceStatus.STARTING if service.enabled else ServiceStatus.DISABLED,
            "running": False,
            "host": host,
            "singleton": service.singleton,
            "dependsOn": list(service.depends_on),
            "updateCount": 0,
        }
        self._changed = changed
        self._log = logger()

    # ---- the record

    def update(
        self, status: ServiceStatus | None = None, error: str | None = None, *, urgent: bool = False, **more: Any
    ) -> None:
        """Change the record; every change comes through here. `urgent`: write it at once in any case."""
        before = self.record
        self.record = {**before, **more, "updateCount": before["updateCount"] + 1}
        if status is not None:
            self.record["status"] = status
        if error is not None:
            self.record |= {"lastError": error[:MAX_ERROR_CHARACTERS], "lastErrorAt": now_iso()}
        self.version = max(self.version + 1, int(time.time() * 1_000_000))
        self._changed(self.service.name, urgent or any(
            value != before.get(name) for name, value in self.record.items() if name not in _QUIET
        ))  # fmt: skip

    def operation_ended(self, name: str, started: float, error: Exception | None) -> None:
        """Count an operation that began at `started` (loop time), with its `error` if it failed."""
        now, before = asyncio.get_running_loop().time(), self.breaker.state
        self.stats.add(now - started, failed=error is not None)
        status = None
        if error is None:
            self.breaker.succeeded(now)
            if self.breaker.state == "closed" and self.record["running"]:
                status = ServiceStatus.ACTIVE
            self.update(status, lastOperation=name, urgent=self.breaker.state != before)
            return
        # An unreachable Redis is not an error of the service, so it does not open the breaker.
        if not isinstance(error, Unavailable) or before == "half-open":
            self.breaker.failed(now)
        status = (
            ServiceStatus.DEGRADED if self.breaker.state == "closed" and self.record["running"] else ServiceStatus.ERROR
        )
        self.update(status, f"{name}: {explain(error)}", lastOperation=name, urgent=self.breaker.state != before)

    def current_record(self) -> ServiceRecord:
        """The record with the current statistics."""
        return {"stats": self.stats.as_dict(self.breaker.state), **self.record}

    # ---- running the service

    async def run(self, needs: Sequence[Supervisor], publish: Publish, election: LeaderElection | None) -> None:
        """Run the service until cancelled: after its dependencies start, and with `election` only while it leads."""
        for other in needs:
            if not other.up.is_set():
                self.update(waitsFor=other.service.name)
                await other.up.wait()
        self.update(waitsFor=None)
        if election is None:
            await self._run_repeatedly(publish, None)
            return
        while True:
            lease = await election.campaign(self._stand_by)
            self._log.info("service leads", service=self.service.name, token=lease.token)
            self.update(ServiceStatus.STARTING, standby=False, token=lease.token)
            loop = asyncio.get_running_loop()
            tasks = [
                loop.create_task(self._run_repeatedly(publish, lease)),
                loop.create_task(election.hold(lease)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                await election.resign(lease.token)
            for error in ended:
                if isinstance(error, Exception):  # an error of the supervisor: errors of the service are caught
                    raise error
            self._log.warning("service lost its lease", service=self.service.name, token=lease.token)
            self.update(token=0)

    def _stand_by(self) -> None:
        self.up.set()  # it runs on another instance
        if not self.record.get("standby"):
            self.update(ServiceStatus.ACTIVE, running=False, standby=True)

    async def _run_repeatedly(self, publish: Publish, lease: LeaderLease | None) -> None:
        """Run the service again and again; return only when Redis reports that the lease has ended."""
        loop, pause = asyncio.get_running_loop(), RETRY_SECONDS
        while True:
            if not self.breaker.allows(loop.time()):
                await asyncio.sleep(max(0.05, self.breaker.wait(loop.time())))
                continue
            run = Run(self, publish, lease)
            if self.record["status"] != ServiceStatus.ERROR:  # the status stays ERROR until a start succeeds
                self.update(ServiceStatus.STARTING)
            try:
                async with run.operation("start"), asyncio.timeout(START_SECONDS):
                    if self.service.start is not None:
                        await self.service.start(run)
                pause = RETRY_SECONDS
                self.update(ServiceStatus.ACTIVE, running=True, startedAt=now_iso())
                self.up.set()
                await self._work(run)
            except Fenced as error:
                self._log.warning("service fenced", service=run.name, reason=str(error))
                return
            except Exception as error:
                self._log.warning("service failed", service=run.name, reason=explain(error))
                self.up.clear()
            finally:
                await self._stop_run(run)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def _work(self, run: Run) -> None:
        """Call tick and check at their intervals. Errors are counted; only `Fenced` ends this method."""
        service, loop = self.service, asyncio.get_running_loop()
        acts = {"tick": (service.tick, service.tick_seconds), "check": (service.check, service.check_seconds)}
        due = {kind: loop.time() for kind, (act, _) in acts.items() if act is not None}
        if not due:
            await loop.create_future()  # no periodic work: wait until the service is stopped
        while True:
            kind = min(due, key=lambda name: due[name])
            await asyncio.sleep(max(0.0, due[kind] - loop.time()))
            act, seconds = acts[kind]
            assert act is not None
            if self.breaker.allows(loop.time()):
                with suppress(_CountedFailure):
                    await self._call(run, kind, act)
            due[kind] = max(due[kind] + seconds, loop.time())  # a long call skips the calls that it delayed

    async def _call(self, run: Run, kind: str, act: ServiceFunction) -> None:
        try:
            async with run.operation(kind):
                if await act(run) is False and kind == "check":
                    raise _CountedFailure("the check returned False")
        except (Fenced, _CountedFailure):
            raise
        except Exception as error:
            raise _CountedFailure from error
        finally:
            if kind == "check":
                self.update(lastCheck=now_iso())

    async def _stop_run(self, run: Run) -> None:
        if not self.record["running"]:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if self.service.stop is not None:
                    await self.service.stop(run)
        except Exception as error:
            self._log.warning("service stop failed", service=run.name, reason=explain(error))
            self.update(error=f"stop: {explain(error)}")
        self.update(running=False)


class _CountedFailure(Exception):
    """A tick or a check failed, and the failure has been counted."""


def explain(error: BaseException) -> str:
    """The error as one short line."""
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    return str(error).split("\n")[0][:MAX_ERROR_CHARACTERS] or type(error).__name__


def now_iso() -> str:
    """The current time in the format of records."""
    return timestamps.iso_time(int(time.time() * 1000))
