"""Centrifugo's client libraries, unmodified, against nodes and HAProxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import centrifuge  # type: ignore[import-untyped]
import httpx
import jwt
import orjson
import pytest
import websockets

from tests.conftest import Connect
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, JWT_SECRET, Node
from tests.kit.waiting import eventually

RULES: Final = """
strict_namespaces = true

[[topic]]
pattern = "forced:*"
presence = true
force_join_leave = true

[[topic]]
pattern = "closed:*"
subscribe = "token"
history = 100
publish = "anyone"

[[topic]]
pattern = "short:*"
history = 2
publish = "anyone"

[[topic]]
pattern = "value:*"
snapshot = true
publish = "anyone"

[[topic]]
pattern = "plain:*"
publish = "anyone"

[[topic]]
pattern = "*"
history = 100
presence = true
publish = "anyone"
"""
SECONDS: Final = 20.0  # for each step


class Events(centrifuge.SubscriptionEventHandler, centrifuge.ClientEventHandler):  # type: ignore[misc]
    """The events of a client and its subscription."""

    def __init__(self) -> None:
        self.data: list[Any] = []
        self.offsets: list[int] = []
        self.errors: list[int] = []
        self.subscribed: list[Any] = []
        self.ended: list[int] = []
        self.senders: list[Any] = []
        self.joined: list[str] = []
        self.left: list[str] = []

    async def on_join(self, ctx: Any) -> None:
        self.joined.append(ctx.info.client)

    async def on_leave(self, ctx: Any) -> None:
        self.left.append(ctx.info.client)

    async def on_publication(self, ctx: Any) -> None:
        data = ctx.pub.data
        self.data.append(orjson.loads(data) if isinstance(data, bytes) else data)
        self.offsets.append(ctx.pub.offset)
        self.senders.append(ctx.pub.info)

    async def on_subscribed(self, ctx: Any) -> None:
        self.subscribed.append(ctx)

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.ended.append(ctx.code)

    async def on_disconnected(self, ctx: Any) -> None:
        self.ended.append(ctx.code)


class Client:
    """A client of the library with one subscription. `data` is given to its publishes as the encoding wants it."""

    def __init__(self, front: Node | LoadBalancer, protobuf: bool, **options: Any) -> None:
        url = front.ws.removesuffix("/ws") + "/connection/websocket" + ("?format=protobuf" if protobuf else "")
        self.protobuf = protobuf
        self.events = Events()
        self.client = centrifuge.Client(
            url, events=self.events, use_protobuf=protobuf, min_reconnect_delay=0.05, max_reconnect_delay=0.5, **options
        )

    def data(self, value: Any) -> Any:
        return orjson.dumps(value) if self.protobuf else value

    async def leave(self) -> None:
        """Disconnect, and wait until the library has closed the socket, which it does in a task."""
        socket = self.client._conn
        await self.client.disconnect()
        if socket is not None:
            await socket.wait_closed()

    async def subscribe(self, topic: str, **options: Any) -> Any:
        """Connect if necessary, and subscribe."""
        if self.client.state is not centrifuge.ClientState.CONNECTED:
            await self.client.connect()
            await self.client.ready(SECONDS)
        subscription = self.client.new_subscription(topic, events=self.events, **options)
        await subscription.subscribe()
        await subscription.ready(SECONDS)
        return subscription


@pytest.fixture(params=[False, True], ids=["json", "protobuf"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Client]]:
    """`client(node)`: a client in each encoding, disconnected at the end."""
    async with AsyncExitStack() as stack:

        def of(front: Node | LoadBalancer, **options: Any) -> Client:
            one = Client(front, request.param, **options)
            stack.push_async_callback(one.leave)
            return one

        yield of


@pytest.fixture
def nodes(cluster: Callable[..., Cluster], folder: Path) -> Callable[..., Cluster]:
    """`nodes(2)`: so many nodes that serve Centrifugo's clients."""
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    return lambda n, **settings: cluster(n, centrifugo=1, topics=rules, **settings)


def signed(seconds: float = 3600, **claims: Any) -> str:
    """A token with these claims."""
    return jwt.encode({"exp": int(time.time() + seconds), **claims}, JWT_SECRET, "HS256")


def given(token: str) -> Callable[..., Awaitable[str]]:
    """What the library calls to get a token."""

    async def get(*_: Any) -> str:
        return token

    return get


