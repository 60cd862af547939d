"""Subscribes clients to audiences and unsubscribes them; acknowledges a subscription only when it is in effect.

A SUBSCRIBE waits until Redis has confirmed the channels of the topics and the node knows what a new subscriber receives
first. If all of that is known, the client is subscribed at once, without a task. Otherwise one coroutine (`_subscribe`)
runs the steps in order. Each SUBSCRIBE has its own record, so that overlapping SUBSCRIBEs are acknowledged or rejected
separately.

While a SUBSCRIBE waits, its client is a member of `joining:{topic}`: the node receives the topic's channel, but the
client receives nothing. UNSUBSCRIBE, or a new identity without permission, removes the client from that audience, and
the SUBSCRIBE goes on without the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final

from gateway.broker.client import Unavailable
from gateway.cluster.registry import Registry
from gateway.core import hub
from gateway.core.effects import SubscribeTopics
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Authenticated, Broadcast, Degraded, Event, Subscribed
from gateway.core.hub import Hub
from gateway.delivery.dispatcher import Dispatcher
from gateway.delivery.membership import Membership
from gateway.delivery.missed_messages import MissedMessages
from gateway.delivery.sender import Sender
from gateway.delivery.slices import SLICE_ITEMS, in_slices
from gateway.delivery.topic_copies import TopicCopies
from gateway.delivery.waiting_subscribe import WaitingSubscribe
from gateway.transports.connection import Connection, ConnectionStage

# SUBSCRIBEs of one client that may wait for Redis at a time; another one is rejected (5030).
MAX_WAITING: Final = 8
PREPARE_SECONDS: Final = 0.5  # pause before the node retries to read what a new subscriber receives first
# Missed messages are sent in parts of this size, each at most one message larger; the next part follows when the client
# has read most of the last. So a recovering client has at most this, one message, and HIGH_WATER_BYTES unsent.
# GATEWAY_BUFFER_BYTES limits the total of all clients.
RECOVERY_BYTES: Final = 64 << 10
READ_SECONDS: Final = 60.0  # a client that takes longer to read one part is closed as a slow consumer

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Subscriptions:
    """Keeps hub, pub/sub, registry and presence consistent about the subscriptions of each client.

    `spawn` runs a coroutine as a task of the node. `answer_seconds`: how long a welcome and the answer to AUTH wait for
    Redis, and how long a SUBSCRIBE delays the client's next frames.
    """

    def __init__(
        self,
        hub: Hub,
        dispatcher: Dispatcher,
        topic_copies: TopicCopies,
        registry: Registry,
        sender: Sender,
        spawn: Spawn,
        *,
        answer_seconds: float,
    ) -> None:
        self.degraded = False  # Redis is unreachable, and the clients were notified
        self._hub = hub
        self._dispatcher = dispatcher
        self._topic_copies = topic_copies
        self._missed_messages = MissedMessages(hub, topic_copies)
        self._membership = Membership(hub, dispatcher, topic_copies, registry)
        self._sender = sender
        self._spawn = spawn
        self._answer_seconds = answer_seconds
        self._unanswered: dict[
            Connection, tuple[Event, Callable[[], None]]
        ] = {}  # answers that wait for Redis: `_become`
        self._subscribing: dict[Connection, dict[WaitingSubscribe, asyncio.Task[None]]] = {}

    # ---- identity of a client

    def accept(self, connection: Connection, welcome: Event) -> None:
        """Subscribe a new client to the audiences of its user and role, then send `welcome`."""
        self._join_personal(connection, _personal(connection), welcome)
        if self.degraded:  # the other clients were notified before
            self._sender.send(connection, Degraded())

    def change_identity(self, connection: Connection) -> None:
        """Move a client with a new identity to the audiences of its user and role, and acknowledge."""
        self._join_personal(connection, self._leave_personal(connection), Authenticated())

    def redis_lost(self) -> None:
        """Send the answers that wait for Redis, which is unreachable."""
        self.degraded = True
        for connection in list(self._unanswered):
            self._answer(connection)  # no effect if the previous answer has closed this client

    def resume(self, connection: Connection) -> None:
        """Handle the client's next frames while a SUBSCRIBE still waits, because Redis is unreachable."""
        connection.release("identity")
        connection.release("subscribe")

    def _join_personal(self, connection: Connection, personal: Sequence[str], answer: Event) -> None:
        """Subscribe the client to `personal`; send `answer` when Redis has confirmed it, or after `answer_seconds`."""
        if connection.stage is not ConnectionStage.OPEN:
            return
        self._membership.add(connection, personal)
        confirmed = None if self.degraded else partial(self._join_confirmed, connection, answer)
        if self._dispatcher.join_channels(personal, confirmed) or confirmed is None:
            self._sender.reply(connection, answer)
            return
        self._unanswered[connection] = answer, confirmed
        connection.hold("identity")
        asyncio.get_running_loop().call_later(self._answer_seconds, confirmed)

    def _join_confirmed(self, connection: Connection, answer: Event) -> None:
        """Send the answer: Redis has confirmed, or the time is over."""
        if self._unanswered.get(connection, (None,))[0] is answer:
            self._answer(connection)
            connection.release("identity")

    def _answer(self, connection: Connection) -> None:
        if connection not in self._unanswered:
            return
        answer, confirmed = self._unanswered.pop(connection)
        self._dispatcher.cancel_wait(_personal(connection), confirmed)
        self._sender.reply(connection, answer)

    def _leave_personal(self, connection: Connection) -> list[str]:
        """Unsubscribe the client from the audiences of its former identity. Returns those of the new one.

        On topics with presence, the other clients are notified of the new user.
        """
        former, now = connection.audiences.personal, _personal(connection)
        if set(former) != set(now) or connection.session.info_changed:
            connection.session.info_changed = False
            self._remove_member(connection, [audience for audience in former if audience not in now])
            self._membership.mark_user_changed(connection)
        return now

    # ---- subscriptions of a client

    def subscribe(self, connection: Connection, effect: SubscribeTopics) -> None:
        """Subscribe the client to topics, and acknowledge when the subscription is in effect."""
        if connection.stage is not ConnectionStage.OPEN:
            return
        personal = self._leave_personal(connection) if effect.login else []
        if personal:
            self._membership.add(connection, personal)
        others = self._subscribing.get(connection, {})
        topics, options = effect.topics, effect.options
        refusal = self._membership.refusal(connection, topics, options, effect.request_id)
        if len(others) >= MAX_WAITING:
            message = f"The limit of {MAX_WAITING} waiting SUBSCRIBEs of this client is reached; send it again later"
            refusal = ProtocolError(ErrorReason.UNAVAILABLE, message, effect.request_id)
        if refusal is not None:
            self._dispatcher.join_channels(personal, None)
            self._sender.send_error(connection, refusal)
            return
        positions = {topic: effect.recover[topic] for topic in topics if topic in effect.recover}
        audiences = [*map(hub.topic_audience, topics), *personal]
        if (
            len(topics) <= SLICE_ITEMS
            and all(map(self._topic_copies.is_plain, topics))
            and self._dispatcher.join_channels(audiences, None)
        ):
            # The usual case: Redis has confirmed all channels, and no message precedes the acknowledgement.
            self._membership.add(connection, audiences, options)
            by_server, data = effect.by_server, effect.data
            self._sender.reply(connection, Subscribed(topics, effect.request_id, by_server=by_server, data=data))
            return
        asked = WaitingSubscribe(
            topics, audiences, effect.request_id, positions, effect.by_server, effect.whole, options,
            effect.join_leave, effect.data,
        )  # fmt: skip
        confirmed = len(topics) <= SLICE_ITEMS and self._join_channels(asked, asked.audiences)
        for topic in topics:
            self._hub.join(connection, hub.joining_topic(topic))
        steps = self._enter_topics(connection, asked)
        if confirmed:
            try:
                self._topic_copies.catch_up(positions)
                if self._is_ready(connection, topics) and next(steps, None) is None:
                    return
            except Exception as error:
                self._fail(connection, asked, error)
                return
        # Frames are handled in order, so the next ones wait, for a limited time. They do not wait during an outage,
        # whose end is unknown: the acknowledgement then follows later.
        if not self.degraded and not others:
            connection.hold("subscribe")
        task = self._spawn(self._subscribe(connection, asked, steps), "subscribe")
        self._subscribing.setdefault(connection, {})[asked] = task

    def unsubscribe(self, connection: Connection, topics: Sequence[str]) -> None:
        """Unsubscribe the client from topics, including those whose SUBSCRIBE still waits."""
        audiences = (hub.topic_audience, hub.joining_topic, hub.join_leave_audience)
        self._remove_member(connection, [of(topic) for of in audiences for topic in topics])

    def unsubscribe_all(
        self, connection: Connection, topics: Sequence[str], event: Event, then: Callable[[], None] = lambda: None
    ) -> None:
        """As `unsubscribe`, for any number of topics; then send `event` and call `then`, unless the client is gone.

        The client's next frames wait until this is done, because one of its messages is the cause.
        """
        if len(topics) > SLICE_ITEMS:
            connection.hold("unsubscribe")
            self._spawn(self._unsubscribe_all(connection, topics, event, then), "unsubscribe")
        else:
            self.unsubscribe(connection, topics)
            self._sender.send(connection, event)
            then()

    async def _unsubscribe_all(
        self, connection: Connection, topics: Sequence[str], event: Event, then: Callable[[], None]
    ) -> None:
        try:
            async for some in in_slices(topics):
                self.unsubscribe(connection, some)
            self._sender.reply(connection, event)
            if connection.stage is ConnectionStage.OPEN:
                then()
        except Exception:
            self._sender.send_internal_error(connection)
        finally:
            connection.release("unsubscribe")

    def remove(self, connection: Connection) -> None:
        """Remove a client that is gone from all audiences and from the registry."""
        self._answer(connection)  # sends nothing, but drops the waiting answer
        self._missed_messages.forget_client(connection)
        for asked, task in self._subscribing.pop(connection, {}).items():
            self._dispatcher.cancel_wait(asked.audiences, asked.confirm)
            task.cancel()
        self._membership.remove_client(connection)

    async def _subscribe(self, connection: Connection, asked: WaitingSubscribe, steps: Iterator[int]) -> None:
        """Complete a SUBSCRIBE that could not be completed at once. The task is cancelled when the client is gone."""
        held = asyncio.get_running_loop().call_later(self._answer_seconds, connection.release, "subscribe")
        try:
            if not asked.unconfirmed and not asked.confirmed.is_set():
                asked.unconfirmed = 1  # a placeholder until all parts are joined
                async for audiences in in_slices(asked.audiences):
                    self._join_channels(asked, audiences)
                asked.confirm()
            await asked.confirmed.wait()
            self._topic_copies.catch_up(asked.positions)
            async for topics in in_slices(asked.topics):
                await self._until_ready(connection, topics)
            # A read that began before may be older than the client's position
            self._topic_copies.catch_up(asked.positions)
            at: int | None = 0
            while at is not None:
                await self._until_read(connection)
                await self._until_ready(connection, asked.topics[at : at + SLICE_ITEMS])
                at = next(steps, None)
                await asyncio.sleep(0)
        except Exception as error:
            self._fail(connection, asked, error)
        finally:
            held.cancel()
            self._dispatcher.leave_channels(asked.audiences)  # the client may have unsubscribed meanwhile
            others = self._subscribing.get(connection, {})
            others.pop(asked, None)
            if not others:
                self._subscribing.pop(connection, None)
            connection.release("subscribe")

    def _join_channels(self, asked: WaitingSubscribe, audiences: Sequence[str]) -> bool:
        """Subscribe to the channels of some of the audiences. True if Redis has confirmed them already."""
        asked.unconfirmed += 1
        joined = self._dispatcher.join_channels(audiences, asked.confirm)
        if joined:
            asked.confirm()
        return joined

    def _is_ready(self, connection: Connection, topics: Sequence[str]) -> bool:
        return all(self._topic_copies.is_ready(topic) for topic in topics if self._is_wanted(connection, topic))

    async def _until_ready(self, connection: Connection, topics: Sequence[str]) -> None:
        while not self._is_ready(connection, topics):
            try:
                await self._topic_copies.prepare([topic for topic in topics if self._is_wanted(connection, topic)])
            except Unavailable:
                await asyncio.sleep(PREPARE_SECONDS)

    async def _until_read(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                await connection.drained()
        except TimeoutError:
            self._sender.evict(connection)

    def _enter_topics(self, connection: Connection, asked: WaitingSubscribe) -> Iterator[int]:
        """Send missed messages or snapshots, subscribe the client to each topic, and acknowledge.

        The last of these messages is sent in the same turn of the loop in which the client is subscribed, so no message
        is lost between them. The iterator yields the index of the next topic, after at most `SLICE_ITEMS` topics. The
        caller then waits until the client has read its messages and that topic is ready; new messages wait in the
        topic's stream meanwhile.
        """
        messages: list[Broadcast] = []
        room, entered = RECOVERY_BYTES, 0
        for at, topic in enumerate(asked.topics):
            while self._is_wanted(connection, topic):
                if room > 0 and entered < SLICE_ITEMS and self._topic_copies.is_ready(topic):
                    more, size, is_last = self._missed_messages.next_part(connection, topic, asked, room)
                    messages += more
                    room -= size
                    if is_last:
                        refusal = self._membership.refusal(connection, [topic], asked.options, asked.request_id)
                        if refusal is not None:
                            raise refusal
                        self._membership.add(connection, [hub.topic_audience(topic)], asked.options)
                        if topic in asked.join_leave:
                            self._membership.add(connection, [hub.join_leave_audience(topic)])
                        self._hub.leave(connection, hub.joining_topic(topic))
                        entered += 1
                        self._missed_messages.entered(connection, topic, asked)
                        break
                self._sender.send_missed(connection, messages)
                messages, room, entered = [], RECOVERY_BYTES, 0
                yield at
        self._sender.send_missed(connection, messages)
        self._acknowledge(connection, asked)

    def _acknowledge(self, connection: Connection, asked: WaitingSubscribe) -> None:
        """Acknowledge the subscribed topics, with the positions of those with history."""
        if connection.stage is not ConnectionStage.OPEN:
            return
        subscribed = [topic for topic in asked.topics if hub.topic_audience(topic) in connection.audiences]
        if not subscribed:
            message = "All topics of this SUBSCRIBE were unsubscribed before it was acknowledged"
            self._sender.send_error(connection, ProtocolError(ErrorReason.NO_VALID_TOPIC, message, asked.request_id))
            return
        if asked.whole and not all(asked.recovered.values()):
            self.unsubscribe(connection, subscribed)
            message = "The messages since this position cannot be recovered"
            self._sender.send_error(connection, ProtocolError(ErrorReason.UNRECOVERABLE, message, asked.request_id))
            return
        positions = {
            t: self._topic_copies.recovery.position(t) for t in subscribed if self._topic_copies.has_history(t)
        }
        self._sender.reply(
            connection,
            Subscribed(subscribed, asked.request_id, positions, asked.recovered, asked.by_server, asked.data),
        )

    def _fail(self, connection: Connection, asked: WaitingSubscribe, error: Exception) -> None:
        """Report that the SUBSCRIBE failed, and drop its topics unless another SUBSCRIBE waits for them."""
        if isinstance(error, ProtocolError):
            self._sender.send_error(connection, error)
        else:
            self._sender.send_internal_error(connection, asked.request_id)
        others = [other for other in self._subscribing.get(connection, {}) if other is not asked]
        wanted = {topic for other in others for topic in other.topics}
        self._remove_member(connection, [hub.joining_topic(topic) for topic in asked.topics if topic not in wanted])

    # ---- audiences

    @staticmethod
    def _is_wanted(connection: Connection, topic: str) -> bool:
        """Whether the client has subscribed to the topic and not unsubscribed since, and is still connected."""
        return connection.audiences.has_topic(topic)

    def _remove_member(self, connection: Connection, audiences: Sequence[str]) -> None:
        self._missed_messages.forget(connection, audiences)
        self._membership.remove(connection, audiences)


def _personal(connection: Connection) -> list[str]:
    return hub.personal_audiences(connection.session.identity.user, connection.session.identity.role)
