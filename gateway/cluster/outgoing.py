"""What is published, on its way to Redis: the final text is made here, once for the whole cluster.

For a topic with history one Lua step numbers, keeps and publishes it; for one with a snapshot another keeps and
publishes it; for the others it is one PUBLISH.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.cluster import rows
from gateway.cluster.envelope import Envelope, Kind
from gateway.cluster.history import History
from gateway.cluster.keys import Keys, node_of
from gateway.cluster.leader import Fence, Fenced
from gateway.cluster.link import Command, Link, Unavailable, Unconfirmed, WrongType
from gateway.cluster.snapshots import Snapshots
from gateway.core import hub, protocol, replies, topics
from gateway.core.position import Position
from gateway.core.publication import Publication, refuse_key
from gateway.core.topics import RulesError, TopicRules
from gateway.metrics import Metrics

MAX_MESSAGE_BYTES: Final = 1 << 20  # where no node's setting says otherwise
MAX_RULES_BYTES: Final = 256 << 10
RULES_SECONDS: Final = 30.0  # so long are rules believed that were read from Redis
RULES_LIFE_SECONDS: Final = 86_400  # in Redis; nodes write them again every hour
MARGIN_BYTES: Final = 256  # what a message is longer by when it has its place, and what is counted beside its text
MESSAGE_BYTES: Final = 1024  # beside a message's text: its entry, and the topic's other rows


class TooLarge(ValueError):
    """A publication that no node would relay."""


class Outgoing:
    """The one way out for all that is published. `now` gives seconds since 1970.

    `rules`: a node's own; None: those that the nodes have written to Redis.
    """

    def __init__(
        self, link: Link, keys: Keys, rules: TopicRules | None, metrics: Metrics, *, max_message_bytes: int,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._link = link
        self._rules = rules or TopicRules(())
        self._rules_due = -math.inf if rules is None else math.inf  # loop time to read them at
        self._keys = keys
        self._metrics = metrics
        self._max_bytes = max_message_bytes
        self._now = now
        self._history = History(link, keys)
        self._snapshots = Snapshots(link, keys)

    async def publish(
        self, publications: Sequence[Publication], said_ms: int | None = None, fence: Fence | None = None
    ) -> list[Position | None]:
        """Publish all of them, or none; the place of each whose topic has history. On a Redis Cluster it is all or
        none of each topic's.

        `said_ms`: their timestamp, ms since 1970, if it is not now. `fence`: what a singleton must show, on topics
        that have history or a snapshot; on others nothing could be compared with it.

        Raises:
            ProtocolError: One has an idempotency key on a topic without history; nothing was published.
            Fenced: The singleton's lease has ended; nothing was published.
            TooLarge: One is larger than a message may be; nothing was published.
            Unconfirmed: All are published, but too few replicas have those with history (GATEWAY_WAIT_REPLICAS).
            Unavailable: Redis did not confirm.
        """
        await self._learn_rules()
        now = int(self._now() * 1000)
        commands: list[Command] = []
        places: list[int] = []  # where each publication's own answer stands
        durable = False
        for publication in publications:
            if publication.key is not None and not self._rules.of(publication.topic).history:
                raise refuse_key(publication.topic)
            places.append(len(commands))
            for topic in self._names(publication):
                text = replies.data(publication, topic, protocol.iso(said_ms or now))
                if len(text) > self._max_bytes:
                    raise TooLarge(f"message for {topic} has {len(text)} bytes; {self._max_bytes} may be")
                rule = self._rules.of(topic)
                if publication.to is None and rule.history and len(text) + MARGIN_BYTES > rule.history_bytes:
                    raise TooLarge(
                        f"message for {topic} has {len(text)} bytes, more than the topic keeps in all: "
                        f"{rule.history_bytes} (history_bytes of its rule)"
                    )
                commands.append(self._command(publication, topic, text, now, fence))
                durable |= publication.to is None and bool(self._rules.of(topic).history)
        try:
            answers = await self._link.send(commands, durable=durable)
        except Unconfirmed:
            self._metrics.publishes.labels("unconfirmed").inc(len(publications))
            raise
        except Unavailable:
            self._metrics.publishes.labels("unavailable").inc(len(publications))
            raise
        if fence is not None:
            _check(fence, answers)
        self._metrics.publishes.labels("ok").inc(len(publications))
        return [_position(answers[at]) for at in places]

    def stored(self, publication: Publication) -> tuple[int, list[str]]:
        """How many bytes Redis keeps for `publication`, about, 0: none; and the keys of the streams that it goes to."""
        size, streams = 0, []
        for topic in self._names(publication) if publication.to is None else ():
            rule = self._rules.of(topic)
            copies = bool(rule.history) + rule.snapshot
            if copies:
                size += copies * len(replies.data(publication, topic, "")) + MESSAGE_BYTES
            if rule.history:
                streams.append(self._keys.history(topic))
        return size, streams

    async def tell_rules(self) -> None:
        """Write the rules for programs that publish straight on Redis.

        Raises:
            Unavailable: Redis did not confirm.
        """
        await self._link.ask("SET", self._keys.rules, self._rules.text, "EX", RULES_LIFE_SECONDS)

    async def _learn_rules(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._rules_due:
            return
        try:
            text = await self._link.ask("GETRANGE", self._keys.rules, 0, MAX_RULES_BYTES)
            if text:
                parsed = topics.parse(rows.text(text, MAX_RULES_BYTES), self._keys.rules)
                self._rules, self._rules_due = parsed, now + RULES_SECONDS
                return
            reason = "no node has told its topic rules: is one running, under this namespace?"
        except RulesError as error:
            reason = f"a node of another version has other topic rules: {error}"
        except (ValueError, WrongType) as error:
            self._link.rows.skip("rules", self._keys.rules, error)
            reason = f"{self._keys.rules} holds no topic rules; a node writes them again when it starts: {error}"
        if math.isinf(self._rules_due):  # once known, they hold until there are others
            raise Unavailable(reason)
        self._rules_due = now + RULES_SECONDS

    def _names(self, publication: Publication) -> tuple[str, ...]:
        """The name asked for, then the topic's others."""
        if publication.to is not None:
            return (publication.topic,)
        others = (name for name in self._rules.names(publication.topic) if name != publication.topic)
        return publication.topic, *others

    def _command(self, publication: Publication, topic: str, text: bytes, now: int, fence: Fence | None) -> Command:
        keys = self._keys
        match publication.to:
            case None:
                channel, rule = keys.audience(hub.of_topic(topic)), self._rules.of(topic)
                kind = Kind.HISTORY if rule.history else Kind.SNAPSHOT if rule.snapshot else Kind.PLAIN
                message = Envelope(now, text, None, publication.except_client, kind, rule.conflate_ms)
                if rule.history:
                    return self._history.append(topic, rule, message, channel, publication.key, fence)
                if rule.snapshot:
                    return self._snapshots.keep(topic, message, channel, fence)
                if fence is not None:
                    raise ValueError(f"{topic} has neither history nor a snapshot: what a singleton says there "
                                     "could not be fenced")  # fmt: skip
            case "user", user:
                channel, message = keys.audience(hub.of_user(user)), Envelope(now, text)
            case "role", role:
                channel, message = keys.audience(hub.of_role(role)), Envelope(now, text)
            case _, client_id:
                channel, message = keys.own(node_of(client_id)), Envelope(now, text, only=client_id)
        return self._link.publish_command(channel), channel, message.pack()


def _check(fence: Fence, answers: Sequence[Any]) -> None:
    refused = next((answer for answer in answers if isinstance(answer, list) and len(answer) == 1), None)
    if refused is not None:
        raise Fenced(f"{fence.service}: the lease under token {fence.token} has ended (newest: {int(refused[0])})")


def _position(answer: Any) -> Position | None:
    return Position(answer[0].decode(), answer[1], int(answer[2])) if isinstance(answer, list) else None
