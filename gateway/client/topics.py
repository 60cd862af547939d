"""All subscriptions: what to send to the server for them, and which of them receive what the server sends.  (pure)

At most one SUBSCRIBE for a topic is unanswered, and no UNSUBSCRIBE is sent before its answer. So the client always
knows whether the server sends a topic, however often the caller subscribes and closes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.client.events import (
    Closed,
    Disconnected,
    Event,
    Message,
    Presence,
    Refused,
    TooLarge,
    message,
    refusal,
)
from gateway.client.limits import SUBSCRIBE_BYTES, SUBSCRIBE_TOPICS, Limits, Pace, batches
from gateway.client.pace import Backoff
from gateway.client.place import Place
from gateway.client.subscription import Subscription
from gateway.core import protocol
from gateway.core.protocol import Code

SUBSCRIBE_TRIES: Final = 3

Frame = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Topic:
    name: str
    place: Place
    subscriptions: dict[Subscription, None] = field(default_factory=dict)
    asked: bool = False  # a SUBSCRIBE is unanswered, or was refused for now
    covered: list[Subscription] = field(default_factory=list)  # the subscriptions that its answer is for
    joined: bool = False  # acknowledged on this connection


@dataclass(slots=True)
class _Ask:
    request_id: str
    entries: list[_Topic]
    data: bytes
    recovers: bool
    tries: int = 0
    refusals: int = 0


class Topics:
    """All subscriptions. `ack` and `answer`: seconds until a SUBSCRIBE is sent again, and until the client gives up.

    `changed` is called when `outgoing` may have something to send; `other` with each message on a topic without a
    subscription. `now` is in seconds of a monotonic clock.
    """

    def __init__(
        self, ack: float, answer: float, backoff: Backoff, changed: Callable[[], None],
        other: Callable[[Message], None],
    ) -> None:  # fmt: skip
        self.degraded = False  # the server has lost Redis, and said so
        self._ack = ack
        self._answer = answer
        self._backoff = backoff
        self._tell = changed
        self._other = other
        self._known: dict[str, _Topic] = {}
        self._changed: dict[_Topic, None] = {}  # those that may need a SUBSCRIBE or UNSUBSCRIBE
        self._connected = False
        self._limits = Limits()
        self._pace = Pace(self._limits.subscriptions_per_second)
        self._ids = itertools.count(1)
        self._asked: dict[str, _Ask] = {}  # unanswered SUBSCRIBEs, oldest first
        self._progress = 0.0  # when one was answered last, or the first of them sent
        self._look_again = 0.0  # when to send the oldest again
        self._refused: list[tuple[float, list[_Topic]]] = []  # refused for now: when to try again
        self._replies: list[bytes] = []  # messages to send because of what the server sent
        self._paced: float | None = None  # when the server's rate allows more

    # ---- the subscriptions

    def add(self, topic: str, buffer: int) -> Subscription:
        """Add a subscription to `topic`. The SUBSCRIBE is sent now or on the next connection."""
        subscription = Subscription(topic, buffer, self.leave)
        known = self._known.setdefault(topic, _Topic(topic, Place(topic)))
        known.subscriptions[subscription] = None
        self._touch(known)
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """End a subscription. After the last one of its topic the UNSUBSCRIBE is sent."""
        subscription.end(Closed(None, "unsubscribed"))
        known = self._known.get(subscription.topic)
        if known is not None and subscription in known.subscriptions:
            del known.subscriptions[subscription]
            self._left(known)

    def leave_all(self, topic: str) -> None:
        """End all subscriptions to `topic`."""
        known = self._known.get(topic)
        for subscription in list(known.subscriptions) if known is not None else ():
            self.leave(subscription)

    # ---- connections

    def connected(self, limits: Limits) -> None:
        """There is a connection: subscribe to all topics again, with their positions."""
        self._connected = True
        self._limits = limits
        self._pace = Pace(limits.subscriptions_per_second)
        for known in self._known.values():
            self._touch(known)

    def disconnected(self) -> None:
        """The connection is lost."""
        self._connected = self.degraded = False
        self._paced = None
        self._asked.clear()
        self._changed.clear()
        self._refused.clear()
        self._replies.clear()
        for known in list(self._known.values()):
            known.asked = known.joined = False
            known.place.disconnected()
            for subscription in known.subscriptions:
                subscription.live = False
            if not known.subscriptions:
                del self._known[known.name]

    def end(self, why: BaseException) -> None:
        """There will be no other connection: end all subscriptions."""
        for topic in list(self._known):
            self._drop(topic, why)

    # ---- what to send

    def due(self) -> float | None:
        """The time at which to call `outgoing` again though nothing changed; None: there is no need."""
        times = [when for when, _ in self._refused]
        times += [self._look_again] if self._asked else []
        times += [self._paced] if self._paced is not None else []
        return min(times, default=None)

    def outgoing(self, now: float) -> list[bytes]:
        """The messages to send now, in order.

        Raises:
            Disconnected: The server has not answered a SUBSCRIBE for `answer` seconds; another server may.
        """
        if not self._connected:
            return []
        texts, self._replies = self._replies, []
        for when, entries in list(self._refused):
            if when <= now:
                self._refused.remove((when, entries))
                self._release(entries)
        if self._asked and now >= self._look_again:
            texts += self._ask_again(now)
        left, wanted = self._differences()
        texts += [_unsubscribe(batch) for batch in batches(left, lambda _: None, self._limits.message_bytes)]
        self._paced = None
        window = min(self._limits.message_bytes, SUBSCRIBE_BYTES)
        most = min(SUBSCRIBE_TOPICS, self._pace.most)
        for names in batches(wanted, lambda name: wanted[name].place.recover(), window, most):
            wait = self._pace.seconds(len(names), now)
            if wait > 0:
                self._paced = now + wait
                break
            ask = self._make([wanted[name] for name in names])
            if len(ask.data) > self._limits.message_bytes:
                self._drop(
                    names[0], TooLarge("SUBSCRIBE", len(ask.data), self._limits.message_bytes)
                )  # it is alone in it
                continue
            waiting = sum(len(other.data) for other in self._asked.values())
            if waiting and waiting + len(ask.data) > window:
                break  # the server bounds the bytes that wait behind an unanswered SUBSCRIBE
            texts.append(self._send(ask, now))
        else:
            if not self._asked:
                self._backoff.reset()  # everything is acknowledged
        return texts

    def _differences(self) -> tuple[list[str], dict[str, _Topic]]:
        """The topics to unsubscribe from, and the entries to subscribe to by topic."""
        left: list[str] = []
        for known in list(self._changed):
            if self._known.get(known.name) is known and not known.asked:  # else it ended, or its answer leads back here
                if any(not subscription.live for subscription in known.subscriptions):
                    continue
                if not known.subscriptions:
                    del self._known[known.name]
                    if known.joined:
                        left.append(known.name)
            del self._changed[known]
        return left, {known.name: known for known in self._changed}

    def _make(self, entries: list[_Topic]) -> _Ask:
        frame: Frame = {"type": "SUBSCRIBE", "topics": [known.name for known in entries]}
        recover = {known.name: place for known in entries if (place := known.place.recover())}
        if recover:
            frame["recover"] = recover
        frame["requestId"] = f"s{next(self._ids)}"
        return _Ask(frame["requestId"], entries, protocol.dumps(frame), bool(recover))

    def _send(self, ask: _Ask, now: float) -> bytes:
        for known in ask.entries:
            self._changed.pop(known, None)
            known.asked = True
            known.covered = list(known.subscriptions)
        if not self._asked:
            self._progress, self._look_again = now, now + self._ack
        self._asked[ask.request_id] = ask
        return self._count(ask, now)

    def _count(self, ask: _Ask, now: float) -> bytes:
        ask.tries += 1
        self._pace.take(len(ask.entries), now)
        return ask.data

    def _ask_again(self, now: float) -> list[bytes]:
        self._look_again = now + self._ack
        waited_for = (ask for ask in self._asked.values() if any(known.subscriptions for known in ask.entries))
        ask = next(waited_for, None)
        if ask is None or self.degraded:
            self._progress = now  # without Redis another node could not answer either
        elif not ask.recovers and ask.tries < SUBSCRIBE_TRIES and not self._pace.seconds(len(ask.entries), now):
            # One that recovers is sent once: its copy would have the server send the same messages again.
            return [self._count(ask, now)]
        elif now - self._progress >= self._answer:
            raise Disconnected("no answer to SUBSCRIBE")
        return []

    # ---- what the server sends

    def heard(self, frame: Frame, now: float) -> None:
        """Handle a message of the server that answers no call."""
        match frame:
            case {"type": "DATA", "topic": str(topic)}:
                heard = message(frame)
                known = self._known.get(topic)
                if known is not None:
                    self._hand_on(known, known.place.take(heard))
                else:
                    self._other(heard)
            case {"type": "PRESENCE", "topic": str(topic)} if topic in self._known:
                who = {name: value for name, value in frame.items() if name not in ("type", "topic")}
                self._hand_on(self._known[topic], [Presence(topic, who)])
            case {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": [*topics]}:
                ask = self._asked.pop(str(frame.get("requestId")), None)
                if ask is not None:
                    self._subscribed(ask, frozenset(topics), frame.get("positions") or {}, now)
                elif ended := [topic for topic in topics if topic not in self._known]:
                    # A second answer, to a SUBSCRIBE that was sent again. The topic ended between the two.
                    self._replies.append(_unsubscribe(ended))
                    self._tell()
            case {"type": "ERROR"}:
                ask = self._asked.get(str(frame.get("requestId", frame.get("inReplyTo"))))
                if ask is not None:
                    self._turned_down(ask, refusal(frame), now)
            case {"type": "SYSTEM", "action": "gap", "data": {"topics": [*topics]}}:
                for topic in topics:
                    known = self._known.get(topic)
                    if known is not None:
                        self._hand_on(known, known.place.lost("the server could not hear the topic"))
            case {"type": "SYSTEM", "action": "unsubscribed", "data": {"topics": [*topics], **about}}:
                for topic in topics:
                    self._drop(topic, Refused(Code.NOT_ALLOWED, str(about.get("reason", "unsubscribed"))))
            case {"type": "SYSTEM", "action": "degraded" | "restored" as action}:
                self.degraded = action == "degraded"

    def _subscribed(
        self, ask: _Ask, heard: frozenset[str], positions: Mapping[str, Mapping[str, Any]], now: float
    ) -> None:
        self._answered(now)
        for known in ask.entries:
            topic, position = known.name, positions.get(known.name)
            known.asked = False
            self._touch(known)
            known.joined = known.joined or topic in heard
            if not known.joined:
                self._drop(topic, Refused(Code.NO_VALID_TOPIC, f"no such topic: {topic}"))
                continue
            recovered = position is not None and position.get("recovered") is True
            news = known.place.acknowledged(position)
            self._hand_on(known, news, lambda subscription: subscription.entered.done())  # newcomers missed nothing
            for subscription in known.covered:
                # After a recovery the server sends no last value, so new subscriptions need another SUBSCRIBE.
                if not subscription.ended and (subscription.entered.done() or not recovered):
                    subscription.enter()

    def _turned_down(self, ask: _Ask, why: Refused, now: float) -> None:
        ask.refusals += 1
        if ask.refusals < ask.tries:
            return  # the other copies of it may be acknowledged
        del self._asked[ask.request_id]
        self._answered(now)
        entries = [known for known in ask.entries if known.subscriptions]
        self._release(known for known in ask.entries if not known.subscriptions)  # closed meanwhile
        if why.temporary:
            if why.code == Code.TOO_MANY_REQUESTS:
                self._pace.refused(now)
            self._refused.append((now + self._backoff.seconds(), entries))
        elif len(ask.entries) > 1:  # all or nothing: one of them is to blame
            half = (len(entries) + 1) // 2
            self._replies += [self._send(self._make(some), now) for some in (entries[:half], entries[half:]) if some]
        else:
            for known in entries:
                if known.joined:
                    self._replies.append(_unsubscribe([known.name]))
                known.asked = False
                self._drop(known.name, why)
        self._tell()

    def _answered(self, now: float) -> None:
        self._progress, self._look_again = now, now + self._ack

    def _release(self, entries: Iterable[_Topic]) -> None:
        for known in entries:
            known.asked = False
            self._touch(known)

    def _touch(self, known: _Topic) -> None:
        self._changed[known] = None
        self._tell()

    def _left(self, known: _Topic) -> None:
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
        known.place, known.joined = Place(topic), False
        if not known.asked:
            del self._known[topic]  # else its answer removes it

    def _hand_on(
        self, known: _Topic, events: Iterable[Event], concerns: Callable[[Subscription], bool] = lambda _: True
    ) -> None:
        for event in events:
            initial = isinstance(event, Message) and event.initial
            for subscription in known.subscriptions:
                # A snapshot comes again with every SUBSCRIBE: it is for who has just come, or comes back.
                if concerns(subscription) and not (initial and subscription.entered.done() and not known.place.away):
                    subscription.offer(event)
        for subscription in [each for each in known.subscriptions if each.ended]:  # it did not keep up
            self.leave(subscription)


def _unsubscribe(topics: Iterable[str]) -> bytes:
    return protocol.dumps({"type": "UNSUBSCRIBE", "topics": list(topics)})
