"""gateway.backend: retries, deadlines, limits, the circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway import backend
from gateway.backend import Backend, BackendError, BackendResponse, BackendUnreachable, sign
from gateway.metrics import Metrics
from tests.unit.virtual_time import in_virtual_time, later, quiet

TIMEOUT = 4.0
SECRET = "a secret of the tests"


class Server:
    """A back end that gives one answer after the other, the last for ever; each takes `seconds`."""

    def __init__(self, *answers: Any, connections: int = 10) -> None:
        self.answers = list(answers)
        self.seconds = 0.0
        self.requests: list[httpx.Request] = []
        self.metrics = Metrics()
        self.backend = Backend(
            "http://backend/base/", secret=SECRET, timeout_seconds=TIMEOUT, connections=connections,
            max_answer_bytes=100, metrics=self.metrics, now=lambda: 1000.9,
        )  # fmt: skip
        self.backend._http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        await asyncio.sleep(self.seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, content, *headers = answer if isinstance(answer, tuple) else (answer, b"{}")
        return httpx.Response(status, content=content, headers=headers[0] if headers else {})

    def calls(self, result: str) -> float:
        return float(self.metrics.backend_calls.labels(result).value)

    def is_open(self) -> bool:
        """Whether the breaker is."""
        return self.backend.is_open

    async def fail(self, call: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            with pytest.raises(BackendError):
                await call()


GONE = httpx.ReadError("gone")
NOT_THERE = httpx.ConnectError("refused")


@in_virtual_time
@pytest.mark.parametrize(("answers", "get", "post", "twice"), [
    ((200,), 1, 1, 1), ((404,), 1, 1, 1), ((500,), 1, 1, 1), ((501,), 1, 1, 1),
    ((502, 200), 2, 1, 2), ((503, 200), 2, 1, 2), ((504, 200), 2, 1, 2), ((503,), 2, 1, 2),
    ((GONE, 200), 2, 1, 2), ((GONE,), 2, 1, 2), ((NOT_THERE, 200), 2, 2, 2), ((NOT_THERE,), 2, 2, 2),
])  # fmt: skip
async def test_only_what_does_no_harm_is_sent_twice(answers: Any, get: int, post: int, twice: int) -> None:
    counts = []
    for how in range(3):
        server = Server(*answers)
        call = (
            server.backend.get("/x") if how == 0
            else server.backend.post("/x", {"a": 1}, idempotent=how == 2)
        )  # fmt: skip
        await asyncio.gather(call, return_exceptions=True)
        counts.append(len(server.requests))
    assert counts == [get, post, twice]


@in_virtual_time
@pytest.mark.parametrize(("answer", "error", "result"), [
    (500, BackendError, "failed"), (503, BackendError, "failed"), (GONE, BackendError, "failed"),
    (NOT_THERE, BackendUnreachable, "away"), ((200, b"x" * 101), BackendError, "failed"),
    ((200, b"not json"), BackendError, "failed"),
])  # fmt: skip
async def test_a_failure_states_whether_the_call_may_have_had_an_effect(answer: Any, error: type, result: str) -> None:
    server = Server(answer)
    with pytest.raises(BackendError) as raised:
        await server.backend.post("/x", None)
    assert type(raised.value) is error
    assert (server.calls(result), server.calls("answered")) == (1, 0)


@in_virtual_time
@pytest.mark.parametrize(("answer", "expected"), [
    ((200, b'{"a":1}'), BackendResponse(200, {"a": 1}, None)), ((204, b""), BackendResponse(204, None, None)),
    ((501, b"<html>"), BackendResponse(501, None, None)), ((404, b"[]"), BackendResponse(404, [], None)),
    ((200, b"1", {"cache-control": "max-age=7"}), BackendResponse(200, 1, 7.0)),
    ((200, b"1", {"cache-control": "Max-Age=7, s-maxage=9"}), BackendResponse(200, 1, 9.0)),
    ((200, b"1", {"cache-control": "max-age=7, no-store"}), BackendResponse(200, 1, 0.0)),
    ((200, b"1", {"cache-control": "max-age=-7"}), BackendResponse(200, 1, None)),
    ((200, b"123456789012345678901234567890"), BackendResponse(200, None, None, "123456789012345678901234567890")),
])  # fmt: skip
async def test_an_answer_is_given_as_it_is_with_the_time_it_holds(answer: Any, expected: BackendResponse) -> None:
    server = Server(answer)
    assert await server.backend.get("/x") == expected
    assert (server.calls("answered"), len(server.requests)) == (1, 1)


@in_virtual_time
async def test_each_call_is_signed_over_its_time_method_target_and_body() -> None:
    server = Server(200)
    await server.backend.post("/x?y=%20", {"a": 1})
    await server.backend.get("/x")
    post, get = server.requests
    expected = sign(SECRET.encode(), 1000, "POST", b"/base/x?y=%20", b'{"a":1}')
    assert post.headers[backend.SIGNATURE] == f"t=1000,v1={expected}"
    assert (str(post.url), post.headers["content-type"]) == ("http://backend/base/x?y=%20", "application/json")
    assert get.headers[backend.SIGNATURE] == f"t=1000,v1={sign(SECRET.encode(), 1000, 'GET', b'/base/x', b'')}"
    assert "content-type" not in get.headers


@in_virtual_time
async def test_a_call_ends_at_its_deadline_and_states_that_it_had_started() -> None:
    server = Server(200)
    server.seconds = 60
    with pytest.raises(BackendError) as raised:
        await server.backend.get("/x")
    assert type(raised.value) is BackendError
    assert asyncio.get_running_loop().time() == pytest.approx(TIMEOUT)
    assert server.calls("late") == 1


@in_virtual_time
async def test_so_many_are_at_work_and_who_waits_too_long_was_never_sent() -> None:
    server = Server(200, connections=2)
    server.seconds = 3
    calls = [asyncio.create_task(server.backend.get("/x")) for _ in range(5)]
    await quiet()
    assert (len(server.requests), server.backend.waiting_calls) == (2, 3)
    await later(3.5)
    assert (len(server.requests), server.backend.waiting_calls) == (4, 1)
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in found] == [
        BackendResponse,
        BackendResponse,
        BackendError,
        BackendError,
        BackendUnreachable,
    ]
    assert server.backend.waiting_calls == 0
    server.seconds = 0
    assert (await server.backend.get("/x")).is_success, "the connections are free again"


@in_virtual_time
async def test_one_more_than_may_wait_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MAX_WAITING", 2)
    server = Server(200, connections=1)
    server.seconds = 1
    calls = [asyncio.create_task(server.backend.get("/x")) for _ in range(3)]
    await quiet()
    with pytest.raises(BackendUnreachable):
        await server.backend.get("/x")
    assert server.calls("refused") == 1
    assert all(isinstance(one, BackendResponse) for one in await asyncio.gather(*calls))


@in_virtual_time
async def test_it_is_left_alone_after_five_failures_in_a_row_and_tried_by_one_call_later() -> None:
    server = Server(500)
    await server.fail(lambda: server.backend.get("/x"), 4)
    server.answers = [200, 500]
    await server.backend.get("/x")
    await server.fail(lambda: server.backend.get("/x"), 4)
    assert not server.is_open(), "an answer between them: they were not in a row"
    await server.fail(lambda: server.backend.get("/x"), 1)
    assert server.is_open()
    asked = len(server.requests)
    with pytest.raises(BackendUnreachable):
        await server.backend.get("/x")
    assert (len(server.requests), server.calls("left_alone")) == (asked, 1)
    await later(backend.OPEN_SECONDS + 0.1)
    server.answers = [200]
    assert (await server.backend.get("/x")).is_success
    assert not server.is_open()


@in_virtual_time
async def test_after_close_there_is_no_connection() -> None:
    server = Server(200)
    await server.backend.close()
    assert server.backend._http.is_closed


@pytest.mark.parametrize(("status", "good"), [(199, False), (200, True), (299, True), (300, False)])
def test_an_answer_of_200_to_299_is_good(status: int, good: bool) -> None:
    assert BackendResponse(status, None, None).is_success is good


@pytest.mark.parametrize(("body", "message"), [
    ({"error": {"message": "no"}}, "no"), ({"error": {"message": "x" * 501}}, "x" * 500), ({"error": "no"}, None),
    ({"error": {"message": 1}}, None), (None, None),
])  # fmt: skip
def test_a_refusal_has_a_sentence_of_at_most_500_characters(body: Any, message: str | None) -> None:
    assert BackendResponse(400, body, None).message == message
