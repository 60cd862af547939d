"""Clients that use Server-Sent Events or long polling have the same rights and rules as WebSocket clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import token
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]
ApiOf = Callable[[Front], Api]

RULES = """
[[topic]]
pattern = "kept*"
history = 50
publish = "anyone"

[[topic]]
pattern = "shown"
presence = true

[[topic]]
pattern = "*"
publish = "anyone"
"""

WAYS = pytest.mark.parametrize("over", ["sse", "poll"])


@pytest.fixture
def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


def no_balancer(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=30)


async def events(http: httpx.AsyncClient, count: int, /, last_id: str = "", **query: Any) -> list[dict[str, str]]:
    """The first events of an answer, as a browser's own EventSource reads them."""
    found: list[dict[str, str]] = []
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with http.stream("GET", "/sse", params=query, headers=headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        event: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif event:
                found.append(event)
                event = {}
            if len(found) == count:
                break
    return found


@WAYS
async def test_a_stream_sends_and_receives_the_same_messages_in_the_same_order_as_a_socket(
    plain: Cluster, connect: Connect, api: ApiOf, over: str
) -> None:
    socket, stream = await connect(plain[0]), await connect(plain[1], over=over, user="ann")
    topics = [f"{over}:a", f"{over}:b"]
    await socket.subscribe(*topics)
    assert (await stream.subscribe(*topics))["operation"] == "subscribe"
    for at in range(300):
        await api(plain[at % 3]).publish(topics[at % 2], at)
    assert (await stream.publish(topics[0], "the end"))["operation"] == "publish"
    for client in (socket, stream):
        await client.hear(type="DATA", data="the end")
    assert stream.data() == socket.data()
    assert (await stream.call(type="REQUEST", topic="system", action="getStatus"))["data"]["node"] == stream.node
    assert await stream.ask(type="ping", timestamp=5) == {"type": "pong", "timestamp": 5}


@WAYS
async def test_messages_to_another_node_are_forwarded_in_order(plain: Cluster, connect: Connect, over: str) -> None:
    stream = await connect(plain[0], over=over, says_to=plain[1].url)
    assert (await stream.subscribe(f"{over}:moved"))["topics"] == [f"{over}:moved"]
    for at in range(50):
        await stream.send(type="ping", timestamp=at)
    await stream.hear(type="pong", timestamp=49)
    assert [m["timestamp"] for m in stream.received(type="pong")] == list(range(50))


@WAYS
async def test_the_cluster_knows_it_and_can_send_it_away(
    plain: Cluster, connect: Connect, api: ApiOf, over: str
) -> None:
    stream = await connect(plain[2], over=over, user=f"{over}-ann")
    await stream.subscribe("known")
    back_end = api(plain[0])
    await eventually(lambda: topics_of(back_end, stream, over))
    await back_end.delete(f"/api/clients/{stream.id}")
    assert await stream.closed() == 3503
    await eventually(lambda: gone(back_end, f"{over}-ann"))


async def topics_of(back_end: Api, stream: Client, over: str) -> bool:
    rows = [row for row in await back_end.clients(user=f"{over}-ann") if row["id"] == stream.id]
    return [(row["transport"], row["topics"]) for row in rows] == [(over, ["known"])]


async def gone(back_end: Api, user: str) -> bool:
    return not await back_end.clients(user=user)


@WAYS
async def test_a_lost_client_is_removed_and_a_silent_one_stays(
    cluster: Start, connect: Connect, api: ApiOf, rules: Path, over: str
) -> None:
    (node,) = cluster(1, topics=rules, ping_seconds=1, pong_seconds=1, presence_grace_seconds=0.1)
    stays, goes = await connect(node, over=over), await connect(node, over=over)
    await stays.subscribe("shown")
    await goes.subscribe("shown")
    await eventually(lambda: bool(stays.received(type="PRESENCE", count=2)))
    await goes.leave()
    await stays.hear(type="PRESENCE", count=1, start=len(stays.messages))
    await asyncio.sleep(3)  # longer than silence may last: what is shown is that nothing happens
    assert stays.open
    assert [row["id"] for row in await api(node).clients()] == [stays.id]


async def test_a_browsers_own_event_source_goes_on_where_it_was_on_another_node(
    cluster: Start, api: ApiOf, rules: Path
) -> None:
    nodes = cluster(2, topics=rules)
    back_end = api(nodes[0])
    async with no_balancer(nodes[0].url) as here, no_balancer(nodes[1].url) as there:
        reading = asyncio.create_task(events(here, 5, topic=["kept:a", "kept:b"]))
        await eventually(lambda: hears(back_end, "kept:b"))
        await back_end.publish("kept:a", 1)
        await back_end.publish("kept:b", 2)
        opened, welcomed, acknowledged, *received = await reading
        assert orjson.loads(opened["data"])["type"] == "OPEN"
        assert orjson.loads(welcomed["data"])["action"] == "welcome"
        assert set(orjson.loads(acknowledged["data"])["positions"]) == {"kept:a", "kept:b"}
        assert [orjson.loads(event["data"])["data"] for event in received] == [1, 2]
        for value in (3, 4, 5):
            await back_end.publish("kept:a" if value % 2 else "kept:b", value)
        again = await events(there, 6, received[-1]["id"], topic=["kept:a", "kept:b"])
        frames = [orjson.loads(event["data"]) for event in again[2:]]
        assert [frame["data"] for frame in frames[:3]] == [3, 5, 4]
        assert all(position["recovered"] for position in frames[3]["positions"].values())


async def hears(back_end: Api, topic: str) -> bool:
    return bool(await back_end.clients(topic=topic))


async def test_a_draining_node_sends_the_reconnect_delay(cluster: Start, connect: Connect, rules: Path) -> None:
    (node,) = cluster(1, topics=rules, drain_seconds=0.5)
    polled = await connect(node, over="poll")
    async with no_balancer(node.url) as http:
        reading = asyncio.create_task(events(http, 4))
        await eventually(lambda: node.metric("gateway_opens_total") == 2)
        node.terminate()
        *_, farewell, last = await reading
        assert int(farewell["retry"]) <= 1000
        assert orjson.loads(last["data"]) == {"type": "CLOSE", "code": 3001, "reason": "shutdown"}
        assert await polled.closed() == 3001
        assert node.process.exit_code() == 0


async def test_only_its_owner_may_use_a_stream(plain: Cluster, connect: Connect) -> None:
    stream = await connect(plain[0], over="sse")
    name = stream.socket.name  # type: ignore[attr-defined]  # an EventSocket's
    wrong = f"{stream.id}.{'0' * 32}"
    async with no_balancer(plain[0].url) as http, no_balancer(plain[1].url) as other:
        assert (await http.post("/say", content=f"{wrong}\n{{}}")).status_code == 410
        assert (await http.post("/poll", content=wrong)).status_code == 410
        assert (await other.post("/poll", content=name)).status_code == 410  # it is not there
        # Another node cannot know; the stream's own drops it.
        assert (await other.post("/say", content=f'{wrong}\n{{"type":"ping","timestamp":"forged"}}')).status_code == 204
        assert (await other.post("/say", content=f"nobody.0.1.{'0' * 32}\n{{}}")).status_code == 410
        for none in ("", "\n", "a", f"{stream.id}\n{{}}", f"gw:x y.1.{'0' * 32}\n{{}}"):
            assert (await http.post("/say", content=none)).status_code == 400
        assert (await http.post("/poll", content=name)).status_code == 409  # it is being read from
        assert (await http.post("/poll", content="x" * 1000)).status_code == 413
    await stream.send(type="ping", timestamp="mine")
    await stream.hear(type="pong")
    assert [m["timestamp"] for m in stream.received(type="pong")] == ["mine"]


async def test_what_is_no_message_is_answered_as_on_a_socket(plain: Cluster, connect: Connect) -> None:
    stream = await connect(plain[0], over="poll")
    for said, code in ((b"no json", 4000), (b"[]", 4001), (b'{"type":"NONE"}', 4002)):
        await stream.socket.send(said)
        await stream.hear(type="ERROR", code=code)
    await stream.socket.send(b'"\xff"')
    assert await stream.closed() == 1007


async def test_only_pages_of_listed_origins_may_open_and_read_a_stream(cluster: Start) -> None:
    (node,) = cluster(1, origins="https://app.example")
    async with no_balancer(node.url) as http:
        for method, path in (("GET", "/sse"), ("POST", "/poll"), ("POST", "/say")):
            stranger = await http.request(method, path, headers={"Origin": "https://evil.example"})
            assert stranger.status_code == 403
            assert "access-control-allow-origin" not in stranger.headers
            embedded = await http.request(method, path, headers={"Sec-Fetch-Site": "cross-site"})
            assert embedded.status_code == 403
        ours = await http.post("/poll", headers={"Origin": "https://app.example"})
        assert ours.status_code == 200
        assert ours.headers["access-control-allow-origin"] == "https://app.example"
        assert ours.headers["access-control-allow-credentials"] == "true"


async def test_its_cookie_proves_who_it_is_and_its_slots_are_counted(cluster: Start, connect: Connect) -> None:
    nodes = cluster(2, max_user_connections=2)
    await connect(nodes[0], over="sse", user="ann")
    await connect(nodes[1], user="ann")
    async with no_balancer(nodes[1].url) as http:
        cookie = {"Cookie": f"session={token('ann')}"}
        assert (await http.post("/poll", headers=cookie)).status_code == 429
        assert (await http.get("/sse", headers=cookie)).status_code == 429
        assert (await http.get("/sse?token=x")).status_code == 400
        assert (await http.get("/sse?topic=no%20topic")).status_code == 400
        assert (await http.head("/sse")).status_code == 200
    assert nodes[1].metric("gateway_opens_total") == 1


async def test_a_slow_client_is_closed_and_others_do_not_wait(cluster: Start, connect: Connect, api: ApiOf) -> None:
    (node,) = cluster(1, client_buffer_bytes=1 << 20, max_message_bytes=1 << 20)
    reader = await connect(node, over="sse")
    await reader.subscribe("flood")
    opened = asyncio.Event()

    async def never_read() -> None:
        async with no_balancer(node.url) as http, http.stream("GET", "/sse", params={"topic": "flood"}):
            opened.set()
            await asyncio.Event().wait()

    slow = asyncio.create_task(never_read())
    await opened.wait()
    await eventually(lambda: two_hear(api(node)))
    sent = 0
    while not node.metric("gateway_closes_total", code="3008"):
        assert sent < 500, "so much is more than all buffers hold"
        await api(node).publish("flood", [sent, "x" * 200_000])
        sent += 1
        await reader.hear(type="DATA", data=[sent - 1, "x" * 200_000])
    assert [value[0] for value in reader.data("flood")] == list(range(sent))
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)


