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

from gateway import __version__
from gateway.auth import api_keys
from gateway.auth.authenticator import Authenticator
from gateway.auth.permission_checker import PermissionChecker
from gateway.backend import Backend
from gateway.broker import memory, topology
from gateway.broker.client import Durability, RedisClient, Unavailable
from gateway.broker.fence import Fence
from gateway.broker.history import History
from gateway.broker.keys import Keys
from gateway.broker.memory import RedisMemory
from gateway.broker.pubsub import PubSub
from gateway.broker.snapshots import Snapshots
from gateway.cache.cache import Cache
from gateway.cluster.connection_limits import ConnectionLimits
from gateway.cluster.presence_store import PresenceStore
from gateway.cluster.quotas import PublishQuota, StorageQuota
from gateway.cluster.registry import LocalState, Registry
from gateway.connections.admission import Admission, connection_limit
from gateway.connections.async_commands import AsyncCommands, PublishLimits
from gateway.connections.backend_calls import BackendCalls
from gateway.connections.manager import ConnectionManager
from gateway.connections.node_channel import NodeChannel
from gateway.connections.outages import OutageNotifier
from gateway.core import hub
from gateway.core.address_groups import AddressGroups
from gateway.core.capacity import Capacity
from gateway.core.hub import Hub
from gateway.core.identity import Identity
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.session import SessionRules
from gateway.core.topic_rules import TopicRules
from gateway.delivery.dispatcher import Dispatcher
from gateway.delivery.ingest import Ingest
from gateway.delivery.post_forwarder import PostForwarder
from gateway.delivery.presence import PresenceTracker
from gateway.delivery.publisher import RULES_LIFE_SECONDS, MessagePublisher
from gateway.delivery.recovery import Recovery
from gateway.delivery.sender import Sender
from gateway.delivery.subscriptions import Subscriptions
from gateway.delivery.topic_copies import TopicCopies
from gateway.delivery.topic_queries import TopicQueries
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.node.control_channel import ControlChannel
from gateway.node.drain_manager import DrainManager
from gateway.node.heartbeat import BEATS_PER_LEASE, Heartbeat
from gateway.node.periodic_tasks import PeriodicTasks
from gateway.node.reaper import Reaper
from gateway.node.rules_comparison import COMPARE_SECONDS, RulesComparison
from gateway.node.stats_publisher import StatsPublisher
from gateway.node.status import NodeStatus
from gateway.services import status_publisher
from gateway.services.manager import ServiceManager
from gateway.services.status_publisher import StatusPublisher
from gateway.settings import Settings