async def test_publish_receive_and_ask(nodes: Callable[..., Cluster], client: Callable[..., Client]) -> None:
    (node,) = nodes(1)
    one, other = client(node), client(node)
    topic = await one.subscribe("chat")
    await other.subscribe("chat")
    values = [{"text": "é\n"}, [1, None], "s"]
    for value in values:
        await topic.publish(one.data(value))
    await eventually(lambda: one.events.data == other.events.data == values, SECONDS)
    assert one.events.offsets == other.events.offsets == [1, 2, 3]
    page = await topic.history(limit=2)
    assert [pub.offset for pub in page.publications] == [1, 2] and page.offset == 3
    page = await topic.history(limit=2, since=centrifuge.StreamPosition(3, page.epoch), reverse=True)
    assert [pub.offset for pub in page.publications] == [2, 1]
    assert (await topic.history()).publications == []
    with pytest.raises(centrifuge.ReplyError) as refused:
        await one.client.rpc("method", one.data({}))
    assert refused.value.code == 103
    await topic.unsubscribe()
    await other.client.publish("chat", other.data("missed"))
    await topic.subscribe()
    await eventually(lambda: one.events.data[-1] == "missed", SECONDS)
    assert one.events.subscribed[-1].recovered and one.events.offsets == [1, 2, 3, 4]


async def test_native_and_centrifugo_clients_share_a_topic(
    nodes: Callable[..., Cluster], client: Callable[..., Client], connect: Connect
) -> None:
    (node,) = nodes(1)
    one, native = client(node), await connect(node, user="ann")
    topic = await one.subscribe("chat")
    await native.subscribe("chat")
    await topic.publish(one.data({"from": "centrifugo"}))
    await native.publish("chat", {"from": "native"})
    both = [{"from": "centrifugo"}, {"from": "native"}]
    await eventually(lambda: one.events.data == both, SECONDS)
    await eventually(lambda: native.data("chat") == both, SECONDS)


async def test_joins_are_for_clients_that_ask(nodes: Callable[..., Cluster], client: Callable[..., Client]) -> None:
    near, far = nodes(2)
    asked, silent, other = client(near), client(near), client(far)
    wanted = await asked.subscribe("chat", join_leave=True)
    await silent.subscribe("chat")
    coming = await other.subscribe("chat")
    name = other.client.client_id
    await eventually(lambda: name in asked.events.joined, SECONDS)
    assert asked.client.client_id in asked.events.joined
    await coming.unsubscribe()
    await eventually(lambda: asked.events.left == [name], SECONDS)
    await wanted.unsubscribe()
    await silent.subscribe("forced:1")  # its rule sends joins unasked
    await eventually(lambda: silent.events.joined == [silent.client.client_id], SECONDS)
    assert not silent.events.left and not other.events.joined


async def test_an_unknown_namespace_is_an_unknown_channel(
    nodes: Callable[..., Cluster], client: Callable[..., Client]
) -> None:
    (node,) = nodes(1)
    one = client(node)
    with pytest.raises(centrifuge.SubscriptionUnsubscribedError):
        await one.subscribe("missing:1")
    assert one.events.ended == [102]
    with pytest.raises(centrifuge.ReplyError) as refused:
        await one.client.publish("missing:1", one.data(1))
    assert refused.value.code == 102
    headers = {"x-api-key": API_KEY}
    async with httpx.AsyncClient(base_url=node.url, timeout=SECONDS, trust_env=False, headers=headers) as http:
        for method in ("publish", "history", "presence"):
            answer = await http.post(f"/api/{method}", json={"channel": "missing:1", "data": 1})
            assert answer.json()["error"]["code"] == 102 and "unknown channel" in answer.json()["error"]["message"]


async def test_a_message_of_a_client_names_it(
    nodes: Callable[..., Cluster], client: Callable[..., Client], connect: Connect
) -> None:
    (node,) = nodes(1)
    one = client(node, token=signed(sub="42", info={"name": "Ann"}))
    native = await connect(node, user="bob")
    topic = await one.subscribe("chat")
    await native.subscribe("chat")
    await topic.publish(one.data(1))
    await native.publish("chat", 2)
    await eventually(lambda: one.events.data == [1, 2], SECONDS)
    sender, nobody = one.events.senders
    info = orjson.loads(sender.conn_info) if one.protobuf else sender.conn_info
    assert (sender.user, sender.client, info) == ("42", one.client.client_id, {"name": "Ann"}) and not nobody
    page = await topic.history(limit=2)
    assert page.publications[0].info.client == one.client.client_id
    assert native.data("chat") == [1, 2]