async def two_hear(back_end: Api) -> bool:
    return len(await back_end.clients(topic="flood")) == 2


@WAYS
async def test_through_the_load_balancer_it_stays_on_its_node(
    plain: Cluster, haproxy: Callable[..., LoadBalancer], connect: Connect, over: str
) -> None:
    balancer = haproxy(plain.nodes)
    cookies: dict[str, str] = {}
    source = new_source()
    async with httpx.AsyncClient(base_url=balancer.url, trust_env=False) as http:
        cookies["GW"] = (await http.get("/")).cookies["GW"]
    first = await connect(balancer, over=over, cookies=cookies, source=source)
    await first.subscribe(f"{over}:sticky")
    again = await connect(balancer, over=over, cookies=cookies, source=new_source())
    assert again.node == first.node
    # Without a cookie the source decides.
    nameless = [await connect(balancer, over=over, source=new) for new in [new_source()] * 2]
    assert nameless[0].node == nameless[1].node
    await nameless[0].subscribe(f"{over}:sticky")


async def test_a_closed_tab_behind_the_load_balancer_is_removed_long_before_a_ping_fails(
    cluster: Start, haproxy: Callable[..., LoadBalancer], connect: Connect, api: ApiOf, rules: Path
) -> None:
    # HAProxy watches a client only while it has something to write: what is tested is that it soon has.
    [node] = nodes = cluster(1, topics=rules, ping_seconds=3600, presence_grace_seconds=0.1)
    goes, stays = await connect(haproxy(nodes.nodes), over="sse"), await connect(node)
    await stays.subscribe("shown")
    await goes.subscribe("shown")
    await stays.hear(type="PRESENCE", count=2)
    await goes.leave()
    await stays.hear(within=30, start=len(stays.messages), type="PRESENCE", count=1)
    assert [row["id"] for row in await api(node).clients()] == [stays.id]


async def test_the_load_balancer_lets_bodies_through_to_these_alone(
    front: LoadBalancer,
) -> None:
    async with httpx.AsyncClient(base_url=front.url, trust_env=False) as http:
        assert (await http.post("/sse", content="x")).status_code == 405
        assert (await http.request("GET", "/sse", content="x")).status_code == 413
        assert (await http.get("/poll")).status_code == 405
        with contextlib.closing(HTTPConnection(front.url.removeprefix("http://"), timeout=10)) as large:
            large.request("POST", "/say", headers={"Content-Length": "3000000"})
            assert large.getresponse().status == 413
        stranger = {"Origin": "https://evil.example"}
        assert (await http.post("/say", content="x", headers=stranger)).status_code == 403
        assert (await http.get("/sse", headers=stranger)).status_code == 403
        assert (await http.post("/say", content="x")).status_code == 400  # the node's own answer
