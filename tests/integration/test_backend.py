"""Calls to the back end over real connections, to a server that the test controls."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.backend import Backend, BackendError, BackendResponse, BackendUnreachable
from gateway.core import json_text
from gateway.metrics import Metrics
from tests.kit.waiting import eventually
from tests.kit.web_server import Asked, BreakOff, Says, WebServer

SECRET = "a secret that only the tests and their back end know"
NOW = 1_795_502_108


async def well(_asked: Asked) -> Says:
    return Says(body={"well": True})


async def silent(_asked: Asked) -> Says:
    await asyncio.Event().wait()
    raise AssertionError


async def breaking_off(_asked: Asked) -> Says:
    raise BreakOff


@pytest.fixture
async def server() -> AsyncIterator[WebServer]:
    """A server that answers well."""
    async with WebServer(well) as server:
        yield server


class Caller:
    """A back end as a node has it, with what it counts."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.metrics = Metrics()
        sent = {"secret": SECRET, "timeout_seconds": 5.0, "connections": 4, "max_answer_bytes": 10_000, **settings}
        self.backend = Backend(url, metrics=self.metrics, now=lambda: NOW, **sent)

    def left_alone(self) -> bool:
        """Whether its breaker is open."""
        return self.backend.is_open

    def count(self, result: str) -> float:
        """Calls that ended so."""
        return self.metrics.registry.get_sample_value("gateway_backend_calls_total", {"result": result}) or 0.0


@pytest.fixture
async def caller(server: WebServer) -> AsyncIterator[Caller]:
    """Calls `server`."""
    caller = Caller(server.url)
    yield caller
    await caller.backend.close()


async def test_it_is_asked_and_answers(server: WebServer, caller: Caller) -> None:
    assert await caller.backend.post("/commands", {"a": 1}) == BackendResponse(200, {"well": True}, None)
    assert await caller.backend.get("/contests?action=a%20b") == BackendResponse(200, {"well": True}, None)
    posted, got = server.asked
    assert (posted.method, posted.target, posted.body) == ("POST", "/commands", b'{"a":1}')
    assert posted.headers["content-type"] == "application/json"
    assert (got.method, got.target, got.body) == ("GET", "/contests?action=a%20b", b"")
    assert server.connections == 1, "a connection is used again"
    assert caller.count("answered") == 2


async def test_every_call_is_signed_by_the_contract(server: WebServer, caller: Caller) -> None:
    await caller.backend.post("/commands", {"a": 1})
    await caller.backend.get("/contests/%C3%A9?x=%2F")
    for asked in server.asked:
        signed = f"{NOW}.{asked.method}.{asked.target}.".encode() + asked.body
        expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert asked.headers["gateway-signature"] == f"t={NOW},v1={expected}"


async def test_without_a_secret_nothing_is_signed(server: WebServer) -> None:
    caller = Caller(server.url + "/v1/", secret="")
    await caller.backend.get("/a")
    await caller.backend.close()
    assert server.asked[0].target == "/v1/a"
    assert "gateway-signature" not in server.asked[0].headers


@pytest.mark.parametrize(
    ("control", "seconds"),
    [
        (None, None), ("max-age=60", 60), ("public, Max-Age=5", 5), ("max-age=5, s-maxage=60", 60), ("no-store", 0),
        ("max-age=60, private", 0), ("no-cache", 0), ("max-age=x", None), ("max-age=-1", None), ("", None),
    ],
)  # fmt: skip
async def test_an_answer_has_the_lifetime_that_the_back_end_states(
    server: WebServer, caller: Caller, control: str | None, seconds: float | None
) -> None:
    async def held(_asked: Asked) -> Says:
        return Says(body=1, headers=() if control is None else (f"cache-control: {control}",))

    server.behave = held
    assert (await caller.backend.get("/")).max_age == seconds