async def test_tokens(nodes: Callable[..., Cluster], client: Callable[..., Client]) -> None:
    (node,) = nodes(1)
    wrong = client(node, token="wrong")
    await wrong.client.connect()
    await eventually(lambda: wrong.events.ended == [3500], SECONDS)
    expired = client(node, token=signed(-60, sub="42"), get_token=given(signed(sub="42")))
    await expired.client.connect()
    await expired.client.ready(SECONDS)
    one = client(node, token=signed(sub="42"))
    with pytest.raises(centrifuge.SubscriptionUnsubscribedError):
        await one.subscribe("closed:1")
    assert one.events.ended == [103]
    right, other_topic = signed(sub="42", channel="closed:2"), signed(sub="42", channel="closed:3")
    await one.subscribe("closed:2", token=right)
    with pytest.raises(centrifuge.CentrifugeError):
        await one.subscribe("closed:4", token=other_topic)
    assert one.events.ended[-1] == 3500
    one = client(node, token=signed(sub="42"))
    with pytest.raises(centrifuge.CentrifugeError):
        await one.subscribe("closed:2", token=signed(sub="43", channel="closed:2"))
    assert one.events.ended == [3500]


async def test_a_client_renews_its_tokens(nodes: Callable[..., Cluster], client: Callable[..., Client]) -> None:
    (node,) = nodes(1, jwt_leeway_seconds=30)
    asked: list[str] = []

    async def token(*_: Any) -> str:
        asked.append("connection")
        return signed(3600 if len(asked) > 1 else 2, sub="42")

    async def topic_token(*_: Any) -> str:
        asked.append("subscription")
        return signed(3600 if asked.count("subscription") > 1 else 2, sub="42", channel="closed:1")

    one = client(node, get_token=token)
    await one.subscribe("closed:1", get_token=topic_token)
    await eventually(lambda: asked.count("connection") > 1 and asked.count("subscription") > 1, SECONDS)
    await one.client.publish("closed:1", one.data(1))
    await eventually(lambda: one.events.data == [1], SECONDS)
    assert len(one.events.subscribed) == 1 and not one.events.ended


async def test_a_snapshot_comes_with_the_subscription(
    nodes: Callable[..., Cluster], client: Callable[..., Client]
) -> None:
    (node,) = nodes(1)
    one = client(node)
    topic = await one.subscribe("value:1")
    await topic.publish(one.data({"n": 1}))
    await eventually(lambda: one.events.data == [{"n": 1}], SECONDS)
    later = client(node)
    await later.subscribe("value:1")
    await eventually(lambda: later.events.data == [{"n": 1}], SECONDS)


async def test_what_is_trimmed_is_not_recovered(nodes: Callable[..., Cluster], client: Callable[..., Client]) -> None:
    (node,) = nodes(1)
    one, other = client(node), client(node)
    topic = await one.subscribe("short:1")
    await topic.publish(one.data(0))
    await topic.unsubscribe()
    await other.client.connect()
    for value in range(5):
        await other.client.publish("short:1", other.data(value))
    await topic.subscribe()
    await eventually(lambda: len(one.events.subscribed) == 2, SECONDS)
    assert one.events.subscribed[1].was_recovering and not one.events.subscribed[1].recovered
    assert one.events.subscribed[1].stream_position.offset == 6


async def test_lost_messages_end_the_subscription_and_it_comes_back(
    nodes: Callable[..., Cluster], client: Callable[..., Client]
) -> None:
    cluster = nodes(1)
    one = client(cluster[0])
    topic = await one.subscribe("chat")
    await topic.publish(one.data(1))
    await eventually(lambda: one.events.data == [1], SECONDS)
    cluster.redis.flush()
    await topic.publish(one.data(2))
    await eventually(lambda: len(one.events.subscribed) > 1, SECONDS)  # after an unsubscribe of the node, code 2500
    assert one.events.subscribed[-1].was_recovering and not one.events.subscribed[-1].recovered
    await topic.publish(one.data(3))
    await eventually(lambda: one.events.data[-1] == 3, SECONDS)


async def test_nothing_is_lost_when_a_node_is_killed(
    nodes: Callable[..., Cluster], client: Callable[..., Client], haproxy: Callable[..., LoadBalancer]
) -> None:
    cluster = nodes(2)
    one = client(haproxy(cluster.nodes))
    await one.subscribe("chat")
    victim, other = sorted(cluster, key=lambda node: node.metric("gateway_connections"), reverse=True)
    publisher = client(other)
    await publisher.client.connect()
    for value in range(50):
        if value == 20:
            victim.kill()
        await publisher.client.publish("chat", publisher.data(value))
    await eventually(lambda: len(one.events.data) == 50, 60)
    assert one.events.data == list(range(50))
    assert one.events.subscribed[-1].recovered


