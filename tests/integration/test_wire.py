"""The wire against a running node: PROTOCOL.md, sentence by sentence."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from gateway import __version__, tokens
from tests.conftest import Connect
from tests.kit.client import Client, Message
from tests.kit.cluster import Cluster
from tests.kit.node import JWT_SECRET, Node, token
from tests.kit.raw import RawSocket, frame, text
from tests.kit.waiting import eventually

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
OpenRaw = Callable[..., Awaitable[RawSocket]]

# Upon an ERROR with a requestId and any other code the browser client resends without end.
WITH_REQUEST_ID = {4004, 4010, 4012}


@pytest.fixture
def node(plain: Cluster) -> Node:
    """Any node."""
    return plain[0]


@pytest.fixture
async def open_raw() -> AsyncIterator[OpenRaw]:
    """`await open_raw(node)`: a `RawSocket` that is gone at the end of the test."""
    opened: list[RawSocket] = []

    async def open_one(*where: Any, **how: Any) -> RawSocket:
        socket = await RawSocket.open(*where, **how)
        opened.append(socket)
        return socket

    yield open_one
    await asyncio.gather(*(socket.close() for socket in opened))


def without_time(message: Message) -> Message:
    """The message without its timestamp, which must be ISO 8601 in UTC with milliseconds, and now."""
    assert ISO.fullmatch(message["timestamp"]), message
    return {name: value for name, value in message.items() if name != "timestamp"}


# ---- coming in


async def test_the_first_message_is_a_welcome(node: Node, connect: Connect) -> None:
    client = await connect(node)
    welcome = without_time(client.messages[0])
    client_id = welcome["data"].pop("clientId")
    assert welcome == {
        "type": "SYSTEM", "topic": "system", "action": "welcome",
        "data": {
            "node": "n1", "version": __version__, "pingMs": 25000,
            "limits": {
                "messageBytes": 1 << 20, "topics": 5000, "messagesPerSecond": 100, "subscriptionsPerSecond": 1500,
            },
        },
    }  # fmt: skip
    assert re.fullmatch(r"n1\.[0-9a-f]{8}\.\d+", client_id)


@pytest.mark.parametrize("path", ["/ws", "/api/v69/ws"])
async def test_both_paths_are_the_same_socket(node: Node, connect: Connect, path: str) -> None:
    client = await connect(node.ws.removesuffix("/ws") + path)
    assert (await client.ask(type="ping", timestamp=1)) == {"type": "pong", "timestamp": 1}


async def test_the_first_subprotocol_offered_is_echoed(node: Node, connect: Connect) -> None:
    assert (await connect(node, subprotocols=["v2.json", "v1.json"])).socket.subprotocol == "v2.json"
    assert (await connect(node)).socket.subprotocol is None


async def test_compression_is_not_agreed(node: Node) -> None:
    async with websockets.connect(node.ws, compression="deflate", proxy=None) as socket:
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers
        assert orjson.loads(await socket.recv())["action"] == "welcome"


@pytest.mark.parametrize("name", ["token", "authToken", "access_token"])
async def test_a_token_in_the_url_is_refused(node: Node, connect: Connect, name: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(f"{node.ws}?{name}={token('ann')}")
    assert refusal.value.response.status_code == 400
    assert b"token" in (refusal.value.response.body or b"")


async def test_a_foreign_origin_is_refused_and_the_own_host_is_not(node: Node, connect: Connect) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(node, origin="https://elsewhere.example")
    assert refusal.value.response.status_code == 403
    await connect(node, origin=node.url)


async def test_a_handshake_of_any_bytes_is_answered(node: Node, open_raw: OpenRaw) -> None:
    for target in (b"/ws?\xff\xfe", b"/\xc3\xa9", b"/ws/%ff", b"/nowhere", b"*", b"http://[/ws"):
        assert 400 <= (await open_raw(node, target=target)).status < 500, target


async def test_an_unmodified_client_of_fifteen_lines_works(node: Node) -> None:
    async def listener(url: str, received: list[Any], ready: asyncio.Event) -> None:
        async for websocket in websockets.connect(url):
            await websocket.send('{"type":"SUBSCRIBE","topics":["fifteen"]}')
            async for message in websocket:
                event = orjson.loads(message)
                if event["type"] == "ACKNOWLEDGMENT":
                    ready.set()
                if event["type"] == "DATA":
                    received.append(event["data"])
                    return

    received: list[Any] = []
    ready = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(listener(node.ws, received, ready))
        await ready.wait()
        async with websockets.connect(node.ws) as publisher:
            await publisher.send(orjson.dumps({"type": "AUTH", "authToken": token("ann")}).decode())
            await publisher.send('{"type":"PUBLISH","topic":"fifteen","data":{"price":1}}')
            while orjson.loads(await publisher.recv()).get("operation") != "publish":
                pass
    assert received == [{"price": 1}]


# ---- who one is


async def test_auth_is_acknowledged(node: Node, connect: Connect) -> None:
    client = await connect(node)
    assert without_time(await client.authenticate("ann")) == {
        "type": "ACKNOWLEDGMENT", "operation": "authenticate", "status": "success",
        "message": "User authenticated successfully",
    }  # fmt: skip
    assert (await client.subscribe("portfolio"))["status"] == "success"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"authToken": token("ann", seconds=-10)}, "token_expired"),
        ({"authToken": token("ann") + "x"}, "token_invalid"),
        ({"authToken": tokens.issue(JWT_SECRET[::-1], "ann", "user", 3600, time.time())}, "token_invalid"),
        ({"authToken": tokens.sign({"sub": ""}, JWT_SECRET)}, "token_invalid"),
        ({"authToken": "é"}, "token_invalid"),
        ({"authToken": ""}, "token_required"),
        ({"authToken": 5}, "token_required"),
        ({}, "token_required"),
    ],
)
async def test_auth_is_refused_with_its_reason(node: Node, connect: Connect, sent: dict[str, Any], reason: str) -> None:
    client = await connect(node)
    refusal = without_time(await client.ask(type="AUTH", **sent))
    assert (refusal["type"], refusal["code"], refusal["reason"]) == ("ERROR", 4401, reason)
    assert refusal["error"] == refusal["message"]
    assert (await client.subscribe("portfolio"))["code"] == 4010


async def test_the_session_cookie_identifies_the_client(node: Node, connect: Connect) -> None:
    assert (await (await connect(node, user="ann")).subscribe("portfolio"))["status"] == "success"
    assert (await (await connect(node, user="ann")).subscribe("admin"))["code"] == 4012
    assert (await (await connect(node, user="root", role="admin")).subscribe("admin"))["status"] == "success"


@pytest.mark.parametrize(
    "cookie",
    [token("ann", seconds=-10), token("ann") + "x", "rubbish", "%ff"],
    ids=["expired", "changed", "rubbish", "escaped"],
)
async def test_a_bad_cookie_means_anonymous(node: Node, connect: Connect, cookie: str) -> None:
    client = await connect(node, cookies={"session": cookie})
    assert (await client.subscribe("portfolio"))["code"] == 4010
    assert (await client.subscribe("prices"))["status"] == "success"


async def test_a_token_may_come_with_subscribe(node: Node, connect: Connect) -> None:
    client = await connect(node)
    assert (await client.subscribe("portfolio", authToken=token("ann")))["topics"] == ["portfolio"]
    assert (await client.publish("chat", "now I am ann"))["operation"] == "publish"
    refused = await client.subscribe("wallet", authToken=token("ann") + "x")
    assert (refused["code"], refused["reason"]) == (4011, "token_invalid")


async def test_a_token_that_ends_ends_the_socket(node: Node, connect: Connect) -> None:
    client, other = await connect(node), await connect(node, user="ann")
    assert (await client.authenticate("ann", seconds=2.5))["status"] == "success"
    assert await client.closed(within=20) == 3005  # when the leeway is over
    assert (await other.ask(type="ping"))["type"] == "pong"


# ---- subscribe, unsubscribe, publish


async def test_subscribe_is_acknowledged_and_then_everything_arrives(node: Node, connect: Connect) -> None:
    client, speaker = await connect(node), await connect(node, user="ann")
    assert without_time(await client.ask(type="SUBSCRIBE", topics=["wire-a", "wire-b"], requestId="r")) == {
        "type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": ["wire-a", "wire-b"], "status": "success",
        "message": "Successfully subscribed to wire-a, wire-b", "requestId": "r",
    }  # fmt: skip
    assert without_time(await speaker.publish("wire-b", {"n": 1}, action="trade", subtype="buy", priority=3)) == {
        "type": "ACKNOWLEDGMENT", "operation": "publish", "topic": "wire-b", "requestId": "r1",
    }  # fmt: skip
    assert without_time(await client.hear(type="DATA")) == {
        "type": "DATA", "topic": "wire-b", "data": {"n": 1}, "action": "trade", "subtype": "buy", "priority": 3,
    }  # fmt: skip


async def test_subscribing_twice_is_idempotent(node: Node, connect: Connect) -> None:
    client = await connect(node, user="ann")
    for _ in range(3):
        assert (await client.subscribe("twice"))["topics"] == ["twice"]
    await client.publish("twice", 1)
    await client.publish("twice", 2)
    await client.hear(type="DATA", data=2)
    assert client.data("twice") == [1, 2]


async def test_unknown_topics_are_dropped_from_the_acknowledgement(node: Node, connect: Connect) -> None:
    client = await connect(node)
    ack = await client.ask(type="SUBSCRIBE", topics=["good", "not good", "", 7, None, "x" * 201, "good", "{}"])
    assert ack["topics"] == ["good"]


async def test_topic_names_are_exact(node: Node, connect: Connect) -> None:
    client = await connect(node, user="ann")
    name = "A:z_0.9-/" + "x" * 191
    assert (await client.subscribe(name))["topics"] == [name]
    await client.publish(name.lower(), "other")
    await client.publish(name, "this")
    await client.hear(type="DATA")
    assert client.data() == ["this"]


async def test_subscribe_is_all_or_nothing(node: Node, connect: Connect) -> None:
    client, speaker = await connect(node), await connect(node, user="ann")
    assert (await client.subscribe("open-one", "portfolio"))["code"] == 4010
    await speaker.publish("open-one", "unheard")
    await client.subscribe("open-one")
    await speaker.publish("open-one", "received")
    await client.hear(type="DATA")
    assert client.data() == ["received"]


async def test_after_unsubscribe_nothing_arrives(node: Node, connect: Connect) -> None:
    client = await connect(node, user="ann")
    await client.subscribe("stays", "goes")
    assert without_time(await client.unsubscribe("goes", "never-joined")) == {
        "type": "ACKNOWLEDGMENT", "operation": "unsubscribe", "topics": ["goes", "never-joined"], "requestId": "r2",
    }  # fmt: skip
    await client.publish("goes", 1)
    await client.publish("stays", 2)
    await client.hear(type="DATA")
    assert client.data() == [2]


async def test_one_subscribe_may_carry_thousands_of_topics(node: Node, connect: Connect) -> None:
    client = await connect(node, user="root", role="admin")
    topics = [f"token:price:{at:044}" for at in range(3500)]
    assert (await client.subscribe(*topics))["topics"] == topics
    await client.publish(topics[-1], "last")
    assert (await client.hear(type="DATA"))["topic"] == topics[-1]
    assert (await client.unsubscribe(*topics))["topics"] == topics


async def test_too_many_topics_close_the_socket(node: Node, connect: Connect) -> None:
    client = await connect(node)
    assert (await client.subscribe(*(f"many:{at}" for at in range(5000))))["status"] == "success"
    assert (await client.subscribe("many:0"))["status"] == "success"  # one it has
    await client.send(type="SUBSCRIBE", topics=["many:5000"])
    assert await client.closed() == 3505


async def test_only_users_publish(node: Node, connect: Connect) -> None:
    assert (await (await connect(node)).publish("chat", 1))["code"] == 4010
    user = await connect(node, user="ann")
    assert (await user.publish("chat", 1))["operation"] == "publish"
    assert (await user.publish("admin", 1))["code"] == 4012
    assert (await user.publish("system", {"forged": True}))["code"] == 4403


# ---- requests, commands, logs, pings


async def test_system_ping_alone_is_answered_by_a_response(node: Node, connect: Connect) -> None:
    client = await connect(node)
    answer = await client.ask(type="REQUEST", topic="system", action="ping", requestId="p")
    assert ISO.fullmatch(answer["data"].pop("timestamp"))
    assert answer == {"type": "RESPONSE", "topic": "system", "action": "pong", "data": {}, "requestId": "p"}


async def test_get_status_is_answered_by_data(node: Node, connect: Connect) -> None:
    answer = without_time(
        await (await connect(node)).ask(type="REQUEST", topic="system", action="getStatus", requestId=7)
    )
    assert answer.pop("data").items() >= {"status": "ok", "node": "n1", "version": __version__}.items()
    assert answer == {"type": "DATA", "topic": "system", "action": "getStatus", "requestId": 7}


async def test_logs_are_acknowledged_and_written(node: Node, connect: Connect) -> None:
    client = await connect(node)
    answer = await client.ask(type="LOGS", logs=[{"level": "error", "message": "broken ☃"}, {}])
    assert without_time(answer) == {
        "type": "ACKNOWLEDGMENT", "topic": "logs", "message": "Logs received", "count": 2,
    }  # fmt: skip
    lines = [event["line"] for event in await node.logged("browser log", 2, client=client.id)]
    assert [orjson.loads(line) for line in lines] == [{"level": "error", "message": "broken ☃"}, {}]


@pytest.mark.parametrize("timestamp", [1795502108477, "soon", None, 1.5, {"a": [1]}])
async def test_ping_is_answered_with_its_own_timestamp(node: Node, connect: Connect, timestamp: Any) -> None:
    assert await (await connect(node)).ask(type="ping", timestamp=timestamp) == {"type": "pong", "timestamp": timestamp}


async def test_a_native_ping_is_answered(node: Node, connect: Connect) -> None:
    client = await connect(node)
    async with asyncio.timeout(5):
        await (await client.socket.ping(b"are you there"))
    assert len(client.messages) == 1


# ---- errors


ANYONE, USER = None, "ann"


@pytest.mark.parametrize(
    ("who", "sent", "code"),
    [
        (ANYONE, "{", 4000),
        (ANYONE, "", 4000),
        (ANYONE, b"\x00\x01", 4000),
        (ANYONE, "NaN", 4000),
        (ANYONE, "[" * 2000, 4000),
        (ANYONE, '{"type":"ping","timestamp":' + "[" * 254 + "]" * 254 + "}", 4000),
        (ANYONE, [], 4001),
        (ANYONE, {"topic": "x"}, 4001),
        (ANYONE, {"type": "NOISE"}, 4002),
        (ANYONE, {"type": None}, 4002),
        (ANYONE, {"type": ["ping"]}, 4002),
        (ANYONE, {"type": "SUBSCRIBE"}, 4003),
        (ANYONE, {"type": "SUBSCRIBE", "topics": []}, 4003),
        (ANYONE, {"type": "SUBSCRIBE", "topics": "contest"}, 4003),
        (ANYONE, {"type": "SUBSCRIBE", "topics": ["not good"]}, 4004),
        (ANYONE, {"type": "UNSUBSCRIBE"}, 4005),
        (ANYONE, {"type": "REQUEST", "topic": "system"}, 4006),
        (USER, {"type": "PUBLISH", "topic": "x"}, 4006),
        (USER, {"type": "PUBLISH", "data": "x"}, 4006),
        (USER, {"type": "PUBLISH", "topic": "not good", "data": 1}, 4004),
        (ANYONE, {"type": "REQUEST", "topic": "nothing", "action": "ping"}, 4007),
        (ANYONE, {"type": "REQUEST", "topic": "system", "action": "explode"}, 4009),
        (ANYONE, {"type": "SUBSCRIBE", "topics": ["wallet"]}, 4010),
        (ANYONE, {"type": "PUBLISH", "topic": "x", "data": 1}, 4010),
        (ANYONE, {"type": "SUBSCRIBE", "topics": ["x"], "authToken": "bad"}, 4011),
        (USER, {"type": "SUBSCRIBE", "topics": ["admin"]}, 4012),
        (ANYONE, {"type": "COMMAND", "topic": "x", "action": "GO"}, 4013),
        (USER, {"type": "COMMAND", "action": "GO"}, 4014),
        (USER, {"type": "COMMAND", "topic": "x"}, 4014),
        (ANYONE, {"type": "LOGS", "logs": "text"}, 4015),
        (ANYONE, {"type": "LOGS"}, 4015),
        (USER, {"type": "PUBLISH", "topic": "x", "data": 1, "action": 5}, 4016),
        (USER, {"type": "PUBLISH", "topic": "x", "data": "y" * ((1 << 20) - 70)}, 4016),
        (ANYONE, {"type": "AUTH", "authToken": "bad"}, 4401),
        (USER, {"type": "PUBLISH", "topic": "system", "data": 1}, 4403),
        (USER, {"type": "COMMAND", "topic": "x", "action": "GO"}, 5001),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_every_error_has_its_code_and_leaves_the_socket_open(
    node: Node, connect: Connect, who: str | None, sent: Any, code: int
) -> None:
    client = await connect(node, user=who)
    if isinstance(sent, dict):
        sent = {**sent, "requestId": "the-call"}
    raw = sent if isinstance(sent, str | bytes) else orjson.dumps(sent).decode()
    error = without_time(await client.ask_text(raw))
    assert (error["type"], error["code"]) == ("ERROR", code)
    assert error["error"] == error["message"] != ""
    assert ("requestId" in error) == (isinstance(sent, dict) and code in WITH_REQUEST_ID), error
    assert (await client.ask(type="ping", timestamp="still here"))["timestamp"] == "still here"


@pytest.mark.parametrize("depth", [200, 300, 900, 1020])
@pytest.mark.parametrize(
    "around",
    [
        '{"type":"PUBLISH","topic":"deep","data":%s}',
        '{"type":"ping","timestamp":%s}',
        '{"type":%s}',
        '{"type":"LOGS","logs":[{"deep":%s}]}',
        '{"type":"REQUEST","topic":"system","action":"getStatus","data":{"deep":%s}}',
        '{"type":"PUBLISH","topic":%s,"data":1}',
        '{"type":"SUBSCRIBE","topics":[%s]}',
    ],
)
async def test_nesting_breaks_nothing(node: Node, connect: Connect, around: str, depth: int) -> None:
    client = await connect(node, user="ann")
    assert (await client.ask_text(around % ("[" * depth + "]" * depth)))["type"] != "SYSTEM"
    assert (await client.ask(type="ping", timestamp=1))["type"] == "pong"


@pytest.mark.parametrize("bad", ["r" * 201, True, 1.5, {}, []])
async def test_a_request_id_that_is_none_is_refused(node: Node, connect: Connect, bad: Any) -> None:
    error = await (await connect(node)).ask(type="SUBSCRIBE", topics=["x"], requestId=bad)
    assert error["code"] == 4016
    assert "requestId" not in error


# ---- frames


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([frame(1, b'{"type":"ping","timestamp":"\xff"}')], 1007),
        ([frame(1, b'"\xc3', final=False), frame(0, b'\x28"')], 1007),
        ([frame(1, b"x" * ((1 << 20) + 1))], 1009),
        ([frame(1, b"x" * (1 << 19), final=False), frame(0, b"x" * ((1 << 19) + 1))], 1009),
        ([frame(1, b"{}", masked=False)], 1002),
        ([frame(1, b"{}", reserved=0x40)], 1002),
        ([frame(3, b"")], 1002),
        ([frame(11, b"")], 1002),
        ([frame(0, b"nothing before")], 1002),
        ([frame(1, b"{", final=False), frame(1, b"}")], 1002),
        ([frame(9, b"x" * 126)], 1002),
        ([frame(9, b"", final=False)], 1002),
        ([frame(8, b"\x03\xed")], 1002),  # 1005 may not be sent
        ([frame(8, b"\x03")], 1002),
        ([frame(8, b"\x03\xe8\xff")], 1007),
        ([frame(8, b"\x03\xe8bye")], 1000),
        ([frame(8, b"\x0f\xa0")], 4000),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_broken_frames_close_with_the_standards_code(
    node: Node, open_raw: OpenRaw, frames: list[bytes], code: int
) -> None:
    socket = await open_raw(node)
    socket.write(*frames)
    assert await socket.close_code() == code
    socket.write(frame(8, code.to_bytes(2, "big")))
    assert await socket.ended()


async def test_what_stood_before_a_broken_frame_is_answered(node: Node, open_raw: OpenRaw) -> None:
    socket = await open_raw(node)
    assert (await socket.message())["action"] == "welcome"
    socket.write(text({"type": "ping", "timestamp": 1}), frame(1, b"{}", masked=False))
    assert await socket.message() == {"type": "pong", "timestamp": 1}
    assert await socket.close_code() == 1002


async def test_a_message_may_come_in_pieces(node: Node, open_raw: OpenRaw) -> None:
    socket = await open_raw(node)
    await socket.message()
    socket.write(frame(1, b'{"type":"pi', final=False), frame(9, b"between"), frame(0, b'ng","timestamp":3}'))
    assert await socket.frame() == (10, b"between")
    assert await socket.message() == {"type": "pong", "timestamp": 3}
    for octet in text({"type": "ping", "timestamp": 4}):
        socket.write(bytes((octet,)))
        await socket.writer.drain()
    assert await socket.message() == {"type": "pong", "timestamp": 4}


async def test_a_message_of_just_the_limit_is_taken(node: Node, connect: Connect) -> None:
    client = await connect(node)
    around = len(b'{"type":"ping","timestamp":""}')
    padding = "x" * ((1 << 20) - around)
    assert (await client.ask(type="ping", timestamp=padding))["timestamp"] == padding


async def test_the_frames_of_a_socket_are_handled_in_order(node: Node, open_raw: OpenRaw) -> None:
    socket = await open_raw(node)
    await socket.message()
    topic = f"ordered-{time.monotonic_ns()}"  # new, so the SUBSCRIBE must wait for Redis
    socket.write(
        text({"type": "AUTH", "authToken": token(topic)}),  # a new user, so must this
        text({"type": "SUBSCRIBE", "topics": [topic, "wallet"], "requestId": "subscribe"}),
        text({"type": "PUBLISH", "topic": topic, "data": 1, "requestId": "publish"}),
        text({"type": "ping", "timestamp": 1}),
        text({"type": "UNSUBSCRIBE", "topics": ["wallet"], "requestId": "unsubscribe"}),  # the message is on its way
        text({"type": "ping", "timestamp": 2}),
    )
    answers = [await socket.message() for _ in range(7)]
    received = [m for m in answers if m["type"] == "DATA"]
    assert [m["data"] for m in received] == [1]
    assert [m.get("operation") or m.get("timestamp") for m in answers if m not in received] == [
        "authenticate", "subscribe", "publish", 1, "unsubscribe", 2,
    ]  # fmt: skip


async def test_many_frames_in_one_write_are_all_answered_in_order(node: Node, open_raw: OpenRaw) -> None:
    socket = await open_raw(node)
    await socket.message()
    fresh = time.monotonic_ns()
    frames = []
    for at in range(300):
        frames.append(text({"type": "SUBSCRIBE", "topics": [f"flow-{fresh}-{at}"], "requestId": at}))
        frames.append(text({"type": "ping", "timestamp": at}))
    socket.write(*frames)
    answers = [await socket.message() for _ in range(600)]
    assert [m["requestId"] if m["type"] == "ACKNOWLEDGMENT" else m["timestamp"] for m in answers] == [
        at for at in range(300) for _ in range(2)
    ]


# ---- silence


async def test_a_silent_client_is_pinged_and_then_closed(
    cluster: Callable[..., Cluster], open_raw: OpenRaw, connect: Connect
) -> None:
    (node,) = cluster(1, ping_seconds=1, pong_seconds=1)
    answering: Client = await connect(node)  # the library answers pings by itself
    silent = await open_raw(node)
    await silent.message()
    assert await silent.frame() == (9, b"")
    assert await silent.close_code() == 3012
    assert await silent.ended()  # though it has not answered the close either
    assert (await answering.ask(type="ping"))["type"] == "pong"
    await eventually(lambda: node.metric("gateway_closes_total", code="3012") == 1)
    await eventually(lambda: node.metric("gateway_connections") == 1)


async def test_messages_sent_before_a_close_are_still_handled(node: Node, connect: Connect) -> None:
    subscriber, leaver = await connect(node), await connect(node, user="ann")
    await subscriber.subscribe("farewell")
    for number in range(5):
        await leaver.send(type="PUBLISH", topic="farewell", data=number)
    await leaver.close()
    await subscriber.hear(type="DATA", data=4)
    assert subscriber.data("farewell") == [0, 1, 2, 3, 4]
