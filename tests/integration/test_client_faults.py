"""The Python client against a faulty server: silence, rejections, malformed messages, no address."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.client import Closed, Gateway, NoAnswer, State, Timing, TooLarge
from tests.kit.process import free_port
from tests.kit.waiting import eventually

Frame = dict[str, Any]

QUICK = Timing(base=0.02, cap=0.1, ack=0.2, answer=0.5, open=0.5)


class Server:
    """One that welcomes each connection, and then does what `script` says of each frame."""

    def __init__(self) -> None:
        self.port = free_port()
        self.silent = False
        self.frames: list[Frame] = []
        self.connections: list[ServerConnection] = []
        self.welcome: Frame = {"limits": {"messageBytes": 1024}}
        self.script: Callable[[ServerConnection, Frame], Awaitable[None]] = self.obey

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def say(self, socket: ServerConnection, **frame: Any) -> None:
        await socket.send(orjson.dumps(frame).decode())

    async def obey(self, socket: ServerConnection, frame: Frame) -> None:
        """What an honest server does."""
        match frame:
            case {"type": "AUTH"}:
                await self.say(socket, type="ACKNOWLEDGMENT", operation="authenticate")
            case {"type": "SUBSCRIBE", "topics": topics, "requestId": request_id}:
                await self.say(
                    socket, type="ACKNOWLEDGMENT", operation="subscribe", topics=topics, requestId=request_id
                )

    async def _serve(self, socket: ServerConnection) -> None:
        self.connections.append(socket)
        about = {"clientId": "c", "node": "n", **self.welcome}
        with suppress(ConnectionClosed):
            if not self.silent:
                await self.say(socket, type="SYSTEM", action="welcome", data=about)
            async for text in socket:
                self.frames.append(orjson.loads(text))
                await self.script(socket, self.frames[-1])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        async with serve(self._serve, "127.0.0.1", self.port):
            yield self


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().running() as server:
        yield server


def client(server: Server, **how: Any) -> Gateway:
    return Gateway(how.pop("url", server.ws), **{"timing": QUICK, "proxy": None, **how})


# ---- no connection


async def test_an_http_address_is_the_sockets(server: Server) -> None:
    async with client(server, url=server.ws.replace("ws:", "http:")) as gateway:
        assert gateway.state is State.CONNECTED


async def test_a_host_that_does_not_answer_is_logged_once_and_given_up_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    gateway = Gateway(f"ws://ann:secret@127.0.0.1:{port}/ws?key=secret", timing=QUICK, connect_timeout=1, proxy=None)
    with caplog.at_level(logging.WARNING, "gateway.client"), pytest.raises(NoAnswer, match="within 1 s: ws://127"):
        await gateway.__aenter__()
    [line] = [record.getMessage() for record in caplog.records]
    assert f"ws://127.0.0.1:{port}/ws" in line
    assert "secret" not in line
    assert gateway.state is State.CLOSED


async def test_a_name_that_cannot_be_resolved_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway("ws://no-such-host.invalid/ws", timing=QUICK, connect_timeout=2, proxy=None)
    with pytest.raises(NoAnswer, match=r"no-such-host\.invalid"):
        await gateway.__aenter__()
    assert "no-such-host.invalid" in caplog.text


async def test_each_new_reason_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def unlucky() -> str:
        raise OSError("no list yet")

    async def late() -> str:
        await asyncio.sleep(60)
        return server.ws

    async def good() -> str:
        return server.ws

    urls: list[Any] = [unlucky, unlucky, lambda: "ftp://site", late, lambda: None, good]
    async with client(server, url=lambda: urls.pop(0)()) as gateway:
        assert gateway.state is State.CONNECTED
    reasons = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert [reason.removeprefix("not connected: the url function ") for reason in reasons] == [
        "failed: no list yet", "failed: the URL has scheme 'ftp'", "returned nothing within 0.5 s",
        "failed: the URL is of type NoneType",
    ]  # fmt: skip


async def test_a_server_that_never_welcomes_is_left(server: Server) -> None:
    server.silent = True
    with pytest.raises(NoAnswer, match=r"no welcome within 0\.5 s"):
        await client(server, connect_timeout=1.5).__aenter__()
    assert len(server.connections) > 1


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"type":"ERROR"}', '{"type":"DATA","topic":7}', "\x00"])
async def test_odd_words_do_not_end_it(server: Server, text: str) -> None:
    async with client(server) as gateway:
        plain = await gateway.subscribe("plain")
        await server.connections[-1].send(text)
        await eventually(lambda: gateway.state is State.CONNECTED)
        async with asyncio.timeout(10):
            await gateway.subscribe("other")
        await eventually(lambda: plain.live)


async def test_a_callback_that_fails_ends_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the caller's")

    async with client(server, on_state=fail, on_system=fail, on_other=fail) as gateway:
        await gateway.subscribe("plain")
        await server.say(server.connections[-1], type="DATA", topic="else", data=1)
        await gateway.subscribe("more")
    assert gateway.state is State.CLOSED
    assert "the caller's" in caplog.text


# ---- what is too large


async def test_what_is_larger_than_the_server_takes_is_not_sent(server: Server) -> None:
    async with client(server) as gateway:
        large = "ü" * 500
        for asked in (
            gateway.publish("t", large),
            gateway.request("t", "a", b=large),
            gateway.command("t", "a", large),
        ):
            with pytest.raises(TooLarge, match=r"has 10\d\d bytes; the server accepts at most 1024"):
                await asked
        with pytest.raises(TooLarge):
            await gateway.subscribe("t" * 2000)
        for topic in ("\ud800", 7):
            with pytest.raises((ValueError, TypeError)):
                await gateway.subscribe(topic)  # type: ignore[arg-type]
        await gateway.subscribe("t")
        assert [frame["type"] for frame in server.frames] == ["SUBSCRIBE"]
        assert len(server.connections) == 1


async def test_a_server_that_closes_with_1009_is_come_back_to_ever_more_slowly(server: Server) -> None:
    bounds: list[float] = []

    def uniform(_: float, high: float) -> float:
        bounds.append(high)
        return 0.0

    async def too_large(socket: ServerConnection, _: Frame) -> None:
        await socket.close(1009, "too large")

    async with client(server, timing=Timing(), uniform=uniform) as gateway:
        server.script = too_large
        asked = asyncio.create_task(gateway.subscribe("t"))
        await eventually(lambda: bounds[:6] == [1, 2, 4, 8, 16, 20])
        server.script = server.obey
        await asked
        gateway.reconnect()
        await eventually(lambda: bounds[-1] == 1)


# ---- tokens


@pytest.mark.parametrize("how", [{"token": ""}, {"get_token": lambda: None}, {"get_token": lambda: ""}])
async def test_without_a_token_it_goes_on_as_an_anonymous_one(server: Server, how: dict[str, Any]) -> None:
    async with client(server, **how) as gateway:
        await gateway.subscribe("t")
        assert gateway.state is State.CONNECTED
        assert [frame["type"] for frame in server.frames] == ["SUBSCRIBE"]


async def _never() -> str:
    await asyncio.sleep(3600)
    return "late"


def _stuck() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


def _fails() -> str:
    raise RuntimeError


@pytest.mark.parametrize("first", [_never, _fails, lambda: 7, _stuck])
async def test_a_token_that_cannot_be_had_is_asked_for_again(server: Server, first: Callable[[], Any]) -> None:
    answers: list[Callable[[], Any]] = [first, lambda: "good"]
    async with client(server, get_token=lambda: answers.pop(0)()) as gateway:
        assert gateway.state is State.AUTHENTICATED
    assert [frame["authToken"] for frame in server.frames] == ["good"]
    assert len(server.connections) == 2


async def test_a_refused_token_is_replaced_and_only_repeated_refusals_are_final(server: Server) -> None:
    tokens = iter(["old", "new", "old", "old", "old", "never asked for"])

    async def judge(socket: ServerConnection, frame: Frame) -> None:
        if frame.get("authToken") == "old":
            await server.say(socket, type="ERROR", code=4401, message="expired", reason="token_expired")
        else:
            await server.obey(socket, frame)

    server.script = judge
    async with client(server, get_token=lambda: next(tokens)) as gateway:
        assert [frame["authToken"] for frame in server.frames] == ["old", "new"]
        gateway.reconnect()
        await eventually(lambda: gateway.state is State.CLOSED)
        with pytest.raises(Closed, match="4401"):
            await gateway.subscribe("t")
    assert next(tokens) == "never asked for"


async def test_a_token_that_never_changes_is_refused_once(server: Server) -> None:
    async def refuse(socket: ServerConnection, _: Frame) -> None:
        await server.say(socket, type="ERROR", code=4401, message="expired", reason="token_expired")

    server.script = refuse
    with pytest.raises(Closed, match="4401"):
        await client(server, token="old").__aenter__()
    assert len(server.frames) == 1


async def test_a_server_that_cannot_tell_whether_a_token_is_good_is_asked_again(server: Server) -> None:
    async def unsure(socket: ServerConnection, frame: Frame) -> None:
        if len(server.frames) < 6:
            await server.say(socket, type="ERROR", code=5030, message="no Redis", temporary=True)
        else:
            await server.obey(socket, frame)

    server.script = unsure
    async with client(server, token="good") as gateway:
        assert gateway.state is State.AUTHENTICATED