@pytest.mark.parametrize("status", [200, 201, 301, 400, 401, 403, 404, 409, 429, 501])
async def test_an_error_about_the_request_is_an_answer(server: WebServer, caller: Caller, status: int) -> None:
    async def refusing(_asked: Asked) -> Says:
        return Says(status, {"error": {"code": "x", "message": "not so"}})

    server.behave = refusing
    answer = await caller.backend.get("/")
    assert (answer.status, answer.message, answer.is_success) == (status, "not so", status < 300)
    assert len(server.asked) == 1


async def test_an_empty_answer_is_none_and_a_refusal_need_not_be_json(server: WebServer, caller: Caller) -> None:
    said = iter([Says(204), Says(404, text=b"<h1>nothing here</h1>")])

    async def saying(_asked: Asked) -> Says:
        return next(said)

    server.behave = saying
    assert await caller.backend.post("/", {}) == BackendResponse(204, None, None)
    answer = await caller.backend.post("/", {})
    assert (answer.body, answer.message) == (None, None)


@pytest.mark.parametrize("text", [b"<h1>well</h1>", b"{", b"[" * 252 + b"]" * 252, b'"' + b"x" * 10_000 + b'"'])
async def test_an_answer_that_no_client_could_be_sent_is_none(server: WebServer, caller: Caller, text: bytes) -> None:
    async def saying(_asked: Asked) -> Says:
        return Says(text=text)

    server.behave = saying
    with pytest.raises(BackendError):
        await caller.backend.get("/")
    assert caller.count("failed") == 1
    server.behave = well
    assert (await caller.backend.get("/")).is_success


def test_an_answer_that_is_taken_can_be_put_into_what_a_client_is_sent() -> None:
    deepest = b"[" * 250 + b"]" * 250
    value = json_text.loads(deepest, 4)
    assert json_text.loads(deepest) == value


# ---- what is sent twice, and what is not


async def test_a_get_is_asked_again_after_it_broke_off(server: WebServer, caller: Caller) -> None:
    async def once(asked: Asked) -> Says:
        server.behave = well
        raise BreakOff

    server.behave = once
    assert (await caller.backend.get("/")).is_success
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_get_is_retried_after_a_proxy_found_no_server(server: WebServer, caller: Caller, status: int) -> None:
    async def once(_asked: Asked) -> Says:
        server.behave = well
        return Says(status)

    server.behave = once
    assert (await caller.backend.get("/")).is_success
    server.behave = once
    assert (await caller.backend.post("/", {}, idempotent=True)).is_success
    server.behave = once
    with pytest.raises(BackendError):
        await caller.backend.post("/", {})
    assert len(server.asked) == 5


async def test_a_command_that_may_have_been_seen_is_never_sent_again(server: WebServer, caller: Caller) -> None:
    server.behave = breaking_off
    with pytest.raises(BackendError) as broken:
        await caller.backend.post("/commands", {})
    assert not isinstance(broken.value, BackendUnreachable), "it may have been carried out"
    assert len(server.asked) == 1


