"""One gateway process: creates its parts, runs them and leaves the cluster at the end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial

import orjson

from gateway import __version__
from gateway.auth.authenticator import Authenticator
from gateway.auth.permission_checker import PermissionChecker
from gateway.backend import Backend
from gateway.broker import memory, topology
from gateway.broker.client import Durability, RedisClient, Unavailable
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
from gateway.connections.admission import Admission, connection_limit, warn_of_few_files
from gateway.connections.async_commands import AsyncCommands, PublishLimits
from gateway.connections.backend_calls import BackendCalls
from gateway.connections.client_limits import ClientLimits
from gateway.connections.client_orders import ClientOrders
from gateway.connections.command_handler import CommandHandler
from gateway.connections.enforcer import Enforcer
from gateway.connections.manager import ConnectionManager
from gateway.connections.node_channel import NodeChannel
from gateway.connections.open_connections import OpenConnections
from gateway.connections.outages import OutageNotifier
from gateway.core.address_groups import AddressGroups
from gateway.core.capacity import Capacity
from gateway.core.hub import Hub
from gateway.core.identity import Identity
from gateway.core.session_rules import SessionRules
from gateway.core.timestamps import Clock
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
from gateway.node import gauges
from gateway.node.configuration import Configuration, LiveConfiguration
from gateway.node.control_channel import ControlChannel, ControlPublisher
from gateway.node.drain import Drain
from gateway.node.heartbeat import BEATS_PER_LEASE, Heartbeat, LeaseState
from gateway.node.lifecycle import Lifecycle
from gateway.node.own_channels import OwnChannels
from gateway.node.periodic_tasks import PeriodicTasks
from gateway.node.readiness import Readiness
from gateway.node.reaper import Reaper
from gateway.node.rebalance import Rebalance
from gateway.node.reload import Reloader
from gateway.node.rules_comparison import COMPARE_SECONDS, RulesComparison
from gateway.node.stats_publisher import StatsPublisher
from gateway.node.status import NodeFacts, NodeStatus
from gateway.services import status_publisher
from gateway.services.manager import ServiceManager
from gateway.services.status_publisher import StatusPublisher
from gateway.settings import Settings
from gateway.transports.http_stream import HttpStreams


class Node:
    """Composes hub, pub/sub, registry and clients, and keeps them running.

    `current` is its configuration; `read` reads it again for a reload. `now` gives seconds since 1970.
    """

    def __init__(
        self, settings: Settings, current: Configuration, read: Callable[[], Configuration],
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.settings = settings
        # The second part is new at each start: a pid is unique neither across hosts nor across restarts.
        self.id = f"{settings.node}.{secrets.token_hex(4)}"
        self.lifecycle = Lifecycle()
        self.metrics = metrics = Metrics()
        self._announced = False
        self._now = now
        self._now_ms = now_ms = Clock(now).ms
        self._log = logger()
        spawn = self.lifecycle.spawn

        # ---- Redis
        self._redis = RedisClient(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name=f"gateway-{self.id}",
            metrics=metrics, durability=Durability(settings.wait_replicas, settings.wait_seconds, settings.wait_fsync),
        )  # fmt: skip
        # Separate connections, so that large values do not delay a heartbeat.
        self._cache_redis = RedisClient(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name=f"gateway-cache-{self.id}",
            metrics=metrics,
        )  # fmt: skip
        self._redis.followers.append(self._cache_redis)
        self._keys = keys = Keys(settings.namespace, self._redis.sharded)
        self._pubsub = PubSub(self._redis, keys.node_channel(self.id), metrics)
        self._own_channels = OwnChannels(self._pubsub)
        self._redis_memory = RedisMemory(self._redis, metrics, settings.redis_memory_bytes)
        self.cache = Cache(self._cache_redis, keys, self._pubsub, metrics, spawn)

        # ---- delivery
        self._hub = Hub()
        sender = Sender(self._hub, metrics, now_ms)
        self.open_connections = OpenConnections(self.id, self._hub, now_ms)
        self.rules = rules = current.rules
        self.publisher = MessagePublisher(
            self._redis, keys, rules, metrics, max_message_bytes=settings.max_message_bytes, now=now
        )
        self.history = History(self._redis, keys, now)
        self._snapshots = Snapshots(self._redis, keys)
        self.presence = PresenceTracker(
            PresenceStore(self._redis, keys, self.id), grace_seconds=settings.presence_grace_seconds, now_ms=now_ms
        )
        self._recovery = Recovery(
            self.history, rules, metrics, spawn, self._redis_memory if settings.centrifugo else None
        )
        self._topic_copies = TopicCopies(self._hub, rules, self._recovery, self._snapshots, self.presence, metrics)
        dispatcher = Dispatcher(
            hub=self._hub, pubsub=self._pubsub, keys=keys, topic_copies=self._topic_copies, metrics=metrics, now=now
        )
        self._hub.wake, self._hub.evict = dispatcher.wake, sender.evict
        self._ingest = Ingest(
            self._hub, dispatcher.conflation, self.publisher, self._redis, keys, rules, metrics, spawn
        )
        self.topic_queries = TopicQueries(self.history, self.presence, self.open_connections.topic_members)
        self.post_forwarder = PostForwarder(self._redis, keys)

        # ---- status and rows of this node
        self.api_keys = current.api_keys
        self.authenticator = Authenticator(settings, current.token_keys, self._redis, keys, metrics, now)
        self._lease = LeaseState()
        self.drain = Drain(self.open_connections, sender, drain_seconds=settings.drain_seconds)
        self.rebalance = Rebalance(self.open_connections, sender, self.drain)
        self.readiness = Readiness(self.authenticator, self._pubsub.health, self._own_channels, self._lease, self.drain)
        facts = NodeFacts(self.id, settings.node, settings.advertise, rules)
        self.status = NodeStatus(
            facts, self.readiness, self.drain, self.rebalance, self.open_connections, self._hub, now_ms
        )
        self.registry = Registry(
            self._redis, keys, self.id, lease_seconds=settings.lease_seconds,
            local_state=LocalState(
                node_row=self.status.node_row, client_row=self.open_connections.client_row,
                client_ids=self.open_connections.client_ids, subscriber_count=self._hub.count_topic,
                topics=self._hub.topics, rows_dropped=self._topic_copies.rewrite_presence,
            ),
            metrics=metrics,
        )  # fmt: skip
        self._heartbeat = Heartbeat(
            self.registry, self._lease, lease_seconds=settings.lease_seconds, renewed=self._lease_renewed
        )
        self._rules_comparison = RulesComparison(self.registry, rules)
        self._connection_limits = ConnectionLimits(
            self._redis, keys, self.id, lease_seconds=settings.lease_seconds,
            user_limit=settings.max_user_connections, address_limit=settings.max_address_connections,
        )  # fmt: skip

        # ---- clients
        address_groups = AddressGroups(settings.trusted_proxies)
        self.admission = Admission(
            Capacity(connection_limit(settings.max_connections), settings.connects_per_second), self._connection_limits,
            address_groups, sender, metrics, spawn,
        )  # fmt: skip
        self.backend = self._make_backend()  # None: no back end
        backend_calls = None
        if self.backend is not None:
            backend_calls = BackendCalls(self.backend, self.cache, sender, self.id, self._redis_memory, spawn)
        subscriptions = Subscriptions(
            self._hub, dispatcher, self._topic_copies, self.registry, sender, spawn,
            answer_seconds=settings.redis_timeout_seconds,
        )  # fmt: skip
        async_commands = AsyncCommands(
            self.publisher, self.topic_queries, sender,
            PublishLimits(
                PublishQuota(self._redis, keys, settings.user_publishes_per_second),
                StorageQuota(self._redis, keys, settings.user_stored_bytes), self._redis_memory, address_groups,
            ),
            PermissionChecker(self.backend, metrics), self.authenticator.refresh_keys, metrics, spawn,
        )  # fmt: skip
        commands = CommandHandler(
            ClientLimits(settings, rules, sender, metrics), sender, subscriptions, async_commands, backend_calls,
            self.admission, metrics, self.status.status,
        )  # fmt: skip
        session_rules = SessionRules(
            self.authenticator.verifier.verify, self.authenticator.verifier.verify_grant, rules,
            settings.max_client_topics, settings.open, backend=self.backend is not None,
            leeway_seconds=settings.jwt_leeway_seconds, centrifugo=settings.centrifugo,
        )  # fmt: skip
        self.event_streams = HttpStreams()
        self.connections = ConnectionManager(
            settings, session_rules, self.open_connections, subscriptions, self.admission, commands, metrics, now_ms
        )
        self._enforcer = Enforcer(settings, self.open_connections, sender, subscriptions, metrics, now_ms)
        client_orders = ClientOrders(
            self.open_connections, subscriptions, self._enforcer, max_client_topics=settings.max_client_topics
        )
        self._outage_notifier = dispatcher.gap_listener = OutageNotifier(
            self.open_connections, self._hub, keys, self._topic_copies, sender, subscriptions, metrics
        )
        self._node_channel = NodeChannel(self.open_connections, self.event_streams, sender, metrics)
        self.control_publisher = ControlPublisher(self._redis, keys)
        self.control_channel = ControlChannel(
            self.id,
            client_orders,
            self._enforcer,
            self._recovery,
            self.authenticator,
            self.rebalance,
            self.lifecycle,
            metrics,
        )

        live = LiveConfiguration(
            current, hub=self._hub, topic_copies=self._topic_copies, connections=self.open_connections, sender=sender,
            backend=self.backend, rules_changed=self._rules_changed,
        )  # fmt: skip
        self.reloader = self.control_channel.reloader = Reloader(
            self.id, live, read=partial(asyncio.to_thread, read), broadcast=self.control_publisher.broadcast,
            node_ids=self.registry.live_nodes,
        )  # fmt: skip

        # ---- services and figures
        self.services = ServiceManager(
            self._redis, keys, self._pubsub, self.publisher.publish_one, self.id, lease_seconds=settings.lease_seconds
        )
        self._status_publisher = StatusPublisher(self.services.states, self.services.change_marker)
        status_publisher.register_node_services(
            self.services, self._status_publisher, settings.lease_seconds / BEATS_PER_LEASE,
            {"gateway.bus": self._pubsub.health.problem, "gateway.registry": self._lease.problem},
        )  # fmt: skip
        self._stats_publisher = StatsPublisher(self.publisher, metrics, self.status.report)
        gauges.register(metrics, self.readiness, self.open_connections, self._hub, commands, self.connections)
        metrics.read_services(self.services.operation_counts, self._status_publisher.instance_counts)
        self._periodic_tasks = self._make_periodic_tasks()
        self._add_work()

    # ---- lifecycle

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the tasks of the node, and delete its rows from Redis at the end. Redis may still be unreachable."""
        callbacks = {
            self._keys.node_channel(self.id): self._node_channel.message_received,
            self._keys.control: self.control_channel.message_received,
            self._keys.ingest: self._ingest.message_received,
        }
        self._own_channels.join(callbacks, then=self._heartbeat.wake)
        self.lifecycle.start()
        await self.services.start()
        warn_of_few_files()
        for warning in self.settings.warnings():
            self._log.warning(warning)
        self._log.info(
            "node started", id=self.id, version=__version__, redis=topology.describe(self.settings.redis_url)
        )
        try:
            yield
        finally:
            await self.services.stop()
            await self.lifecycle.stop()
            self._log.info("node left", id=self.id)

    def _add_work(self) -> None:
        """Give the lifecycle everything that runs until the node stops, and the steps after that."""
        work = self.lifecycle
        work.add("publisher", self._redis.run)
        work.add("bus", partial(self._pubsub.run, self._outage_notifier))
        work.add("registry", partial(self.registry.run, self._heartbeat.wake))
        work.add("presence", partial(self.presence.run, self.open_connections))
        work.add("slots", self._connection_limits.run)
        work.add("keys", self.authenticator.run)
        work.add("beat", self._heartbeat.run)
        work.add("housekeeping", self._periodic_tasks.run)
        work.add("readiness", partial(self.readiness.watch, self._readiness_changed))
        work.add("sweep", self._enforcer.run)
        work.add("lag", self._stats_publisher.measure_lag)
        work.add("figures", self._stats_publisher.run)
        work.add("services", self.services.run)
        work.at_end(self._remove_rows, self._redis.close, self._cache_redis.close)
        if self.backend is not None:
            work.at_end(self.backend.close)

    async def _remove_rows(self) -> None:
        try:
            await self.presence.flush(self.open_connections)
            await self._connection_limits.release_all()
            await self.registry.remove_rows()
        except Unavailable as error:
            self._log.warning("rows not removed, expiring with the lease", reason=str(error))

    def _make_backend(self) -> Backend | None:
        settings = self.settings
        if not settings.backend_url:
            return None
        return Backend(
            settings.backend_url, secret=settings.backend_secret, timeout_seconds=settings.backend_timeout_seconds,
            connections=settings.backend_connections, max_answer_bytes=settings.max_message_bytes,
            metrics=self.metrics, now=self._now,
        )  # fmt: skip

    # ---- periodic work

    def _make_periodic_tasks(self) -> PeriodicTasks:
        interval = self.settings.lease_seconds / BEATS_PER_LEASE
        tasks = PeriodicTasks(self.metrics)
        reaper = Reaper(
            self._redis, self._keys, self.registry, found=partial(tasks.wake, "reap"), now_ms=self._now_ms
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

    def _rules_changed(self) -> None:
        self._topic_copies.rules_differ = True  # until the next comparison: other nodes may still have the former rules
        self._periodic_tasks.wake("rules")
        self._heartbeat.wake()  # write the new digest into the node's row

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
            about = {
                "timestamp": self._now_ms(),
                "serverId": self.id,
                "name": self.settings.node,
                "version": __version__,
            }
            await self._redis.publish(self._keys.node_ready, orjson.dumps(about))
            self._announced = True

    # ---- requests

    async def leave(self) -> None:
        """Become unready, wait until the load balancers have noticed, then close the clients over the drain window."""
        self._heartbeat.wake()  # write the draining state into the node's row now
        self._stats_publisher.publish_now()
        await self.drain.run()

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