class Node:
    """Composes hub, pub/sub, registry and clients, and keeps them running.

    `now` gives seconds since 1970.
    """

    def __init__(self, settings: Settings, rules: TopicRules, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        # The second part is new at each start: a pid is unique neither across hosts nor across restarts.
        self.id = f"{settings.node}.{secrets.token_hex(4)}"
        self.failure: BaseException | None = None  # the error that ended a task of the node
        self._announced = False
        self.shut_down: Callable[[], None] = lambda: None  # makes the process drain and exit; the server sets it
        self.metrics = metrics = Metrics()
        self._now = now
        self._log = logger()
        self._hub = Hub()
        sender = Sender(self._hub, metrics, self._ms)
        self._redis = RedisClient(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name=f"gateway-{self.id}",
            metrics=metrics, durability=Durability(settings.wait_replicas, settings.wait_seconds, settings.wait_fsync),
        )  # fmt: skip
        self._keys = keys = Keys(settings.namespace, self._redis.sharded)
        self.api_keys = api_keys.load(settings)
        self.authenticator = Authenticator(settings, self._redis, keys, metrics, now)
        self._pubsub = PubSub(self._redis, keys.node_channel(self.id), metrics)
        self._presence_store = PresenceStore(self._redis, keys, self.id)
        self.presence = PresenceTracker(
            self._presence_store, grace_seconds=settings.presence_grace_seconds, now_ms=self._ms
        )
        self.rules = rules
        self.publisher = MessagePublisher(
            self._redis, keys, rules, metrics, max_message_bytes=settings.max_message_bytes, now=now
        )
        self.history = History(self._redis, keys, now)
        self._recovery = Recovery(self.history, rules, metrics, self._spawn)
        self._snapshots = Snapshots(self._redis, keys)
        self._topic_copies = TopicCopies(self._hub, rules, self._recovery, self._snapshots, self.presence, metrics)
        dispatcher = Dispatcher(
            hub=self._hub, pubsub=self._pubsub, keys=keys, topic_copies=self._topic_copies, metrics=metrics, now=now
        )
        self._hub.wake, self._hub.evict = dispatcher.wake, sender.evict
        self._ingest = Ingest(
            self._hub, dispatcher.conflation, self.publisher, self._redis, keys, rules, metrics, self._spawn
        )
        self.topic_queries = TopicQueries(self.history, self.presence)
        self.post_forwarder = PostForwarder(self._redis, keys)
        self.registry = Registry(
            self._redis,
            keys,
            self.id,
            lease_seconds=settings.lease_seconds,
            local_state=self._make_local_state(),
            metrics=metrics,
        )
        self._rules_comparison = RulesComparison(self.registry, self.rules.digest)
        # Separate connections, so that large values do not delay a heartbeat.
        self._cache_redis = RedisClient(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name=f"gateway-cache-{self.id}",
            metrics=metrics,
        )  # fmt: skip
        self._redis.followers.append(self._cache_redis)
        self.cache = Cache(self._cache_redis, keys, self._pubsub, metrics, self._spawn)
        self.backend = self._make_backend()  # None: no back end
        self._connection_limits = ConnectionLimits(
            self._redis, keys, self.id, lease_seconds=settings.lease_seconds,
            user_limit=settings.max_user_connections, address_limit=settings.max_address_connections,
        )  # fmt: skip
        self.services = ServiceManager(
            self._redis, keys, self._pubsub, self._publish, self.id, lease_seconds=settings.lease_seconds
        )
        self._status_publisher = StatusPublisher(self.services.states, self.services.change_marker)
        status_publisher.register_node_services(
            self.services, self._status_publisher, settings.lease_seconds / BEATS_PER_LEASE,
            {
                "gateway.bus": lambda: self._pubsub.reason or self._pubsub.partial,
                "gateway.registry": lambda: self._heartbeat.reason or self._heartbeat.impaired,
            },
        )  # fmt: skip
        address_groups = AddressGroups(settings.trusted_proxies)
        self._redis_memory = RedisMemory(self._redis, metrics, settings.redis_memory_bytes)
        self.admission = Admission(
            Capacity(connection_limit(settings.max_connections), settings.connects_per_second), self._connection_limits,
            address_groups, sender, metrics, self._spawn,
        )  # fmt: skip
        backend_calls = None
        if self.backend is not None:
            backend_calls = BackendCalls(self.backend, self.cache, sender, self.id, self._redis_memory, self._spawn)
        subscriptions = Subscriptions(
            self._hub, dispatcher, self._topic_copies, self.registry, sender, self._spawn,
            answer_seconds=settings.redis_timeout_seconds,
        )  # fmt: skip
        self.connections = ConnectionManager(
            settings, self.id,
            rules=SessionRules(
                self.authenticator.verifier.verify, self.authenticator.verifier.verify_grant, rules,
                settings.max_client_topics, settings.open, backend=self.backend is not None,
            ),
            hub=self._hub, sender=sender, subscriptions=subscriptions,
            async_commands=AsyncCommands(
                self.publisher, self.topic_queries, sender,
                PublishLimits(
                    PublishQuota(self._redis, keys, settings.user_publishes_per_second),
                    StorageQuota(self._redis, keys, settings.user_stored_bytes), self._redis_memory, address_groups,
                ),
                PermissionChecker(self.backend, metrics), self.authenticator.refresh_keys, metrics, self._spawn,
            ),
            backend_calls=backend_calls, admission=self.admission,
            metrics=metrics, status=lambda: self.status.status(), now_ms=self._ms,
        )  # fmt: skip
        self.drain_manager = DrainManager(self.connections, sender, drain_seconds=settings.drain_seconds)
        self._outage_notifier = dispatcher.gap_listener = OutageNotifier(
            self.connections, self._hub, keys, self._topic_copies, sender, subscriptions, metrics
        )
        self._node_channel = NodeChannel(self.connections, sender, metrics)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat = Heartbeat(self.registry, lease_seconds=settings.lease_seconds, renewed=self._lease_renewed)
        self.status = NodeStatus(
            settings,
            self.id,
            connections=self.connections,
            hub=self._hub,
            pubsub=self._pubsub,
            authenticator=self.authenticator,
            heartbeat=self._heartbeat,
            drain_manager=self.drain_manager,
            metrics=metrics,
            now_ms=self._ms,
        )
        self.control_channel = ControlChannel(
            self.id,
            redis=self._redis,
            keys=keys,
            connections=self.connections,
            recovery=self._recovery,
            authenticator=self.authenticator,
            drain_manager=self.drain_manager,
            metrics=metrics,
            shut_down=lambda: self.shut_down(),
            spawn=self._spawn,
        )
        self._stats_publisher = StatsPublisher(self.publisher, metrics, self.status.report)
        self._periodic_tasks = self._make_periodic_tasks()
        metrics.read_services(
            lambda: ((k.service.name, k.stats.operations, k.stats.failures) for k in self.services.supervisors()),
            lambda: self._status_publisher.counts,
        )

    # ---- lifecycle

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the tasks of the node, and delete its rows from Redis at the end. Redis may still be unreachable."""
        self._join_channels()
        self._spawn(self._redis.run(), "publisher")
        self._spawn(self._pubsub.run(self._outage_notifier), "bus")
        self._spawn(self.registry.run(self._heartbeat.wake), "registry")
        self._spawn(self.presence.run(self.connections), "presence")
        self._spawn(self._connection_limits.run(), "slots")
        self._spawn(self.authenticator.run(), "keys")
        self._spawn(self._heartbeat.run(), "beat")
        self._spawn(self._periodic_tasks.run(), "housekeeping")
        self._spawn(self.status.watch(self._readiness_changed), "readiness")
        self._spawn(self._sweep(), "sweep")
        self._spawn(self._stats_publisher.measure_lag(), "lag")
        self._spawn(self._stats_publisher.run(), "figures")
        self._spawn(self.services.run(), "services")
        await self.services.start()
        for warning in self.settings.warnings():
            self._log.warning(warning)
        self._log.info(
            "node started", id=self.id, version=__version__, redis=topology.describe(self.settings.redis_url)
        )
        try:
            yield
        finally:
            await self.services.stop()
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            try:
                await self.presence.flush(self.connections)
                await self._connection_limits.release_all()
                await self.registry.remove_rows()
            except Unavailable as error:
                self._log.warning("rows not removed, expiring with the lease", reason=str(error))
            await self._redis.close()
            await self._cache_redis.close()
            if self.backend is not None:
                await self.backend.close()
            self._log.info("node left", id=self.id)

    def _make_local_state(self) -> LocalState:
        return LocalState(
            node_row=lambda: {**self.status.node_row(), "rules": self.rules.digest},
            client_row=lambda client_id: self.connections.client_row(client_id),
            client_ids=lambda: self.connections.client_ids(),
            subscriber_count=lambda topic: self._hub.count(hub.topic_audience(topic)),
            topics=self._hub.topics,
            rows_dropped=self._topic_copies.rewrite_presence,
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
            {"gateway_backend_waiting": lambda: backend.waiting_calls, "gateway_backend_open": lambda: backend.is_open},
            {},
        )
        return backend

    def _join_channels(self) -> None:
        listeners = {
            self._keys.node_channel(self.id): self._node_channel.message_received,
            self._keys.control: self.control_channel.message_received,
            self._keys.ingest: self._ingest.message_received,
        }
        waiting = len(listeners)

        def confirmed() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self.status.is_subscribed = True
                self._heartbeat.wake()

        for channel, callback in listeners.items():
            self._pubsub.subscribe([channel], callback, confirmed)

    async def _publish(self, publication: Publication, fence: Fence | None) -> Position | None:
        return (await self.publisher.publish([publication], fence=fence))[0]

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
        self.shut_down()
        self._log.critical("task failed, node leaves", task=task.get_name(), exc_info=self.failure)

    # ---- periodic work

    def _make_periodic_tasks(self) -> PeriodicTasks:
        interval = self.settings.lease_seconds / BEATS_PER_LEASE
        tasks = PeriodicTasks(self.metrics)
        reaper = Reaper(
            self._redis, self._keys, self.registry, found=lambda: tasks.wake("reap"),
            now_ms=self._ms,
        )  # fmt: skip
        tasks.add("enroll", reaper.enroll, seconds=self.settings.lease_seconds)  # and after each heartbeat
        tasks.add("reap", reaper.reap, seconds=None)
        tasks.add("self-check", self._check_bus, seconds=interval)
        tasks.add("streams", self._recovery.check, seconds=interval)
        tasks.add("presence", self.presence.check, seconds=self.settings.lease_seconds)
        tasks.add("revocations", self.control_channel.check_revocations, seconds=interval)
        tasks.add("services", self._read_services, seconds=self.settings.lease_seconds)
        tasks.add("memory", self._redis_memory.check, seconds=memory.CHECK_SECONDS)
        tasks.add("rules", self.publisher.write_rules, seconds=RULES_LIFE_SECONDS / 24)
        tasks.add("compare rules", self._compare_rules, seconds=COMPARE_SECONDS)
        tasks.add("announce", self._announce, seconds=None)
        return tasks

    async def _compare_rules(self) -> None:
        self._topic_copies.rules_differ = await self._rules_comparison.compare()

    def _lease_renewed(self, kept: bool) -> None:
        self._periodic_tasks.wake("enroll")  # after the lease, so that no reaper finds the node before its lease ends
        if not kept:
            self.presence.rewrite()
            self._connection_limits.rewrite()
            self.services.rewrite_all()
            self._periodic_tasks.wake("rules")

    def _readiness_changed(self, ready: bool) -> None:
        self._heartbeat.wake()  # update readiness in the node's row
        if ready:
            self._periodic_tasks.wake("announce")

    async def _check_bus(self) -> None:
        self.metrics.self_check.observe(await self._pubsub.check())

    async def _read_services(self) -> None:
        self.status.services = await status_publisher.last_status(self._snapshots)

    async def _announce(self) -> None:
        """Publish once that the node has joined."""
        if not self._announced:
            about = {"timestamp": self._ms(), "serverId": self.id, "name": self.settings.node, "version": __version__}
            await self._redis.publish(self._keys.node_ready, orjson.dumps(about))
            self._announced = True

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            self.connections.check_timeouts(loop.time())

    # ---- requests

    def readiness_checked(self, poller: str) -> list[str]:
        """Why the node is not ready. Records `poller`: a drain waits until the load balancers have noticed."""
        reasons = self.status.unready_reasons()
        self.drain_manager.readiness_checked(poller, bool(reasons))
        return reasons

    async def drain(self) -> None:
        """Become unready, wait until the load balancers have noticed, then close the clients over the drain window."""
        self._heartbeat.wake()  # write the draining state into the node's row now
        self._stats_publisher.publish_now()
        await self.drain_manager.drain()

    def verify_operator(self, token: str | None) -> Identity:
        """The identity that a token or an API key at the operators' socket proves.

        Raises:
            AuthError: The token is invalid.
        """
        identity = self.api_keys.identify(token) if token else None
        return identity if identity is not None else self.authenticator.verifier.verify(token)

    def seconds_since(self, timestamp: str) -> float:
        """Seconds since `timestamp`, in the format of the registry's rows."""
        return self._now() - datetime.fromisoformat(timestamp).timestamp()

    def _ms(self) -> int:
        return int(self._now() * 1000)