async def test_a_command_that_cannot_have_been_seen_is_sent_again(
    server: WebServer, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start_meanwhile(_seconds: float) -> None:
        await server.start()

    await server.stop()
    monkeypatch.setattr("gateway.backend.asyncio.sleep", start_meanwhile)
    assert (await caller.backend.post("/commands", {})).is_success
    assert len(server.asked) == 1


async def test_a_back_end_that_is_not_there_is_away(server: WebServer, caller: Caller) -> None:
    await server.stop()
    with pytest.raises(BackendUnreachable):
        await caller.backend.post("/commands", {})
    assert caller.count("away") == 1
    await server.start()


# ---- bounds


async def test_every_call_has_a_deadline(server: WebServer) -> None:
    caller = Caller(server.url, timeout_seconds=0.2)
    server.behave = silent
    async with asyncio.timeout(5):
        with pytest.raises(BackendError, match=r"did not answer within 0\.2 s"):
            await caller.backend.get("/")
    assert caller.count("late") == 1
    await caller.backend.close()


async def test_so_many_at_once_and_the_others_wait(server: WebServer, caller: Caller) -> None:
    go = asyncio.Event()

    async def slow(_asked: Asked) -> Says:
        await go.wait()
        return Says(body=1)

    server.behave = slow
    calls = [asyncio.create_task(caller.backend.get("/")) for _ in range(20)]
    await eventually(lambda: server.at_once == 4 and caller.backend.waiting_calls == 16)
    go.set()
    assert all(answer.is_success for answer in await asyncio.gather(*calls))
    assert server.most_at_once == 4
    assert caller.backend.waiting_calls == 0


async def test_a_full_queue_refuses_at_once(server: WebServer, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.backend.MAX_WAITING", 3)
    server.behave = silent
    calls = [asyncio.create_task(caller.backend.get("/")) for _ in range(7)]
    await eventually(lambda: server.at_once == 4 and caller.backend.waiting_calls == 3)
    with pytest.raises(BackendUnreachable, match="limit of 3 waiting calls"):
        await caller.backend.get("/")
    assert caller.count("refused") == 1
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert caller.backend.waiting_calls == 0
    server.behave = well
    assert (await caller.backend.get("/")).is_success, "a cancelled call returns its connection"


async def test_it_is_left_alone_while_it_is_ill_and_tried_again(server: WebServer) -> None:
    caller = Caller(server.url, timeout_seconds=1.0)
    await server.stop()
    for _ in range(5):
        with pytest.raises(BackendUnreachable):
            await caller.backend.get("/")
    assert caller.left_alone()
    with pytest.raises(BackendUnreachable, match="circuit breaker"):
        await caller.backend.get("/")
    assert caller.count("left_alone") == 1
    await server.start()

    async def answers() -> bool:
        try:
            return (await caller.backend.get("/")).is_success
        except BackendUnreachable:
            return False

    await eventually(answers)
    assert not caller.left_alone()
    await caller.backend.close()


async def test_a_failure_now_and_then_is_no_illness(server: WebServer, caller: Caller) -> None:
    for _ in range(10):
        server.behave = breaking_off
        with pytest.raises(BackendError):
            await caller.backend.post("/", {})
        server.behave = well
        await caller.backend.post("/", {})
    assert not caller.left_alone()


async def test_a_refusal_is_no_illness(server: WebServer, caller: Caller) -> None:
    async def refusing(_asked: Asked) -> Says:
        return Says(400)

    server.behave = refusing
    for _ in range(10):
        await caller.backend.post("/", {})
    assert not caller.left_alone()


async def test_no_cookie_passes_from_one_client_to_the_next(server: WebServer, caller: Caller) -> None:
    async def remembering(_asked: Asked) -> Says:
        return Says(headers=("set-cookie: session=ann; Path=/",))

    server.behave = remembering
    await caller.backend.post("/", {})
    await caller.backend.post("/", {})
    assert "cookie" not in server.asked[1].headers


@pytest.mark.parametrize("status", [200, 404])
async def test_integers_of_any_length_are_passed_on_as_they_stand(
    server: WebServer, caller: Caller, status: int
) -> None:
    text = b'{"wei":100000000000000000001,"id":[-9223372036854775809]}'

    async def saying(_asked: Asked) -> Says:
        return Says(status, text=text)

    server.behave = saying
    answer = await caller.backend.get("/")
    assert orjson.dumps({"data": answer.content}) == b'{"data":%s}' % text
    assert (answer.status, caller.count("answered")) == (status, 1)


async def test_an_answer_with_a_number_beyond_all_floats_is_none(server: WebServer, caller: Caller) -> None:
    async def saying(_asked: Asked) -> Says:
        return Says(text=b"[1e400]")

    server.behave = saying
    with pytest.raises(BackendError, match="beyond the range"):
        await caller.backend.get("/")