async def test_a_subscription_to_an_empty_topic_recovers_after_its_first_messages_are_trimmed(
    nodes: Callable[..., Cluster], client: Callable[..., Client], haproxy: Callable[..., LoadBalancer]
) -> None:
    cluster = nodes(2)
    one = client(haproxy(cluster.nodes))
    await one.subscribe("short:1")  # its history has two messages
    victim, other = sorted(cluster, key=lambda node: node.metric("gateway_connections"), reverse=True)
    publisher = client(other)
    await publisher.client.connect()
    for value in range(40):
        await publisher.client.publish("short:1", publisher.data(value))
    await eventually(lambda: one.events.data == list(range(40)), SECONDS)
    victim.kill()
    await publisher.client.publish("short:1", publisher.data(40))
    await eventually(lambda: len(one.events.subscribed) == 2, 60)
    assert one.events.subscribed[1].recovered
    await eventually(lambda: one.events.data == list(range(41)), SECONDS)


async def test_many_commands_in_one_frame(nodes: Callable[..., Cluster]) -> None:
    (node,) = nodes(1)
    url = node.ws.removesuffix("/ws") + "/connection/websocket"
    async with websockets.connect(url, subprotocols=[websockets.Subprotocol("centrifuge-json")]) as socket:
        assert socket.subprotocol == "centrifuge-json"
        commands: list[dict[str, Any]] = [{"id": 1, "connect": {"token": signed(sub="42", channels=["mine"])}}]
        commands += [{"id": 2 + at, "subscribe": {"channel": f"plain:{at}"}} for at in range(20)]
        await socket.send(b"\n".join(map(orjson.dumps, commands)).decode())
        replies: list[dict[str, Any]] = []
        while len(replies) < len(commands):
            reply = orjson.loads(await asyncio.wait_for(socket.recv(), SECONDS))
            if "push" not in reply:  # the client's own join of "mine" comes at any time
                replies.append(reply)
    assert [reply["id"] for reply in replies] == list(range(1, 22))
    assert replies[0]["connect"]["subs"].keys() == {"mine"}
    assert all(reply["subscribe"] == {} for reply in replies[1:])


async def test_it_is_off_unless_it_is_wanted(plain: Cluster) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(plain[0].ws.removesuffix("/ws") + "/connection/websocket")
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"id":1,"subscribe":{"channel":"a"}}', '{"id":1,"connect":{}}\n{"id":2,"connect":{}}']
)
async def test_bad_frames_end_the_connection(nodes: Callable[..., Cluster], text: str) -> None:
    (node,) = nodes(1)
    async with websockets.connect(node.ws.removesuffix("/ws") + "/connection/websocket") as socket:
        await socket.send(text)
        await asyncio.wait_for(socket.wait_closed(), SECONDS)
        assert socket.close_code == 3501 and socket.close_reason


async def test_a_client_that_only_listens(nodes: Callable[..., Cluster], client: Callable[..., Client]) -> None:
    (node,) = nodes(1)
    publisher = client(node)
    await publisher.client.connect()
    root = node.ws.removesuffix("/ws") + "/connection/uni_websocket"
    async with websockets.connect(root) as socket:
        await socket.send(orjson.dumps({"token": signed(sub="42"), "subs": {"plain:1": {}}}).decode())
        connected = orjson.loads(await asyncio.wait_for(socket.recv(), SECONDS))
        assert connected["connect"]["subs"] == {"plain:1": {}}
        await publisher.client.publish("plain:1", publisher.data({"n": 1}))
        push = orjson.loads(await asyncio.wait_for(socket.recv(), SECONDS))
        sender = {"client": publisher.client.client_id}
        assert push == {"channel": "plain:1", "pub": {"data": {"n": 1}, "info": sender}}
        await socket.send("{}")
        await asyncio.wait_for(socket.wait_closed(), SECONDS)
        assert socket.close_code == 3501


