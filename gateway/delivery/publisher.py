"""Publishing: encodes each message once for the whole cluster and sends it to Redis.

For a topic with history, one Lua step numbers, stores and publishes the message. For a topic with a snapshot, another
step stores and publishes it. For other topics it is one PUBLISH.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson

from gateway.broker import rows
from gateway.broker.client import RedisClient, RedisCommand, Unavailable, Unconfirmed, WrongType
from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.errors import retrieve
from gateway.broker.fence import Fence, Fenced
from gateway.broker.history import History
from gateway.broker.keys import IDEMPOTENCY_MS, Keys, node_of
from gateway.broker.snapshots import Snapshots
from gateway.core import hub, message, topic_rules
from gateway.core.position import Position
from gateway.core.publication import Publication, PublicationTooLarge
from gateway.core.topic_rules import Rule, RulesError, TopicRules
from gateway.metrics import Metrics

MAX_MESSAGE_BYTES: Final = 1 << 20  # default limit for programs that have no settings of a node
MAX_RULES_BYTES: Final = 256 << 10
RULES_SECONDS: Final = 30.0  # rules that were read from Redis are valid for this time
RULES_LIFE_SECONDS: Final = 86_400  # TTL of the rules in Redis; nodes write them every hour
ENCODED_BYTES: Final = 44  # what the native protocol adds to a body: clients receive no longer messages than the limit
MARGIN_BYTES: Final = 256  # room for the position that is added to the body, and for the overhead of an entry
MESSAGE_BYTES: Final = 1024  # overhead of a stored message: its entry and the other rows of the topic


class PendingPublish(NamedTuple):
    """Messages that are queued for Redis."""

    answers: asyncio.Future[list[Any]]  # one for each command
    indices: list[int]  # of the answer to each message


class _Batch(NamedTuple):
    """The commands that publish some messages."""

    commands: list[RedisCommand]
    indices: list[int]  # of the answer to each message
    durable: bool


class MessagePublisher:
    """Publishes messages to Redis; every publish goes through here. `now` gives seconds since 1970.

    `rules`: the rules of the node; None: use the rules that the nodes have written to Redis.
    """

    def __init__(
        self, redis: RedisClient, keys: Keys, rules: TopicRules | None, metrics: Metrics, *, max_message_bytes: int,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._redis = redis
        self._rules = rules or TopicRules(())
        self._rules_due = -math.inf if rules is None else math.inf  # loop time of the next read of the rules
        self._reading: asyncio.Task[None] | None = None  # reads the rules
        self._keys = keys
        self._metrics = metrics
        self.max_message_bytes = max_message_bytes
        self._now = now
        self._history = History(redis, keys)
        self._snapshots = Snapshots(redis, keys)
        self._publish_once = redis.script("publish_once")

    def now_ms(self) -> int:
        """The time in ms since 1970."""
        return int(self._now() * 1000)

    async def publish(
        self, publications: Sequence[Publication], published_ms: int | None = None, fence: Fence | None = None
    ) -> list[Position | None]:
        """Publish all messages or none; return the position of each whose topic has history.

        On a Redis Cluster this is all or none per topic. `published_ms`: their timestamp in ms since 1970; None: now.
        `fence`: proof of leadership of a singleton; it requires topics with history or a snapshot.

        Raises:
            Fenced: The singleton's lease has ended; nothing was published.
            PublicationTooLarge: A message is over the size limit; nothing was published.
            Unconfirmed: All are published, but too few replicas confirmed those with history (GATEWAY_WAIT_REPLICAS).
            Unavailable: Redis did not confirm.
        """
        await self._read_rules()
        batch = self._batch(publications, published_ms, fence)
        try:
            answers = await self._redis.transact(batch.commands, durable=batch.durable)
        except Unavailable as error:
            self._count(error, publications)
            raise
        if fence is not None:
            _check(fence, answers)
        self._count(None, publications)
        return [_position(answers[at]) for at in batch.indices]

    @property
    def can_submit(self) -> bool:
        """Whether `submit` may be called: not on a Redis Cluster, nor without rules of a node."""
        return not self._redis.sharded and self._rules_due == math.inf

    def submit(self, publications: Sequence[Publication]) -> PendingPublish:
        """Queue the messages for Redis without a task; `positions` then gives the result. Requires `can_submit`.

        Raises:
            PublicationTooLarge, Unavailable: As `publish`; nothing was queued.
        """
        batch = self._batch(publications, None, None)
        return PendingPublish(self._redis.submit(batch.commands, durable=batch.durable), batch.indices)

    def positions(self, publications: Sequence[Publication], pending: PendingPublish) -> list[Position | None]:
        """The result of a `submit` whose answers have come.

        Raises:
            Unconfirmed, Unavailable: As `publish`.
        """
        try:
            answers = pending.answers.result()
        except Unavailable as error:
            self._count(error, publications)
            raise
        self._count(None, publications)
        return [_position(answers[at]) for at in pending.indices]

    def _count(self, error: Unavailable | None, publications: Sequence[Publication]) -> None:
        result = "ok" if error is None else "unconfirmed" if isinstance(error, Unconfirmed) else "unavailable"
        self._metrics.publishes.labels(result).inc(len(publications))

    def _batch(self, publications: Sequence[Publication], published_ms: int | None, fence: Fence | None) -> _Batch:
        now = self.now_ms()
        commands: list[RedisCommand] = []
        indices: list[int] = []
        durable = False
        for publication in publications:
            indices.append(len(commands))
            for topic in self._names(publication):
                body = message.pack(topic, publication.data, publication.extras, published_ms or now)
                if len(body) + ENCODED_BYTES > self.max_message_bytes:
                    raise PublicationTooLarge(
                        f"message for {topic} has {len(body) + ENCODED_BYTES} bytes; "
                        f"the limit is {self.max_message_bytes}"
                    )
                rule = self._rules.of(topic)
                if publication.to is None and rule.history and len(body) + MARGIN_BYTES > rule.history_bytes:
                    raise PublicationTooLarge(
                        f"message for {topic} has {len(body)} bytes; the topic keeps at most "
                        f"{rule.history_bytes} bytes in all (history_bytes of its rule)"
                    )
                commands.append(self._command(publication, topic, rule, body, now, fence))
                durable |= publication.to is None and rule.history > 0
        return _Batch(commands, indices, durable)

    async def publish_one(self, publication: Publication, fence: Fence | None) -> Position | None:
        """Publish one message of a singleton; see `publish`."""
        return (await self.publish([publication], fence=fence))[0]

    async def with_keys(self, publications: Sequence[Publication]) -> list[Publication]:
        """`publications`, each with an idempotency key if all its topics have history: a retry is then safe.

        Other topics get none, because a key costs more than their whole publish.

        Raises:
            Unavailable: Redis did not answer, or has no topic rules.
        """
        await self._read_rules()
        return [
            one._replace(key=secrets.token_hex(16)) if one.key is None and self._keeps_all(one) else one
            for one in publications
        ]

    @staticmethod
    def is_repeatable(publication: Publication) -> bool:
        """Whether a second publish of `publication` has no effect, since Redis finds its key."""
        return publication.key is not None and publication.to is None

    def _keeps_all(self, publication: Publication) -> bool:
        """Whether the topic and all of its aliases have history."""
        return publication.to is None and all(self._rules.of(name).history for name in self._names(publication))

    async def delete_history(self, topic: str) -> bool:
        """Delete the messages of a topic and its snapshot, in Redis and in the nodes. False if there were none.

        The epoch stays and the offsets go on: a client that misses deleted messages cannot recover, and a client that
        misses none, or is subscribed, does not notice.

        Raises:
            Unavailable: Redis did not confirm.
        """
        deleted = await self._history.delete(topic)
        await self._redis.publish(self._keys.control, orjson.dumps({"op": "forget", "topics": [topic]}))
        return deleted

    def storage_cost(self, publication: Publication) -> tuple[int, list[str]]:
        """About how many bytes Redis stores for `publication` (0: none), and the keys of the streams it is added to."""
        size, streams = 0, []
        for topic in self._names(publication) if publication.to is None else ():
            rule = self._rules.of(topic)
            copies = bool(rule.history) + rule.snapshot
            if copies:
                body = message.pack(topic, publication.data, publication.extras, 0)
                size += copies * len(body) + MESSAGE_BYTES
            if rule.history:
                streams.append(self._keys.history(topic))
        return size, streams

    async def write_rules(self) -> None:
        """Write the topic rules to Redis for programs that publish directly on Redis.

        Raises:
            Unavailable: Redis did not confirm.
        """
        await self._redis.execute("SET", self._keys.rules, self._rules.text, "EX", RULES_LIFE_SECONDS)

    async def _read_rules(self) -> None:
        """Read the rules if it is time. Calls at the same time share one read, and go on in their order."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._rules_due:
            return
        if self._reading is None:
            self._reading = loop.create_task(self._read_rules_now(loop.time()))
            self._reading.add_done_callback(self._end_reading)
        await asyncio.shield(self._reading)

    def _end_reading(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        retrieve(reading)

    async def _read_rules_now(self, now: float) -> None:
        try:
            text = await self._redis.execute("GETRANGE", self._keys.rules, 0, MAX_RULES_BYTES)
            if text:
                parsed = topic_rules.parse(rows.text(text, MAX_RULES_BYTES), self._keys.rules)
                self._rules, self._rules_due = parsed, now + RULES_SECONDS
                return
            reason = f"{self._keys.rules} is empty: start a node with this namespace, which writes the topic rules"
        except RulesError as error:
            reason = f"this version cannot read the topic rules of the nodes: {error}"
        except (ValueError, WrongType) as error:
            self._redis.rows.skip("rules", self._keys.rules, error)
            reason = f"{self._keys.rules} does not hold topic rules: restart a node, which writes them again: {error}"
        if math.isinf(self._rules_due):  # rules that are known stay valid until new ones can be read
            raise Unavailable(reason)
        self._rules_due = now + RULES_SECONDS

    def _names(self, publication: Publication) -> tuple[str, ...]:
        """The topic, then its aliases."""
        names = self._rules.names(publication.topic)
        if publication.to is not None or len(names) == 1:
            return (publication.topic,)
        return publication.topic, *(name for name in names if name != publication.topic)

    def _command(
        self, publication: Publication, topic: str, rule: Rule, body: bytes, now: int, fence: Fence | None
    ) -> RedisCommand:
        keys = self._keys
        match publication.to:
            case None:
                channel = keys.audience(hub.topic_audience(topic))
                except_client, key = publication.except_client, publication.key
                if rule.history:
                    envelope = Envelope(now, body, None, except_client, EnvelopeKind.HISTORY)
                    return self._history.append_command(topic, rule, envelope, channel, key, fence)
                if rule.snapshot:
                    envelope = Envelope(now, body, None, except_client, EnvelopeKind.SNAPSHOT, rule.conflate_ms)
                    return self._snapshots.publish_command(topic, envelope, channel, key, fence)
                if fence is not None:
                    raise ValueError(
                        f"{topic} has neither history nor a snapshot: Redis could not fence "
                        "a singleton's message, so give its rule one of them"
                    )
                envelope = Envelope(now, body, None, except_client, conflate_ms=rule.conflate_ms)
                if key is not None:
                    return self._publish_once.with_source(
                        [keys.publish_answer(topic, key)],
                        [channel, envelope.pack(), IDEMPOTENCY_MS, self._redis.publish_command(channel)],
                    )
            case "user", user:
                channel, envelope = keys.audience(hub.user_audience(user)), Envelope(now, body)
            case "role", role:
                channel, envelope = keys.audience(hub.role_audience(role)), Envelope(now, body)
            case _, client_id:
                channel, envelope = keys.node_channel(node_of(client_id)), Envelope(now, body, only=client_id)
        return self._redis.publish_command(channel), channel, envelope.pack()


def _check(fence: Fence, answers: Sequence[Any]) -> None:
    refused = next((answer for answer in answers if isinstance(answer, list) and len(answer) == 1), None)
    if refused is not None:
        raise Fenced(f"{fence.service}: the lease under token {fence.token} has ended (newest: {int(refused[0])})")


def _position(answer: Any) -> Position | None:
    return Position(answer[0].decode(), answer[1], int(answer[2])) if isinstance(answer, list) else None
