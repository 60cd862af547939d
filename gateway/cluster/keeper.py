"""One service of this process, kept running: started when it may be, tried again after a fault.

A service's own fault is its own: it is counted, the service is tried again with a pause, and its breaker leaves it
alone when that does not help.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.cluster.leader import Fence, Fenced, Leadership, Lease
from gateway.cluster.link import Unavailable
from gateway.core import protocol, records
from gateway.core.breaker import Breaker
from gateway.core.position import Position
from gateway.core.publication import Publication, refuse_reserved
from gateway.core.records import MAX_ERROR_CHARACTERS, Record, Stats, Status
from gateway.logs import logger

CHECK_SECONDS: Final = 30.0
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 1.0  # before a start that failed is tried again; doubled up to the longest
MAX_RETRY_SECONDS: Final = 30.0

# These change with every operation; they are told with the next beat, and nobody is woken for them.
_QUIET: Final = frozenset({"updateCount", "lastCheck", "lastOperation", "lastErrorAt"})

Publish = Callable[[Publication, Fence | None], Awaitable[Position | None]]
Act = Callable[["Run"], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a service is. Each of its functions is given the `Run` it belongs to."""

    name: str
    start: Act | None = None
    stop: Act | None = None  # after a start that succeeded; has 10 s
    tick: Act | None = None  # its work, done again and again
    tick_seconds: float = 0.0  # between the beginnings of two
    check: Act | None = None  # raises, or gives False, when it is not well
    check_seconds: float = CHECK_SECONDS
    depends_on: tuple[str, ...] = ()
    singleton: bool = False
    enabled: bool = True


class Run:
    """One run of a service, from its start to its stop: what its functions are given."""

    def __init__(self, keeper: Keeper, publish: Publish, lease: Lease | None) -> None:
        self.name = keeper.service.name
        self._keeper = keeper
        self._publish = publish
        self._lease = lease

    @property
    def token(self) -> int:
        """A singleton's fencing token: show it wherever you write, and let the older be refused. 0: no singleton."""
        return self._lease.token if self._lease is not None else 0

    async def publish(self, topic: str, data: Any, **more: Any) -> Position | None:
        """Publish on `topic`; `more` as in the HTTP API (`action`, `to`, …). A singleton's message is fenced: once its
        lease has ended, Redis refuses it. That takes a topic with history or a snapshot.

        Raises:
            Fenced: Another may lead; the run is about to be stopped.
            ProtocolError: There can be no such message, or the topic is the gateway's own.
            TooLarge, Unconfirmed, Unavailable: as `Outgoing.publish`.
        """
        publication = Publication.of_python({"topic": topic, "data": data, **more})
        if not records.is_reserved(self.name):
            refuse_reserved(publication.topic)
        return await self._publish(publication, self._lease.fence() if self._lease is not None else None)

    @asynccontextmanager
    async def operation(self, name: str) -> AsyncIterator[None]:
        """Measure what is done inside; what it raises counts as a failure, and goes on."""
        started = asyncio.get_running_loop().time()
        try:
            yield
        except Fenced:
            raise  # the end of a lease is no fault of the service
        except Exception as error:
            self._keeper.ended(name, started, error)
            raise
        self._keeper.ended(name, started, None)


