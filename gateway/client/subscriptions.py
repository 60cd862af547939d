"""All subscriptions of the client: the messages to send for them, and the delivery of received messages.  (pure)

Each topic has at most one unanswered SUBSCRIBE, and the client sends no UNSUBSCRIBE before its reply. So the client
always knows whether the server sends a topic, however often the caller subscribes and unsubscribes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from gateway.client.backoff import Backoff
from gateway.client.events import Closed, Disconnected, Event, Message, Presence, Refused, TooLarge, message, refusal
from gateway.client.known_topic import KnownTopic, SubscribeRequest
from gateway.client.server_limits import SUBSCRIBE_BYTES, SUBSCRIBE_TOPICS, SendRate, ServerLimits, batches
from gateway.client.subscription import Subscription
from gateway.client.topic_position import TopicPosition
from gateway.core import json_text
from gateway.core.json_text import Json
from gateway.core.subscription_options import DELTA_FORMAT
from gateway.protocols.native.codes import ErrorCode

SUBSCRIBE_TRIES: Final = 3

Frame = dict[str, Any]


class TopicSubscriptions:
    """All subscriptions of the client. Times are seconds of a monotonic clock.

    Args:
        ack: Seconds until an unanswered SUBSCRIBE is sent again.
        answer: Seconds until the client gives up the connection.
        backoff: The wait before a retry of a refused SUBSCRIBE.
        changed: Called when `messages_due` may have messages to send.
        other: Called with each message on a topic without a subscription.
    """

    def __init__(
        self, ack: float, answer: float, backoff: Backoff, changed: Callable[[], None],
        other: Callable[[Message], None],
    ) -> None:  # fmt: skip
        self.degraded = False  # the server has reported that it has lost Redis
        self._ack = ack
        self._answer = answer
        self._backoff = backoff
        self._notify = changed
        self._other = other
        self._known: dict[str, KnownTopic] = {}
        self._changed: dict[KnownTopic, None] = {}  # topics that may need a SUBSCRIBE or UNSUBSCRIBE
        self._connected = False
        self._limits = ServerLimits()
        self._pace = SendRate(self._limits.subscriptions_per_second)
        self._ids = itertools.count(1)
        self._unanswered: dict[str, SubscribeRequest] = {}  # unanswered SUBSCRIBEs, oldest first
        self._progress = 0.0  # when the last reply came, or when the first of them was sent
        self._retry_at = 0.0  # when to send the oldest again
        self._refused: list[
            tuple[float, list[KnownTopic]]
        ] = []  # temporarily refused topics, with the time of the retry
        self._replies: list[bytes] = []  # messages to send in reaction to the server's messages
        self._paced: float | None = None  # when the server's rate allows more

    # ---- the subscriptions

    def add(self, topic: str, buffer: int, tag_filter: Json = None, *, delta: bool = False) -> Subscription:
        """Add a subscription to `topic`. The SUBSCRIBE is sent now or on the next connection.

        Raises:
            TypeError, ValueError: An argument is not one that JSON can hold.
            ValueError: The topic has a subscription with another filter.
        """
        if not isinstance(topic, str):
            raise TypeError(f"topic is of type {type(topic).__name__}; it must be a str")
        options = {"filter": tag_filter} if tag_filter is not None else {}
        if delta:
            options["delta"] = DELTA_FORMAT
        json_text.dumps([topic, options])
        subscription = Subscription(topic, buffer, self.remove)
        known = self._known.setdefault(topic, KnownTopic(topic, TopicPosition(topic)))
        if not known.subscriptions:
            known.options = options
        elif known.options.get("filter") != tag_filter:
            raise ValueError(f"{topic} has a subscription with another filter: close it, or filter here")
        known.subscriptions[subscription] = None
        self._touch(known)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """End a subscription. After the last one of its topic the UNSUBSCRIBE is sent."""
        subscription.end(Closed(None, "unsubscribed"))
        known = self._known.get(subscription.topic)
        if known is not None and subscription in known.subscriptions:
            del known.subscriptions[subscription]
            self._left(known)

    def remove_topic(self, topic: str) -> None:
        """End all subscriptions to `topic`."""
        known = self._known.get(topic)
        for subscription in list(known.subscriptions) if known is not None else ():
            self.remove(subscription)

    # ---- connections

    def connected(self, limits: ServerLimits) -> None:
        """Subscribe to all topics again on a new connection, with their positions."""
        self._connected = True
        self._limits = limits
        self._pace = SendRate(limits.subscriptions_per_second)
        for known in self._known.values():
            self._touch(known)

    def disconnected(self) -> None:
        """Reset all topics after a lost connection."""
        self._connected = self.degraded = False
        self._paced = None
        self._unanswered.clear()
        self._changed.clear()
        self._refused.clear()
        self._replies.clear()
        for known in list(self._known.values()):
            known.pending = known.joined = False
            known.position.disconnected()
            for subscription in known.subscriptions:
                subscription.live = False
            if not known.subscriptions:
                del self._known[known.name]

    def end_all(self, why: BaseException) -> None:
        """End all subscriptions, because the client does not reconnect."""
        for topic in list(self._known):
            self._drop(topic, why)

    # ---- what to send

    def due(self) -> float | None:
        """The time of the next call of `messages_due` if nothing changes before; None: no call is needed."""
        times = [when for when, _ in self._refused]
        times += [self._retry_at] if self._unanswered else []
        times += [self._paced] if self._paced is not None else []
        return min(times, default=None)

    def messages_due(self, now: float) -> list[bytes]:
        """The messages to send now, in order.

        Raises:
            Disconnected: The server has not replied to a SUBSCRIBE for `answer` seconds. Another server may.
        """
        if not self._connected:
            return []
        texts, self._replies = self._replies, []
        for when, entries in list(self._refused):
            if when <= now:
                self._refused.remove((when, entries))
                self._release(entries)
        if self._unanswered and now >= self._retry_at:
            texts += self._retry(now)
        left, wanted = self._differences()
        texts += [_unsubscribe(batch) for batch in batches(left, lambda _: None, self._limits.message_bytes)]
        self._paced = None
        window = min(self._limits.message_bytes, SUBSCRIBE_BYTES)
        most = min(SUBSCRIBE_TOPICS, self._pace.most)
        for names in self._batches(wanted, window, most):
            wait = self._pace.delay(len(names), now)
            if wait > 0:
                self._paced = now + wait
                break
            request = self._make([wanted[name] for name in names])
            if len(request.data) > self._limits.message_bytes:
                self._drop(
                    names[0], TooLarge("SUBSCRIBE", len(request.data), self._limits.message_bytes)
                )  # it is alone in it
                continue
            waiting = sum(len(other.data) for other in self._unanswered.values())
            if waiting and waiting + len(request.data) > window:
                break  # the server bounds the bytes that wait behind an unanswered SUBSCRIBE
            texts.append(self._send(request, now))
        else:
            if not self._unanswered:
                self._backoff.reset()  # everything is acknowledged
        return texts

    def _differences(self) -> tuple[list[str], dict[str, KnownTopic]]:
        """The topics to unsubscribe from, and the entries to subscribe to by topic."""
        left: list[str] = []
        for known in list(self._changed):
            if (
                self._known.get(known.name) is known and not known.pending
            ):  # otherwise it ended, or its reply marks it as changed again
                if any(not subscription.live for subscription in known.subscriptions):
                    continue
                if not known.subscriptions:
                    del self._known[known.name]
                    if known.joined:
                        left.append(known.name)
            del self._changed[known]
        return left, {known.name: known for known in self._changed}

    def _batches(self, wanted: Mapping[str, KnownTopic], most_bytes: int, most: int) -> Iterator[list[str]]:
        """The topics of each SUBSCRIBE. Those of one SUBSCRIBE have the same options."""
        groups: dict[bytes, list[str]] = {}
        for known in wanted.values():
            groups.setdefault(json_text.dumps(known.options), []).append(known.name)
        for names in groups.values():
            yield from batches(names, lambda name: wanted[name].position.recover(), most_bytes, most)

    def _make(self, entries: list[KnownTopic]) -> SubscribeRequest:
        frame: Frame = {"type": "SUBSCRIBE", "topics": [known.name for known in entries], **entries[0].options}
        recover = {known.name: place for known in entries if (place := known.position.recover())}
        if recover:
            frame["recover"] = recover
        frame["requestId"] = f"s{next(self._ids)}"
        return SubscribeRequest(frame["requestId"], entries, json_text.dumps(frame), bool(recover))

    def _send(self, request: SubscribeRequest, now: float) -> bytes:
        for known in request.entries:
            self._changed.pop(known, None)
            known.pending = True
            known.covered = list(known.subscriptions)
        if not self._unanswered:
            self._progress, self._retry_at = now, now + self._ack
        self._unanswered[request.request_id] = request
        return self._count(request, now)

    def _count(self, request: SubscribeRequest, now: float) -> bytes:
        request.tries += 1
        self._pace.take(len(request.entries), now)
        return request.data

    def _retry(self, now: float) -> list[bytes]:
        self._retry_at = now + self._ack
        wanted_requests = (
            request for request in self._unanswered.values() if any(known.subscriptions for known in request.entries)
        )
        request = next(wanted_requests, None)
        if request is None or self.degraded:
            self._progress = now  # without Redis, another node could not reply either
        elif (
            not request.recovers and request.tries < SUBSCRIBE_TRIES and not self._pace.delay(len(request.entries), now)
        ):
            # A SUBSCRIBE with `recover` is sent once, because the server would send the missed messages again.
            return [self._count(request, now)]
        elif now - self._progress >= self._answer:
            raise Disconnected("no answer to SUBSCRIBE")
        return []

    # ---- what the server sends

    def receive(self, frame: Frame, now: float) -> None:
        """Process a message of the server that is not the reply to a call."""
        match frame:
            case {"type": "DATA", "topic": str(topic), "delta": _}:
                known = self._known.get(topic)
                if known is not None:
                    self._delta_received(known, frame)
            case {"type": "DATA", "topic": str(topic)}:
                received = message(frame)
                known = self._known.get(topic)
                if known is not None:
                    self._deliver(known, known.position.message_received(received))
                else:
                    self._other(received)
            case {"type": "PRESENCE", "topic": str(topic)} if topic in self._known:
                fields = {name: value for name, value in frame.items() if name not in ("type", "topic")}
                self._deliver(self._known[topic], [Presence(topic, fields)])
            case {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": [*topics]}:
                request = self._unanswered.pop(str(frame.get("requestId")), None)
                if request is not None:
                    self._subscribed(request, frozenset(topics), frame.get("positions") or {}, now)
                elif ended := [topic for topic in topics if topic not in self._known]:
                    # The second reply to a SUBSCRIBE that was sent twice. The topic ended between the replies.
                    self._replies.append(_unsubscribe(ended))
                    self._notify()
            case {"type": "ERROR"}:
                request = self._unanswered.get(str(frame.get("requestId", frame.get("inReplyTo"))))
                if request is not None:
                    self._handle_refusal(request, refusal(frame), now)
            case {"type": "SYSTEM", "action": "gap", "data": {"topics": [*topics]}}:
                for topic in topics:
                    known = self._known.get(topic)
                    if known is not None:
                        self._deliver(known, known.position.lost("the server was not subscribed to the topic"))
            case {"type": "SYSTEM", "action": "unsubscribed", "data": {"topics": [*topics], **about}}:
                for topic in topics:
                    self._drop(topic, Refused(ErrorCode.NOT_ALLOWED, str(about.get("reason", "unsubscribed"))))
            case {"type": "SYSTEM", "action": "degraded" | "restored" as action}:
                self.degraded = action == "degraded"

    def _delta_received(self, known: KnownTopic, frame: Frame) -> None:
        """Deliver the message of a delta. If the delta does not apply, subscribe again and recover."""
        try:
            received = message(known.base.expanded(frame))
        except ValueError:
            known.position.disconnected()
            for subscription in known.subscriptions:
                subscription.live = False
            self._touch(known)
        else:
            self._deliver(known, known.position.message_received(received))

    def _subscribed(
        self,
        request: SubscribeRequest,
        accepted: frozenset[str],
        positions: Mapping[str, Mapping[str, Any]],
        now: float,
    ) -> None:
        self._answered(now)
        for known in request.entries:
            topic, position = known.name, positions.get(known.name)
            known.pending = False
            self._touch(known)
            known.joined = known.joined or topic in accepted
            if not known.joined:
                self._drop(topic, Refused(ErrorCode.NO_VALID_TOPIC, f"no such topic: {topic}"))
                continue
            recovered = position is not None and position.get("recovered") is True
            events = known.position.acknowledged(position)
            # New subscriptions have missed nothing, so they do not receive these events.
            self._deliver(known, events, lambda subscription: subscription.entered.done())
            for subscription in known.covered:
                # After a recovery the server sends no snapshot, so new subscriptions need another SUBSCRIBE.
                if not subscription.ended and (subscription.entered.done() or not recovered):
                    subscription.acknowledged()

    def _handle_refusal(self, request: SubscribeRequest, why: Refused, now: float) -> None:
        request.refusals += 1
        if request.refusals < request.tries:
            return  # other copies of this SUBSCRIBE may be acknowledged
        del self._unanswered[request.request_id]
        self._answered(now)
        entries = [known for known in request.entries if known.subscriptions]
        self._release(known for known in request.entries if not known.subscriptions)  # ended meanwhile
        if why.temporary:
            if why.code == ErrorCode.TOO_MANY_REQUESTS:
                self._pace.refused(now)
            self._refused.append((now + self._backoff.seconds(), entries))
        elif len(request.entries) > 1:  # SUBSCRIBE is all or nothing, so find the refused topic by halves
            half = (len(entries) + 1) // 2
            self._replies += [self._send(self._make(some), now) for some in (entries[:half], entries[half:]) if some]
        else:
            for known in entries:
                if known.joined:
                    self._replies.append(_unsubscribe([known.name]))
                known.pending = False
                self._drop(known.name, why)
        self._notify()

    def _answered(self, now: float) -> None:
        self._progress, self._retry_at = now, now + self._ack

    def _release(self, entries: Iterable[KnownTopic]) -> None:
        for known in entries:
            known.pending = False
            self._touch(known)

    def _touch(self, known: KnownTopic) -> None:
        self._changed[known] = None
        self._notify()

    def _left(self, known: KnownTopic) -> None:
        if known.subscriptions:
            return
        if self._connected:
            self._touch(known)
        else:
            del self._known[known.name]

    def _drop(self, topic: str, why: BaseException) -> None:
        known = self._known.get(topic)
        if known is None:
            return
        for subscription in known.subscriptions:
            subscription.end(why)
        known.subscriptions.clear()
        known.position, known.joined = TopicPosition(topic), False
        if not known.pending:
            del self._known[topic]  # otherwise the reply to its SUBSCRIBE removes it

    def _deliver(
        self, known: KnownTopic, events: Iterable[Event], concerns: Callable[[Subscription], bool] = lambda _: True
    ) -> None:
        for event in events:
            initial = isinstance(event, Message) and event.initial
            for subscription in known.subscriptions:
                # The server sends a snapshot after every SUBSCRIBE. Only new and recovering subscriptions receive it.
                if concerns(subscription) and not (
                    initial and subscription.entered.done() and not known.position.recovering
                ):
                    subscription.put(event)
        for subscription in [each for each in known.subscriptions if each.ended]:  # its buffer was full
            self.remove(subscription)


def _unsubscribe(topics: Iterable[str]) -> bytes:
    return json_text.dumps({"type": "UNSUBSCRIBE", "topics": list(topics)})