@pytest.mark.parametrize("kind", ["http_stream", "sse", "uni_http_stream", "uni_sse"])
async def test_streams_over_http(nodes: Callable[..., Cluster], kind: str) -> None:
    one, other = nodes(2)
    connect: dict[str, Any] = {"subs": {"plain:1": {}}} if kind.startswith("uni_") else {"id": 1, "connect": {}}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=SECONDS, trust_env=False))
        streaming = http.stream("POST", f"{one.url}/connection/{kind}", content=orjson.dumps(connect))
        response = await stack.enter_async_context(streaming)
        assert response.status_code == 200
        lines = (line.removeprefix("data: ") async for line in response.aiter_lines() if line.strip())
        connected = orjson.loads(await anext(lines))["connect"]
        emulated = {"session": connected.get("session", ""), "node": connected.get("node", "")}
        if not kind.startswith("uni_"):
            commands = [
                {"id": 2, "subscribe": {"channel": "plain:1"}},
                {"id": 3, "publish": {"channel": "plain:1", "data": 1}},
            ]
            emulated["data"] = b"\n".join(map(orjson.dumps, commands)).decode()
            answer = await http.post(f"{other.url}/emulation", content=orjson.dumps(emulated))
            assert answer.status_code == 204
            assert orjson.loads(await anext(lines)) == {"id": 2, "subscribe": {}}
            rest = [orjson.loads(await anext(lines)) for _ in range(2)]
            pub = {"data": 1, "info": {"client": connected["client"]}}
            assert {"id": 3, "publish": {}} in rest and {"push": {"channel": "plain:1", "pub": pub}} in rest
        else:
            assert connected["subs"] == {"plain:1": {}}


@pytest.mark.parametrize("kind", ["uni_http_stream", "uni_sse"])
async def test_a_refused_client_that_only_listens_gets_a_status(nodes: Callable[..., Cluster], kind: str) -> None:
    (node,) = nodes(1)
    refused = [
        (b'{"token":"wrong"}', 401), (orjson.dumps({"token": signed(-60, sub="42")}), 401), (b"[]", 400), (b"{", 400),
        (b'{"subs":{"closed:1":{}}}', 400), (b"", 400),
    ]  # fmt: skip
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as http:
        for body, status in refused:
            answer = await http.post(f"{node.url}/connection/{kind}", content=body)
            assert answer.status_code == status, (body, answer.text)
    await eventually(lambda: node.metric("gateway_connections") == 0, SECONDS)


async def test_connections_are_counted_by_protocol(
    nodes: Callable[..., Cluster], client: Callable[..., Client], connect: Connect
) -> None:
    (node,) = nodes(1)
    one, _ = client(node), await connect(node, user="ann")
    await one.subscribe("chat")
    name = "centrifuge-protobuf" if one.protobuf else "centrifuge-json"
    for protocol in (name, "native"):
        assert node.metric("gateway_protocol_connections", protocol=protocol) == 1
    await one.client.disconnect()
    await eventually(lambda: node.metric("gateway_protocol_connections", protocol=name) == 0, SECONDS)


async def test_a_client_that_misses_too_much_is_told(
    nodes: Callable[..., Cluster], client: Callable[..., Client]
) -> None:
    (node,) = nodes(1)
    one, other = client(node), client(node)
    topic = await one.subscribe("chat")
    await topic.publish(one.data(0))
    await other.client.connect()
    for count, (size, recovered) in enumerate(((200_000, True), (900_000, True), (600_000, False)), 2):
        await topic.unsubscribe()
        for _ in range(1 if size > 800_000 else 2):
            await other.client.publish("chat", other.data("x" * size))
        await topic.subscribe()
        await eventually(lambda count=count: len(one.events.subscribed) == count, SECONDS)  # type: ignore[misc]
        assert one.events.subscribed[-1].was_recovering and one.events.subscribed[-1].recovered is recovered
    assert one.events.subscribed[-1].stream_position.offset == 6


async def test_emulation_refuses_what_is_malformed(nodes: Callable[..., Cluster]) -> None:
    (node,) = nodes(1)
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as http:
        for body, status in ((b"{", 400), (b"{}", 400), (b'{"session":"x","data":""}', 400)):
            assert (await http.post(f"{node.url}/emulation", content=body)).status_code == status
        gone = orjson.dumps({"session": "n9.00000000.1." + "0" * 32, "node": "n9.00000000", "data": "{}"})
        assert (await http.post(f"{node.url}/emulation", content=gone)).status_code == 404
        allowed = await http.options(f"{node.url}/emulation", headers={"origin": node.url})
        assert allowed.status_code == 204 and allowed.headers["access-control-max-age"] == "300"
        assert (await http.options(f"{node.url}/emulation", headers={"origin": "https://x.example"})).status_code == 403
