"""The topics that are heard: on whichever connection there is, one subscription on the wire for all who hear one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.client.conversation import Conversation, Frame
from gateway.client.events import Closed, Disconnected, Event, Message, Presence, Refused, message
from gateway.client.pace import Backoff
from gateway.client.place import Place
from gateway.client.subscription import Subscription
from gateway.core.protocol import Code

SUBSCRIBE_TRIES: Final = 3


@dataclass(slots=True)
class _Topic:
    place: Place
    subscriptions: list[Subscription] = field(default_factory=list)


class Topics:
    """All subscriptions. `ack` and `answer`: seconds until a SUBSCRIBE is sent again, and until it is given up.

    `spawn` runs a coroutine under the gateway's eye; `other` is given messages on topics nobody subscribed to here.
    """

    def __init__(
        self, ack: float, answer: float, backoff: Backoff, spawn: Callable[[Coroutine[Any, Any, None], str], None],
        other: Callable[[Message], None],
    ) -> None:  # fmt: skip
        self._ack = ack
        self._answer = answer
        self._backoff = backoff
        self._spawn = spawn
        self._other = other
        self._known: dict[str, _Topic] = {}
        self._talk: Conversation | None = None  # while topics may be asked for

    # ---- who hears what

    def add(self, topic: str, buffer: int) -> Subscription:
        """One more who hears `topic`, asked for now or on the next connection."""
        subscription = Subscription(topic, buffer, self.leave)
        self._known.setdefault(topic, _Topic(Place(topic))).subscriptions.append(subscription)
        if self._talk is not None:
            self._spawn(self._join(self._talk, (topic,)), "subscribe")
        return subscription

    async def leave(self, subscription: Subscription) -> None:
        """One less; the last has the topic left."""
        subscription.end(Closed(None, "unsubscribed"))
        known = self._known.get(subscription.topic)
        if known is None or subscription not in known.subscriptions:
            return
        known.subscriptions.remove(subscription)
        if not known.subscriptions:
            del self._known[subscription.topic]
            await self._unsubscribe(subscription.topic)

    async def leave_all(self, topic: str) -> None:
        """End all who hear `topic`."""
        known = self._known.get(topic)
        for subscription in list(known.subscriptions) if known is not None else ():
            await self.leave(subscription)

    # ---- connections

    def connected(self, talk: Conversation) -> None:
        """There is a connection: all topics are asked for in one frame, with their places."""
        self._talk = talk
        self._spawn(self._join(talk, tuple(self._known)), "subscribe")

    def disconnected(self) -> None:
        """It is lost."""
        self._talk = None
        for known in self._known.values():
            known.place.disconnected()
            for subscription in known.subscriptions:
                subscription.live = False

    def end(self, why: BaseException) -> None:
        """There will be no other."""
        for topic in list(self._known):
            self._drop(topic, why)

    # ---- asking

    async def _join(self, talk: Conversation, topics: tuple[str, ...]) -> None:
        """Subscribe in one frame. If the connection is lost meanwhile, the next asks for them again."""
        topics = tuple(topic for topic in topics if topic in self._known)
        if not topics:
            return  # left meanwhile
        recover = {topic: place for topic in topics if (place := self._known[topic].place.recover())}
        frame: Frame = {"type": "SUBSCRIBE", "topics": topics}
        if recover:
            frame["recover"] = recover
        try:
            async with asyncio.timeout(self._answer):
                await talk.call(frame, tries=SUBSCRIBE_TRIES, again=self._ack)
        except TimeoutError:
            if talk.degraded:
                self._again(talk, topics)  # Redis is away: another node could not either
            else:
                talk.give_up()  # this node cannot: perhaps another can
        except Disconnected:
            pass
        except Refused as refusal:
            await self._refused(talk, topics, refusal)

    async def _refused(self, talk: Conversation, topics: tuple[str, ...], refusal: Refused) -> None:
        if refusal.temporary:
            await asyncio.sleep(self._backoff.seconds())
            self._again(talk, topics)
        elif len(topics) > 1:  # all or nothing: one of them is to blame
            half = len(topics) // 2
            self._again(talk, topics[:half])
            self._again(talk, topics[half:])
        else:
            self._drop(topics[0], refusal)

    def _again(self, talk: Conversation, topics: tuple[str, ...]) -> None:
        if talk is self._talk:
            self._spawn(self._join(talk, topics), "subscribe")

    async def _unsubscribe(self, topic: str) -> None:
        if self._talk is not None:
            with contextlib.suppress(Disconnected):
                await self._talk.send({"type": "UNSUBSCRIBE", "topics": [topic]})

    def _drop(self, topic: str, why: BaseException) -> None:
        known = self._known.pop(topic, None)
        for subscription in known.subscriptions if known is not None else ():
            subscription.end(why)

    # ---- hearing

    def heard(self, frame: Frame, asked: Frame | None) -> None:
        """What the server says of topics; `asked`: the frame that it answers."""
        match frame:
            case {"type": "DATA", "topic": str(topic)} if asked is None:
                heard = message(frame)
                known = self._known.get(topic)
                if known is not None:
                    self._hand_on(topic, known, known.place.take(heard))
                else:
                    self._other(heard)
            case {"type": "ACKNOWLEDGMENT", "operation": "subscribe"} if asked is not None:
                self._subscribed(asked["topics"], frame)  # without: answered already, it was sent twice
            case {"type": "PRESENCE", "topic": str(topic)} if topic in self._known:
                who = {name: value for name, value in frame.items() if name not in ("type", "topic")}
                self._hand_on(topic, self._known[topic], [Presence(topic, who)])
            case {"type": "SYSTEM", "action": "gap", "data": {"topics": [*topics]}}:
                for topic in topics:
                    known = self._known.get(topic)
                    if known is not None:
                        self._hand_on(topic, known, known.place.lost("the server could not hear the topic"))
            case {"type": "SYSTEM", "action": "unsubscribed", "data": {"topics": [*topics], **about}}:
                for topic in topics:
                    self._drop(topic, Refused(Code.NOT_ALLOWED, str(about.get("reason", "unsubscribed"))))

    def _subscribed(self, asked: Iterable[str], frame: Frame) -> None:
        positions, heard = frame.get("positions", {}), set(frame["topics"])
        for topic in asked:
            known = self._known.get(topic)
            if known is None:
                continue
            if topic not in heard:
                self._drop(topic, Refused(Code.NO_VALID_TOPIC, f"no such topic: {topic}"))
                continue
            for subscription in known.subscriptions:
                subscription.live = True
            position = positions.get(topic)
            news = known.place.acknowledged(position)
            self._hand_on(
                topic, known, news, lambda subscription: subscription.entered.done()
            )  # newcomers missed nothing
            newcomers = [subscription for subscription in known.subscriptions if not subscription.entered.done()]
            if newcomers and self._talk is not None and position is not None and position.get("recovered") is True:
                # The server sends what was missed instead of the last value: ask again, for the newcomers' last value.
                self._again(self._talk, (topic,))
                continue
            for subscription in newcomers:
                subscription.entered.set_result(None)

    def _hand_on(
        self, topic: str, known: _Topic, events: Iterable[Event],
        concerns: Callable[[Subscription], bool] = lambda _: True,
    ) -> None:  # fmt: skip
        for event in events:
            initial = isinstance(event, Message) and event.initial
            for subscription in known.subscriptions:
                # A snapshot comes again with every SUBSCRIBE: it is for who has just come, or comes back.
                if concerns(subscription) and not (initial and subscription.entered.done() and not known.place.away):
                    subscription.offer(event)
        for subscription in [s for s in known.subscriptions if s.ended]:
            known.subscriptions.remove(subscription)
        if not known.subscriptions and self._known.pop(topic, None) is not None:
            self._spawn(self._unsubscribe(topic), "unsubscribe")
