"""gateway.connections.async_commands: each command has one answer and one hold, also after errors of Redis, of
the back end, and internal ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.broker.errors import Impaired, Unavailable, Unconfirmed
from gateway.connections.async_commands import AsyncCommands, PublishLimits
from gateway.core.commands import Request
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import History, Published
from gateway.core.position import Position
from gateway.core.publication import Publication, PublicationTooLarge
from gateway.delivery.publisher import PendingPublish
from gateway.metrics import Metrics


class Client:
    """A connection; `holds` are those that are not released."""

    client_id = "n.b.1"
    info = SimpleNamespace(ip="10.0.0.1")

    def __init__(self, user: str | None = "ann") -> None:
        self.session = SimpleNamespace(identity=SimpleNamespace(user=user))
        self.holds: list[str] = []

    def hold(self, why: str) -> None:
        self.holds.append(why)

    def release(self, why: str) -> None:
        self.holds.remove(why)


class At:
    """The commands, and what is around them. `at_once`: the limits and the publisher need not ask Redis first."""

    at_once = False

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.sent: list[Any] = []
        self.failed: list[Any] = []
        self.published: list[Publication] = []
        self.error: Exception | None = None
        self.kept: tuple[int, list[str]] = (0, [])
        self.tokens = self.room = True
        self.charged: list[tuple[str, int, list[str]]] = []
        self.memory = SimpleNamespace(full=False)
        self.tasks: list[asyncio.Task[None]] = []
        publish_limits = PublishLimits(
            cast(Any, SimpleNamespace(charge=self._token, charge_now=self._token_now)),
            cast(Any, SimpleNamespace(charge=self._charge, charge_now=self._charge_now)),
            cast(Any, self.memory), cast(Any, SimpleNamespace(of=lambda ip: f"net of {ip}")),
        )  # fmt: skip
        outbox = SimpleNamespace(
            reply=lambda _client, event: self.sent.append(event),
            send_error=lambda _client, error: self.sent.append(error),
            send_internal_error=lambda _client, request_id: self.failed.append(request_id),
        )
        dispatcher = SimpleNamespace(
            publish=self._publish, storage_cost=lambda _publication: self.kept, read_history=self._read_history,
            read_presence=self._read, can_submit=self.at_once, submit=self._submit, positions=self._positions,
        )  # fmt: skip
        self.async_commands = AsyncCommands(
            cast(Any, dispatcher),
            cast(Any, dispatcher),
            cast(Any, outbox),
            publish_limits,
            cast(Any, None),
            cast(Any, None),
            self.metrics,
            self._spawn,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], _name: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def _token(self, _user: str) -> bool:
        self.tokens_asked = True
        return self.tokens

    async def _charge(self, who: str, size: int, streams: list[str]) -> bool:
        self.charged.append((who, size, streams))
        return self.room

    async def _publish(self, publications: list[Publication]) -> list[Position | None]:
        self.published += publications
        if self.error is not None:
            raise self.error
        return [Position("e", 7, 70)]

    def _token_now(self, _user: str) -> bool:
        return self.at_once and self.tokens

    def _charge_now(self, who: str, size: int, streams: list[str]) -> bool:
        if self.at_once and self.room:
            self.charged.append((who, size, streams))
            return True
        return False

    def _submit(self, publications: list[Publication]) -> PendingPublish:
        if isinstance(self.error, PublicationTooLarge):
            raise self.error
        self.published += publications
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(answers.set_result, [])
        return PendingPublish(answers, [0])

    def _positions(self, _publications: list[Publication], pending: PendingPublish) -> list[Position | None]:
        assert pending.answers.done()
        if self.error is not None:
            raise self.error
        return [Position("e", 7, 70)]

    async def _read_history(self, _topic: str, **_how: Any) -> History:
        if self.error is not None:
            raise self.error
        return History("e", 0, 0, [])

    async def _read(self, _topic: str, **_how: Any) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"count": 1}

    async def publish(self, client: Client) -> Any:
        """The messages that the client receives."""
        self.async_commands.publish_message(cast(Any, client), Publication("t", 1), "r")
        assert client.holds == ["publish"] or isinstance(self.error, PublicationTooLarge)
        await asyncio.gather(*self.tasks)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert client.holds == []
        return self.sent[0] if self.sent else None

    def limited(self, limit: str) -> float:
        return float(self.metrics.limited.labels(limit).value)


@pytest.fixture(params=[True, False], ids=["at once", "in a task"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(At, "at_once", request.param)


async def test_a_message_needs_a_task_only_if_a_limit_or_the_publisher_has_to_wait() -> None:
    at = At()
    at.kept = 500, ["s"]
    await at.publish(Client())
    assert len(at.tasks) == (0 if at.at_once else 1)
    at = At()
    at.kept, at.room = (500, ["s"]), False
    await at.publish(Client())
    assert len(at.tasks) == 1


async def test_a_publish_is_acknowledged_once_with_its_position() -> None:
    at = At()
    sent = await at.publish(Client())
    assert sent == Published("t", Position("e", 7, 70), "r")
    assert (len(at.sent), at.published, at.charged) == (1, [Publication("t", 1)], [])


@pytest.mark.parametrize(("error", "code", "text"), [
    (Unavailable("x"), ErrorReason.UNAVAILABLE, "The cluster is unavailable"),
    (Unconfirmed("x"), ErrorReason.UNAVAILABLE, "Published, but"),
    (Impaired("OOM"), ErrorReason.UNAVAILABLE, "Redis cannot store this now; try again later: OOM"),
    (PublicationTooLarge("too large"), ErrorReason.DATA_REFUSED, "too large"),
    (ProtocolError(ErrorReason.DATA_REFUSED, "no", "r"), ErrorReason.DATA_REFUSED, "no"),
])  # fmt: skip
async def test_a_publish_that_fails_is_refused_once_with_its_reason(
    error: Exception, code: ErrorReason, text: str
) -> None:
    at = At()
    at.error = error
    sent = await at.publish(Client())
    assert (sent.reason, sent.message.startswith(text), sent.request_id) == (code, True, "r")
    assert (len(at.sent), at.failed) == (1, [])


async def test_a_bug_fails_the_request_and_releases_the_client() -> None:
    at = At()
    at.error = LookupError("a bug")
    assert await at.publish(Client()) is None
    assert at.failed == ["r"]


async def test_a_user_without_tokens_publishes_nothing_and_an_anonymous_client_needs_none() -> None:
    at = At()
    at.tokens = False
    sent = await at.publish(Client())
    assert (sent.reason, at.published, at.limited("publishes")) == (ErrorReason.TOO_MANY_REQUESTS, [], 1)
    at = At()
    at.tokens = False
    await at.publish(Client(None))
    assert (len(at.published), at.limited("publishes")) == (1, 0)


@pytest.mark.parametrize(("user", "who"), [("ann", "user:ann"), (None, "address:net of 10.0.0.1")])
async def test_what_redis_keeps_is_charged_to_the_user_or_its_address(user: str | None, who: str) -> None:
    at = At()
    at.kept = 500, ["s"]
    await at.publish(Client(user))
    assert (at.charged, len(at.published)) == ([(who, 500, ["s"])], 1)
    at = At()
    at.kept, at.room = (500, ["s"]), False
    sent = await at.publish(Client(user))
    assert (sent.reason, at.published, at.limited("stored_bytes")) == (ErrorReason.TOO_MANY_REQUESTS, [], 1)


async def test_a_full_redis_refuses_what_it_would_keep_and_nothing_else() -> None:
    at = At()
    at.memory.full = True
    await at.publish(Client())
    assert (len(at.published), at.limited("redis_memory")) == (1, 0)
    at = At()
    at.memory.full, at.kept = True, (1, [])
    sent = await at.publish(Client())
    assert (sent.reason, at.published, at.charged, at.limited("redis_memory")) == (ErrorReason.UNAVAILABLE, [], [], 1)


@pytest.mark.parametrize("action", ["history", "presence"])
@pytest.mark.parametrize("error", [None, Unavailable("x"), LookupError("a bug")])
async def test_a_request_is_answered_once_and_releases_the_client(action: str, error: Exception | None) -> None:
    at, client = At(), Client()
    at.error = error
    at.async_commands.read_topic(cast(Any, client), Request("t", action, {}, "r"))
    assert client.holds == ["request"]
    await asyncio.gather(*at.tasks)
    assert client.holds == []
    if error is None:
        assert at.sent[0].request.request_id == "r"
    assert len(at.sent) + len(at.failed) == 1
    if isinstance(error, Unavailable):
        assert at.sent[0].reason is ErrorReason.UNAVAILABLE
