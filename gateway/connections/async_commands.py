"""Asynchronous commands of clients: publish, queries and permission checks. The client's next frames wait meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gateway.auth.permission_checker import PermissionChecker
from gateway.broker.client import Impaired, Unavailable, Unconfirmed
from gateway.broker.memory import RedisMemory
from gateway.cluster.quotas import PublishQuota, StorageQuota
from gateway.core import commands
from gateway.core.address_groups import AddressGroups
from gateway.core.effects import AskBackend, Findings, RefreshKeys
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Answer, Published
from gateway.core.json_text import RequestId
from gateway.core.publication import Publication, PublicationTooLarge
from gateway.delivery.publisher import MessagePublisher, PendingPublish
from gateway.delivery.sender import Sender
from gateway.delivery.topic_queries import TopicQueries
from gateway.metrics import Metrics
from gateway.transports.connection import Connection


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Limits of the publishes of clients, and of the bytes that Redis stores for them."""

    publish_quota: PublishQuota
    storage_quota: StorageQuota
    memory: RedisMemory
    address_groups: AddressGroups


class AsyncCommands:
    """Runs asynchronous commands of clients; `spawn` runs a coroutine as a task of the node."""

    def __init__(
        self,
        publisher: MessagePublisher,
        topic_queries: TopicQueries,
        sender: Sender,
        publish_limits: PublishLimits,
        permission_checker: PermissionChecker,
        refresh_keys: Callable[[str], Awaitable[bool]],
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._publisher = publisher
        self._topic_queries = topic_queries
        self._sender = sender
        self._publish_limits = publish_limits
        self._metrics = metrics
        self._spawn = spawn
        self._permission_checker = permission_checker
        self._refresh_keys = refresh_keys

    def publish_message(self, connection: Connection, publication: Publication, request_id: RequestId) -> None:
        """Publish a message, and acknowledge it once Redis has confirmed it."""
        connection.hold("publish")
        if not self._publish_now(connection, publication, request_id):
            self._spawn(self._publish(connection, publication, request_id), "client's publish")

    def read_topic(self, connection: Connection, request: commands.Request) -> None:
        """Answer a REQUEST for the history or the presence of a topic."""
        connection.hold("request")
        self._spawn(self._read_topic(connection, request), "client's request")

    def resolve(
        self,
        connection: Connection,
        needed: AskBackend | RefreshKeys,
        findings: Findings,
        again: Callable[[Findings], None],
    ) -> None:
        """Collect what the check of a message needs, then call `again` with the findings."""
        connection.hold("find out")
        self._spawn(self._resolve(connection, needed, findings, again), "client's question")

    async def _resolve(
        self,
        connection: Connection,
        needed: AskBackend | RefreshKeys,
        findings: Findings,
        again: Callable[[Findings], None],
    ) -> None:
        more = None
        try:
            if isinstance(needed, RefreshKeys):
                asked = await self._refresh_keys(needed.kid)
                more = replace(findings, keys_refreshed=True, key_server_failed=not asked)
            else:
                verdicts = await self._permission_checker.check(needed.act, needed.topics, needed.identity)
                more = replace(findings, backend_verdicts={**findings.backend_verdicts, **verdicts})
        except Exception:
            self._sender.send_internal_error(connection)
        # Hold under a separate key: handling the message again may need more findings, and then holds "find out" again.
        connection.hold("found")
        if more is not None:
            again(more)
        connection.release("found")

    def _publish_now(self, connection: Connection, publication: Publication, request_id: RequestId) -> bool:
        """Publish without a task. False, and nothing was sent: a limit or the publisher has to ask Redis first."""
        try:
            if not self._publisher.can_submit or not self._charge_now(connection, publication):
                return False
            pending = self._publisher.submit([publication])
        except Exception as error:
            self._refuse_publish(connection, error, request_id)
            connection.release("publish")
        else:
            pending.answers.add_done_callback(partial(self._published, connection, publication, request_id, pending))
        return True

    def _published(
        self, connection: Connection, publication: Publication, request_id: RequestId, pending: PendingPublish,
        _done: asyncio.Future[list[Any]],
    ) -> None:  # fmt: skip
        try:
            [position] = self._publisher.positions([publication], pending)
            self._sender.reply(connection, Published(publication.topic, position, request_id))
        except Exception as error:
            self._refuse_publish(connection, error, request_id)
        finally:
            connection.release("publish")

    async def _publish(self, connection: Connection, publication: Publication, request_id: RequestId) -> None:
        try:
            await self._charge(connection, publication, request_id)
            [position] = await self._publisher.publish([publication])
            self._sender.reply(connection, Published(publication.topic, position, request_id))
        except Exception as error:
            self._refuse_publish(connection, error, request_id)
        finally:
            connection.release("publish")

    def _refuse_publish(self, connection: Connection, error: Exception, request_id: RequestId) -> None:
        """Send the client the error for which its message was not published, or not confirmed."""
        match error:
            case ProtocolError():
                self._sender.send_error(connection, error)
            case Unconfirmed():
                message = "Published, but too few replicas confirmed it; a retry publishes a second message"
                self._sender.send_error(connection, ProtocolError(ErrorReason.UNAVAILABLE, message, request_id))
            case Impaired():
                message = f"Redis cannot store this now; try again later: {error}"
                self._sender.send_error(connection, ProtocolError(ErrorReason.UNAVAILABLE, message, request_id))
            case Unavailable():
                message = "The cluster is unavailable, try again"
                self._sender.send_error(connection, ProtocolError(ErrorReason.UNAVAILABLE, message, request_id))
            case PublicationTooLarge():
                self._sender.send_error(connection, ProtocolError(ErrorReason.DATA_REFUSED, str(error), request_id))
            case _:
                self._sender.send_internal_error(connection, request_id)

    def _charge_now(self, connection: Connection, publication: Publication) -> bool:
        """Charge the limits of the client's user as `_charge` does, if this node has fetched enough. False: it has not.

        A part that was charged is lost then, as if the message had been refused.
        """
        user, limits = connection.session.identity.user, self._publish_limits
        size, streams = self._publisher.storage_cost(publication)
        if size and (limits.memory.full or not limits.storage_quota.charge_now(self._owner(connection), size, streams)):
            return False
        return user is None or limits.publish_quota.charge_now(user)

    async def _charge(self, connection: Connection, publication: Publication, request_id: RequestId) -> None:
        """Charge the client's user for the message, and for the bytes that Redis stores; without a user, its address.

        Raises:
            ProtocolError: Redis is nearly full, 5030; or one of the limits is reached, 4029.
            Unavailable: Redis did not answer in time.
        """
        user = connection.session.identity.user  # a client without a user has only its own message limit
        if user is not None and not await self._publish_limits.publish_quota.charge(user):
            self._metrics.limited.labels("publishes").inc()
            message = "Too many publishes of this user; wait some seconds"
            raise ProtocolError(ErrorReason.TOO_MANY_REQUESTS, message, request_id)
        size, streams = self._publisher.storage_cost(publication)
        if not size:
            return
        if self._publish_limits.memory.full:
            self._metrics.limited.labels("redis_memory").inc()
            message = f"Redis is nearly full and {publication.topic} stores messages; try again later"
            raise ProtocolError(ErrorReason.UNAVAILABLE, message, request_id)
        if not await self._publish_limits.storage_quota.charge(self._owner(connection), size, streams):
            self._metrics.limited.labels("stored_bytes").inc()
            message = (
                f"{publication.topic} stores messages, and the daily limit of bytes for this user is used up "
                f"({size} more needed); wait some minutes, or send less"
            )
            raise ProtocolError(ErrorReason.TOO_MANY_REQUESTS, message, request_id)

    def _owner(self, connection: Connection) -> str:
        """Who is charged for stored bytes."""
        user, ip = connection.session.identity.user, connection.info.ip
        return f"user:{user}" if user is not None else f"address:{self._publish_limits.address_groups.of(ip) or ip}"

    async def _read_topic(self, connection: Connection, request: commands.Request) -> None:
        try:
            if request.action == "history":
                content: Any = await self._topic_queries.read_history(request.topic, **commands.history_range(request))
            else:
                clients = request.parameters.get("clients") is True
                content = await self._topic_queries.read_presence(request.topic, clients=clients)
            self._sender.reply(connection, Answer(request, content))
        except ProtocolError as error:
            self._sender.send_error(connection, error)
        except Unavailable:
            message = "The cluster is unavailable, try again"
            self._sender.send_error(connection, ProtocolError(ErrorReason.UNAVAILABLE, message, request.request_id))
        except Exception:
            self._sender.send_internal_error(connection, request.request_id)
        finally:
            connection.release("request")
