"""gateway.connections.backend_calls: the order of a client's calls, the limit of running calls, and the answer for
each outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from gateway.backend import BackendError, BackendResponse, BackendUnreachable
from gateway.cache.cache import MAX_KEY_LENGTH, WithTtl
from gateway.connections.backend_calls import COMMANDS, MAX_CALLS, BackendCalls, cache_key
from gateway.core.commands import BackendCommand, Request
from gateway.core.effects import FetchFromBackend, ForwardCommand
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.identity import Identity
from gateway.protocols.native import encoder
from tests.unit.virtual_time import in_virtual_time, later, quiet


class Client:
    """A connection."""

    client_id = "n.b.1"
    info = SimpleNamespace(ip="10.0.0.1")

    def __init__(self) -> None:
        self.holds = 0
        self.releases = 0

    def hold(self, _why: str) -> None:
        self.holds += 1

    def release(self, _why: str) -> None:
        self.releases += 1


class At:
    """BackendCalls with a fake back end and a fake cache; keeps the answers to clients."""

    timeout_seconds = 4.0

    def __init__(self, answer: Any = None) -> None:
        self.answer: Any = answer or BackendResponse(200, {"ok": True}, None)
        self.events: list[str] = []
        self.documents: list[Any] = []
        self.sent: list[Any] = []
        self.failed: list[Any] = []
        self.loaded: list[tuple[str, Any, dict[str, Any]]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.memory = SimpleNamespace(full=False)
        outbox = SimpleNamespace(
            reply=lambda _client, event: self.sent.append(orjson.loads(encoder.text(event, 0))),
            send_error=lambda _client, error: self.sent.append(error),
            send_internal_error=lambda client, request_id: self.failed.append((client, request_id)),
        )  # fmt: skip
        self.backend_calls = BackendCalls(
            cast(Any, self), cast(Any, self), cast(Any, outbox), "n.b", cast(Any, self.memory), self._spawn
        )
        self.tasks: list[asyncio.Task[None]] = []

    def _spawn(self, work: Coroutine[Any, Any, None], _name: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def _give(self, name: str) -> BackendResponse:
        self.events.append(f"{name} begins")
        if name in self.gates:
            await self.gates[name].wait()
        self.events.append(f"{name} ends")
        if isinstance(self.answer, Exception):
            raise self.answer
        return cast(BackendResponse, self.answer)

    async def post(self, path: str, document: Any) -> BackendResponse:
        assert path == COMMANDS
        self.documents.append(document)
        return await self._give(document["action"])

    async def get(self, target: str) -> BackendResponse:
        return await self._give(target)

    async def get_or_set(self, key: str, load: Any, **how: Any) -> Any:
        value: WithTtl = await load()
        self.loaded.append((key, value, how))
        return value.value

    def command(self, client: Client, action: str) -> None:
        effect = ForwardCommand(BackendCommand("game", action, {"x": 1}, action), Identity("ann", "user"))
        self.backend_calls.forward(cast(Any, client), effect)

    def request(self, client: Client, target: str, seconds: float = 60) -> None:
        effect = FetchFromBackend(Request("game", "read", {}, target), target, seconds, 5)
        self.backend_calls.fetch(cast(Any, client), effect)


@in_virtual_time
async def test_commands_go_one_after_the_other_and_a_request_sees_what_they_did() -> None:
    at, client, other = At(), Client(), Client()
    at.gates["one"] = asyncio.Event()
    at.request(client, "/before")
    at.command(client, "one")
    at.command(client, "two")
    at.request(client, "/after")
    at.command(other, "theirs")
    await quiet()
    assert sorted(at.events) == sorted(["/before begins", "/before ends", "one begins", "theirs begins", "theirs ends"])
    at.gates["one"].set()
    await asyncio.gather(*at.tasks)
    ours = [event for event in at.events if "theirs" not in event and "before" not in event]
    assert ours[:2] == ["one begins", "one ends"]
    assert set(ours[2:]) == {"two begins", "two ends", "/after begins", "/after ends"}
    assert ours.index("two ends") < ours.index("/after begins")
    assert len(at.sent) == 5
    assert at.backend_calls._lanes == {}, "nothing is remembered of a client without calls"


@in_virtual_time
async def test_a_failed_command_lets_the_next_one_go() -> None:
    at, client = At(BackendError("broke off")), Client()
    at.command(client, "one")
    at.command(client, "two")
    await asyncio.gather(*at.tasks)
    assert at.events == ["one begins", "one ends", "two begins", "two ends"]


@in_virtual_time
async def test_the_next_frame_waits_while_eight_calls_are_under_way() -> None:
    at, client = At(), Client()
    at.gates["/x"] = asyncio.Event()
    for _ in range(MAX_CALLS - 1):
        at.request(client, "/x")
    assert client.holds == 0
    at.request(client, "/x")
    assert (client.holds, client.releases) == (1, 0)
    at.gates["/x"].set()
    await asyncio.gather(*at.tasks)
    assert client.releases == MAX_CALLS


@in_virtual_time
async def test_a_command_names_its_sender_and_is_acknowledged_once() -> None:
    at, client = At(), Client()
    at.command(client, "move")
    await asyncio.gather(*at.tasks)
    assert at.documents == [{
        "topic": "game", "action": "move", "data": {"x": 1}, "requestId": "move", "user": "ann", "role": "user",
        "client": {"id": "n.b.1", "ip": "10.0.0.1"}, "node": "n.b",
    }]  # fmt: skip
    [sent] = at.sent
    assert sent["requestId"] == "move"


@in_virtual_time
@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (BackendUnreachable("x"), ErrorReason.UNAVAILABLE, None),
        (BackendError("x"), ErrorReason.UNAVAILABLE, "outcome_unknown"),
        (BackendResponse(400, None, None), ErrorReason.DATA_REFUSED, None),
        (BackendResponse(403, None, None), ErrorReason.NOT_ALLOWED, None),
        (BackendResponse(429, None, None), ErrorReason.TOO_MANY_REQUESTS, None),
        (BackendResponse(499, None, None), ErrorReason.DATA_REFUSED, None),
        (BackendResponse(401, None, None), ErrorReason.INTERNAL, None),
        (BackendResponse(302, None, None), ErrorReason.INTERNAL, None),
        (BackendResponse(501, None, None), ErrorReason.NOT_IMPLEMENTED, None),
    ],
)
async def test_each_outcome_has_its_code_and_only_a_command_an_unknown_one(
    answer: Any, code: ErrorReason, reason: str | None
) -> None:
    at, client = At(answer), Client()
    at.command(client, "move")
    at.request(client, "/x")
    await asyncio.gather(*at.tasks)
    assert all(isinstance(error, ProtocolError) for error in at.sent)
    assert {(error.reason, error.request_id, error.detail) for error in at.sent} == {
        (code, "move", reason), (code, "/x", None),
    }  # fmt: skip


@in_virtual_time
async def test_a_refusal_has_the_back_ends_sentence() -> None:
    at, client = At(BackendResponse(409, {"error": {"message": "the game is over"}}, None)), Client()
    at.command(client, "move")
    await asyncio.gather(*at.tasks)
    assert "the game is over" in str(at.sent[0])


@in_virtual_time
async def test_a_bug_fails_this_request_only() -> None:
    at, client = At(LookupError("a bug")), Client()
    at.command(client, "move")
    await asyncio.gather(*at.tasks)
    assert (at.failed, at.sent, client.releases) == ([(client, "move")], [], 1)


@in_virtual_time
@pytest.mark.parametrize(
    ("answer", "full", "seconds"),
    [
        (BackendResponse(200, 1, None), False, 60),
        (BackendResponse(200, 1, 7.0), False, 7),
        (BackendResponse(404, 1, None), False, 0),
        (BackendResponse(404, 1, 7.0), False, 7),
        (BackendResponse(200, 1, None), True, 0),
        (BackendResponse(200, 1, 7.0), True, 0),
    ],
)
async def test_an_answer_is_cached_by_the_rule_or_the_back_end_and_not_in_a_full_redis(
    answer: BackendResponse, full: bool, seconds: float
) -> None:
    at, client = At(answer), Client()
    at.memory.full = full
    at.request(client, "/x")
    await asyncio.gather(*at.tasks)
    [(key, kept, how)] = at.loaded
    assert (key, kept.ttl_seconds) == ("source:/x", seconds)
    assert (how["stale_seconds"], how["load_seconds"]) == (5, 5.0)
    await later(0)


@in_virtual_time
async def test_json_that_python_cannot_hold_reaches_the_client_as_it_is() -> None:
    at, client = At(BackendResponse(200, None, None, "12345678901234567890123")), Client()
    raw: list[Any] = []
    at.backend_calls._sender.reply = lambda _client, event: raw.append(encoder.text(event, 0))  # type: ignore[method-assign,assignment]
    at.request(client, "/x")
    await asyncio.gather(*at.tasks)
    assert b"12345678901234567890123" in raw[0]


def test_a_long_target_has_a_key_of_its_own_that_is_short_enough() -> None:
    longest = "x" * (MAX_KEY_LENGTH - len("source:"))
    assert cache_key(longest) == f"source:{longest}"
    one, two = cache_key(longest + "a"), cache_key(longest + "b")
    assert (len(one), len(two)) == (MAX_KEY_LENGTH, MAX_KEY_LENGTH)
    assert one != two