class Keeper:
    """A service's record, and `keep`, which runs it. `changed` is told its name, and whether it matters at once."""

    def __init__(self, service: Service, host: str, changed: Callable[[str, bool], None]) -> None:
        self.service = service
        self.breaker = Breaker()
        self.stats = Stats()
        self.up = asyncio.Event()  # what depends on it may start
        self.version = 0  # of the record; 0: nothing was said of it yet
        self.record: Record = {
            "status": Status.STARTING if service.enabled else Status.DISABLED, "running": False, "host": host,
            "singleton": service.singleton, "dependsOn": list(service.depends_on), "updateCount": 0,
        }  # fmt: skip
        self._changed = changed
        self._log = logger()

    # ---- what is told of it

    def say(self, status: Status | None = None, error: str | None = None, *, loud: bool = False, **more: Any) -> None:
        """Change the record; all that changes it comes through here. `loud`: told at once, whatever it is."""
        before = self.record
        self.record = {**before, **more, "updateCount": before["updateCount"] + 1}
        if status is not None:
            self.record["status"] = status
        if error is not None:
            self.record |= {"lastError": error[:MAX_ERROR_CHARACTERS], "lastErrorAt": now_iso()}
        self.version = max(self.version + 1, int(time.time() * 1_000_000))
        self._changed(self.service.name, loud or any(
            value != before.get(name) for name, value in self.record.items() if name not in _QUIET
        ))  # fmt: skip

    def ended(self, name: str, started: float, error: Exception | None) -> None:
        """An operation that began at `started` (loop time) has ended, with `error` if it failed."""
        now, before = asyncio.get_running_loop().time(), self.breaker.state
        self.stats.add(now - started, failed=error is not None)
        status = None
        if error is None:
            self.breaker.succeeded(now)
            if self.breaker.state == "closed" and self.record["running"]:
                status = Status.ACTIVE
            self.say(status, lastOperation=name, loud=self.breaker.state != before)
            return
        # That Redis is away is no fault of the service: it goes on when Redis does.
        if not isinstance(error, Unavailable) or before == "half-open":
            self.breaker.failed(now)
        status = Status.DEGRADED if self.breaker.state == "closed" and self.record["running"] else Status.ERROR
        self.say(status, f"{name}: {explain(error)}", lastOperation=name, loud=self.breaker.state != before)

    def told(self) -> Record:
        """The record as it is now."""
        return {"stats": self.stats.told(self.breaker.state), **self.record}

    # ---- keeping it running

    async def keep(self, needs: Sequence[Keeper], publish: Publish, leadership: Leadership | None) -> None:
        """Run it until it is cancelled: behind those it needs, and, with `leadership`, while it leads."""
        for other in needs:
            if not other.up.is_set():
                self.say(waitsFor=other.service.name)
                await other.up.wait()
        self.say(waitsFor=None)
        if leadership is None:
            await self._again_and_again(publish, None)
            return
        while True:
            lease = await leadership.campaign(self._stand_by)
            self._log.info("service leads", service=self.service.name, token=lease.token)
            self.say(Status.STARTING, standby=False, token=lease.token)
            loop = asyncio.get_running_loop()
            tasks = [
                loop.create_task(self._again_and_again(publish, lease)),
                loop.create_task(leadership.hold(lease)),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                await leadership.resign(lease.token)
            for error in ended:
                if isinstance(error, Exception):  # a fault of ours: the service's own are caught
                    raise error
            self._log.warning("service leads no more", service=self.service.name, token=lease.token)
            self.say(token=0)

    def _stand_by(self) -> None:
        self.up.set()  # it runs elsewhere
        if not self.record.get("standby"):
            self.say(Status.ACTIVE, running=False, standby=True)

    async def _again_and_again(self, publish: Publish, lease: Lease | None) -> None:
        """One run after the other; it ends by itself only when the lease is found to have ended."""
        loop, pause = asyncio.get_running_loop(), RETRY_SECONDS
        while True:
            if not self.breaker.allows(loop.time()):
                await asyncio.sleep(max(0.05, self.breaker.wait(loop.time())))
                continue
            run = Run(self, publish, lease)
            if self.record["status"] != Status.ERROR:  # which it stays until a start succeeds
                self.say(Status.STARTING)
            try:
                async with run.operation("start"), asyncio.timeout(START_SECONDS):
                    if self.service.start is not None:
                        await self.service.start(run)
                pause = RETRY_SECONDS
                self.say(Status.ACTIVE, running=True, startedAt=now_iso())
                self.up.set()
                await self._work(run)
            except Fenced as error:
                self._log.warning("service was fenced", service=run.name, reason=str(error))
                return
            except Exception as error:
                self._log.warning("service failed", service=run.name, reason=explain(error))
                self.up.clear()
            finally:
                await self._end(run)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def _work(self, run: Run) -> None:
        """Tick and check, each in its own time; a fault is counted, and only `Fenced` ends it."""
        service, loop = self.service, asyncio.get_running_loop()
        acts = {"tick": (service.tick, service.tick_seconds), "check": (service.check, service.check_seconds)}
        due = {what: loop.time() for what, (act, _) in acts.items() if act is not None}
        if not due:
            await loop.create_future()  # it lives by itself until it is stopped
        while True:
            what = min(due, key=lambda name: due[name])
            await asyncio.sleep(max(0.0, due[what] - loop.time()))
            act, seconds = acts[what]
            assert act is not None
            if self.breaker.allows(loop.time()):
                with suppress(_Counted):
                    await self._act(run, what, act)
            due[what] = max(due[what] + seconds, loop.time())  # after a long one the missed are not made up for

    async def _act(self, run: Run, what: str, act: Act) -> None:
        try:
            async with run.operation(what):
                if await act(run) is False and what == "check":
                    raise _Counted("it is not well")
        except (Fenced, _Counted):
            raise
        except Exception as error:
            raise _Counted from error
        finally:
            if what == "check":
                self.say(lastCheck=now_iso())

    async def _end(self, run: Run) -> None:
        if not self.record["running"]:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if self.service.stop is not None:
                    await self.service.stop(run)
        except Exception as error:
            self._log.warning("service did not stop in order", service=run.name, reason=explain(error))
            self.say(error=f"stop: {explain(error)}")
        self.say(running=False)


class _Counted(Exception):
    """A tick or a check failed, and that has been counted."""


def explain(error: BaseException) -> str:
    """An error in one short line."""
    if isinstance(error, TimeoutError) and not str(error):
        return "it took too long"
    return str(error).split("\n")[0][:MAX_ERROR_CHARACTERS] or type(error).__name__


def now_iso() -> str:
    """Now, as records tell it."""
    return protocol.iso(int(time.time() * 1000))
