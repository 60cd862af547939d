"""One gateway process: creates its parts, runs them and leaves the cluster at the end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import orjson

from gateway import __version__, announcer
from gateway.admission import Admission, most_connections
from gateway.announcer import Announcer
from gateway.auth import apikeys
from gateway.auth.referee import Referee
from gateway.auth.trust import Trust
from gateway.backend import Backend
from gateway.calls import Calls
from gateway.clients import Clients
from gateway.cluster import memory, servers
from gateway.cluster.bus import Bus
from gateway.cluster.cache import Cache
from gateway.cluster.keys import Keys
from gateway.cluster.leader import Fence
from gateway.cluster.link import Durability, Link, Unavailable
from gateway.cluster.memory import RedisMemory
from gateway.cluster.outgoing import RULES_LIFE_SECONDS, Outgoing
from gateway.cluster.presence import Attendance
from gateway.cluster.quota import Allowance, Quota
from gateway.cluster.registry import Memory, Registry
from gateway.cluster.services import ServiceManager
from gateway.cluster.slots import Slots
from gateway.condition import Condition
from gateway.control import Control
from gateway.core import hub
from gateway.core.hub import Hub
from gateway.core.identity import Identity
from gateway.core.inflow import Inflow
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.session import Rules
from gateway.core.sources import Sources
from gateway.core.topics import TopicRules
from gateway.departures import Departures
from gateway.errands import Budgets, Errands
from gateway.heartbeat import BEATS_PER_LEASE, Heartbeat
from gateway.housekeeping import Housekeeping
from gateway.logs import logger
from gateway.memberships import Memberships
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.presence import Presence
from gateway.reaper import Reaper
from gateway.relay import Relay
from gateway.reporter import Reporter
from gateway.rulewatch import COMPARE_SECONDS, RuleWatch
from gateway.settings import Settings


class Node:
    """Composes hub, bus, registry and clients, and keeps them running.

    `now` gives seconds since 1970.
    """

    def __init__(self, settings: Settings, rules: TopicRules, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        # The second part is new at each start: a pid is unique neither across hosts nor across restarts.
        self.id = f"{settings.node}.{secrets.token_hex(4)}"
        self.failure: BaseException | None = None  # the error that ended a task of the node
        self._announced = False
        self.leave: Callable[[], None] = lambda: None  # makes the process drain and exit; the server sets it
        self.metrics = metrics = Metrics()
        self._now = now
        self._log = logger()
        self._hub = Hub(wake=lambda: self.relay.wake(), evict=lambda subscriber: outbox.evict(subscriber))
        self._link = Link(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name=f"gateway-{self.id}",
            metrics=metrics, durability=Durability(settings.wait_replicas, settings.wait_seconds, settings.wait_fsync),
        )  # fmt: skip
        self._keys = keys = Keys(settings.namespace, self._link.sharded)
        self.api_keys = apikeys.load(settings)
        self.trust = Trust(settings, self._link, keys, metrics, now)
        self._bus = Bus(self._link, keys.own(self.id), metrics)
        self._attendance = Attendance(self._link, keys, self.id)
        self.presence = Presence(self._attendance, grace_seconds=settings.presence_grace_seconds, now_ms=self._ms)
        self._rules_digest = rules.digest
        self._outgoing = Outgoing(
            self._link, keys, rules, metrics, max_message_bytes=settings.max_message_bytes, now=now
        )
        self.relay = Relay(
            hub=self._hub, bus=self._bus, link=self._link, keys=keys, rules=rules, metrics=metrics,
            outgoing=self._outgoing,
            max_message_bytes=settings.max_message_bytes, now=now, spawn=self._spawn, presence=self.presence,
        )  # fmt: skip
        self.registry = Registry(
            self._link, keys, self.id, lease_seconds=settings.lease_seconds, memory=self._memory(), metrics=metrics
        )
        self._rule_watch = RuleWatch(self.registry, self._rules_digest)
        # Separate connections, so that large values do not delay a heartbeat.
        self._cache_link = Link(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name=f"gateway-cache-{self.id}",
            metrics=metrics,
        )  # fmt: skip
        self._link.followers.append(self._cache_link)
        self.cache = Cache(self._cache_link, keys, self._bus, metrics, self._spawn)
        self.backend = self._make_backend()  # None: no back end
        self._slots = Slots(
            self._link, keys, self.id, lease_seconds=settings.lease_seconds,
            user_limit=settings.max_user_connections, address_limit=settings.max_address_connections,
        )  # fmt: skip
        self.services = ServiceManager(
            self._link, keys, self._bus, self._publish, self.id, lease_seconds=settings.lease_seconds
        )
        self._announcer = Announcer(self.services.states, self.services.change_marker)
        announcer.register(
            self.services, self._announcer, settings.lease_seconds / BEATS_PER_LEASE,
            {
                "gateway.bus": lambda: self._bus.reason or self._bus.partial,
                "gateway.registry": lambda: self._heartbeat.reason or self._heartbeat.impaired,
            },
        )  # fmt: skip
        outbox = Outbox(self._hub, metrics, self._ms)
        sources = Sources(settings.trusted_proxies)
        self._redis_memory = RedisMemory(self._link, metrics, settings.redis_memory_bytes)
        self.admission = Admission(
            Inflow(most_connections(settings.max_connections), settings.connects_per_second), self._slots,
            sources, outbox, metrics, self._spawn,
        )  # fmt: skip
        calls = None
        if self.backend is not None:
            calls = Calls(self.backend, self.cache, outbox, self.id, self._redis_memory, self._spawn)
        self.clients = Clients(
            settings, self.id,
            rules=Rules(
                self.trust.authenticator.verify, self.trust.authenticator.verify_grant, rules,
                settings.max_client_topics, settings.open, backend=self.backend is not None,
            ),
            hub=self._hub, relay=self.relay, outbox=outbox,
            memberships=Memberships(
                self._hub, self.relay, self.registry, outbox, self._spawn,
                answer_seconds=settings.redis_timeout_seconds,
            ),
            errands=Errands(
                self.relay, outbox,
                Budgets(
                    Quota(self._link, keys, settings.user_publishes_per_second),
                    Allowance(self._link, keys, settings.user_stored_bytes), self._redis_memory, sources,
                ),
                Referee(self.backend, metrics), self.trust.refresh_keys, metrics, self._spawn,
            ),
            calls=calls, admission=self.admission,
            metrics=metrics, status=lambda: self.condition.status(), now_ms=self._ms,
        )  # fmt: skip
        self.departures = Departures(self.clients, outbox, drain_seconds=settings.drain_seconds)
        self.relay.on_gap = self.clients.gap
        self.relay.on_missed = self.clients.outages.bus_missed
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat = Heartbeat(self.registry, lease_seconds=settings.lease_seconds, renewed=self._on_lease)
        self.condition = Condition(
            settings, self.id, clients=self.clients, hub=self._hub, bus=self._bus, trust=self.trust,
            heartbeat=self._heartbeat, departures=self.departures, metrics=metrics, now_ms=self._ms,
        )  # fmt: skip
        self.control = Control(
            self.id, link=self._link, keys=keys, clients=self.clients, streams=self.relay.streams, trust=self.trust,
            departures=self.departures, metrics=metrics, leave=lambda: self.leave(), spawn=self._spawn,
        )  # fmt: skip
        self._reporter = Reporter(self.relay, metrics, self.condition.report)
        self._housekeeping = self._make_housekeeping()
        metrics.read_services(
            lambda: ((k.service.name, k.stats.operations, k.stats.failures) for k in self.services.local()),
            lambda: self._announcer.counts,
        )

    # ---- lifecycle

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """Run the tasks of the node, and delete its rows from Redis at the end. Redis may still be unreachable."""
        self._listen()
        self._spawn(self._link.run(), "publisher")
        self._spawn(self._bus.run(self.clients.outages), "bus")
        self._spawn(self.registry.run(self._heartbeat.wake), "registry")
        self._spawn(self.presence.run(self.clients), "presence")
        self._spawn(self._slots.run(), "slots")
        self._spawn(self.trust.run(), "keys")
        self._spawn(self._heartbeat.run(), "beat")
        self._spawn(self._housekeeping.run(), "housekeeping")
        self._spawn(self.condition.watch(self._on_readiness), "readiness")
        self._spawn(self._sweep(), "sweep")
        self._spawn(self._reporter.measure_lag(), "lag")
        self._spawn(self._reporter.run(), "figures")
        self._spawn(self.services.run(), "services")
        await self.services.start()
        for warning in self.settings.warnings():
            self._log.warning(warning)
        self._log.info("node started", id=self.id, version=__version__, redis=servers.describe(self.settings.redis_url))
        try:
            yield
        finally:
            await self.services.stop()
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            try:
                await self.presence.flush(self.clients)
                await self._slots.leave()
                await self.registry.leave()
            except Unavailable as error:
                self._log.warning("rows not removed, expiring with the lease", reason=str(error))
            await self._link.close()
            await self._cache_link.close()
            if self.backend is not None:
                await self.backend.close()
            self._log.info("node left", id=self.id)

    def _memory(self) -> Memory:
        return Memory(
            about=lambda: {**self.condition.row(), "rules": self._rules_digest},
            client=lambda client_id: self.clients.row(client_id),
            clients=lambda: self.clients.ids(),
            topic=lambda topic: self._hub.count(hub.of_topic(topic)),
            topics=self._hub.topics,
            dropped=lambda topics: self.presence.rewrite(filter(self.relay.has_presence, topics)),
        )

    def _make_backend(self) -> Backend | None:
        settings = self.settings
        if not settings.backend_url:
            return None
        backend = Backend(
            settings.backend_url, secret=settings.backend_secret, timeout_seconds=settings.backend_timeout_seconds,
            connections=settings.backend_connections, max_answer_bytes=settings.max_message_bytes,
            metrics=self.metrics, now=self._now,
        )  # fmt: skip
        self.metrics.read(
            {"gateway_backend_waiting": lambda: backend.waiting, "gateway_backend_open": lambda: backend.open}, {}
        )
        return backend

    def _listen(self) -> None:
        listeners = {
            self._keys.own(self.id): self.clients.on_node_channel,
            self._keys.control: self.control.on_order,
            self._keys.ingest: self.relay.on_ingest,
        }
        waiting = len(listeners)

        def confirmed() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self.condition.listening = True
                self._heartbeat.wake()

        for channel, callback in listeners.items():
            self._bus.listen([channel], callback, confirmed)

    async def _publish(self, publication: Publication, fence: Fence | None) -> Position | None:
        return (await self._outgoing.publish([publication], fence=fence))[0]

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        # A node with a dead task must not go on: it leaves, and its supervisor starts another. Logging comes last.
        self.failure = task.exception()
        self.leave()
        self._log.critical("task failed, node leaves", task=task.get_name(), exc_info=self.failure)

    # ---- periodic work

    def _make_housekeeping(self) -> Housekeeping:
        interval = self.settings.lease_seconds / BEATS_PER_LEASE
        steps = Housekeeping(self.metrics)
        reaper = Reaper(
            self._link, self._keys, self.registry, channel=self.relay.channel, found=lambda: steps.wake("reap"),
            now_ms=self._ms,
        )  # fmt: skip
        steps.add("enroll", reaper.enroll, seconds=self.settings.lease_seconds)  # and after each heartbeat
        steps.add("reap", reaper.reap, seconds=None)
        steps.add("self-check", self._check_bus, seconds=interval)
        steps.add("streams", self.relay.streams.check, seconds=interval)
        steps.add("presence", self.presence.check, seconds=self.settings.lease_seconds)
        steps.add("revocations", self.control.check_revocations, seconds=interval)
        steps.add("services", self._read_services, seconds=self.settings.lease_seconds)
        steps.add("memory", self._redis_memory.check, seconds=memory.CHECK_SECONDS)
        steps.add("rules", self._outgoing.write_rules, seconds=RULES_LIFE_SECONDS / 24)
        steps.add("compare rules", self._compare_rules, seconds=COMPARE_SECONDS)
        steps.add("announce", self._announce, seconds=None)
        return steps

    async def _compare_rules(self) -> None:
        self.relay.rules_differ = await self._rule_watch.compare()

    def _on_lease(self, kept: bool) -> None:
        self._housekeeping.wake("enroll")  # after the lease, so that no reaper finds the node before its lease ends
        if not kept:
            self.presence.rewrite()
            self._slots.rewrite()
            self.services.rewrite_all()
            self._housekeeping.wake("rules")

    def _on_readiness(self, ready: bool) -> None:
        self._heartbeat.wake()  # update readiness in the node's row
        if ready:
            self._housekeeping.wake("announce")

    async def _check_bus(self) -> None:
        self.metrics.self_check.observe(await self._bus.check())

    async def _read_services(self) -> None:
        self.condition.services = await announcer.last_status(self.relay.snapshots)

    async def _announce(self) -> None:
        """Publish once that the node has joined."""
        if not self._announced:
            about = {"timestamp": self._ms(), "serverId": self.id, "name": self.settings.node, "version": __version__}
            await self._link.publish(self._keys.ready, orjson.dumps(about))
            self._announced = True

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            self.clients.sweep(loop.time())

    # ---- requests

    def asked_ready(self, poller: str) -> list[str]:
        """Why the node is not ready. Records `poller`: a drain waits until the load balancers have noticed."""
        reasons = self.condition.reasons()
        self.departures.asked_ready(poller, bool(reasons))
        return reasons

    async def drain(self) -> None:
        """Become unready, wait until the load balancers have noticed, then close the clients over the drain window."""
        self._heartbeat.wake()  # write the draining state into the node's row now
        self._reporter.publish_now()
        await self.departures.drain()

    def verify_operator(self, token: str | None) -> Identity:
        """The identity that a token or an API key at the operators' socket proves.

        Raises:
            AuthError: The token is invalid.
        """
        identity = self.api_keys.identify(token) if token else None
        return identity if identity is not None else self.trust.authenticator.verify(token)

    def seconds_since(self, timestamp: str) -> float:
        """Seconds since `timestamp`, in the format of the registry's rows."""
        return self._now() - datetime.fromisoformat(timestamp).timestamp()

    def _ms(self) -> int:
        return int(self._now() * 1000)
