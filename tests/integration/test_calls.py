"""REQUESTs and COMMANDs with real nodes and a real back end; answers to REQUESTs come through the cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import Connect
from tests.kit.backend import BackEnd
from tests.kit.client import Api, Client, Front, Message
from tests.kit.cluster import Cluster
from tests.kit.raw import RawSocket, text
from tests.kit.redis import Redis
from tests.kit.waiting import eventually
from tests.kit.web_server import Asked, BreakOff, Says, WebServer

RULES = """
[[topic]]
pattern = "contest:*"
source = "/contests/{1}"

[[topic]]
pattern = "mine"
subscribe = "user"
source = "/users/{user}"
source_seconds = 60

[[topic]]
pattern = "fleeting"
source = "/fleeting"
source_seconds = 1
source_stale_seconds = 60

[[topic]]
pattern = "secret"
subscribe = "role:admin"
source = "/secret"
"""

Start = Callable[..., Cluster]


@pytest.fixture
def rules(folder: Path) -> Path:
    """A file of topic rules, with sources."""
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


@pytest.fixture
def backend(folder: Path) -> Iterator[BackEnd]:
    """The example back end, as a process."""
    with BackEnd(folder) as process:
        yield process


@pytest.fixture
def served(cluster: Start, rules: Path, backend: BackEnd) -> Start:
    """`served(3)`: so many nodes with the example back end behind them."""

    def start(n: int, **settings: object) -> Cluster:
        values = {"topics": rules, "backend_url": backend.url, "backend_secret": BackEnd.SECRET, **settings}
        return cluster(n, **values)

    return start


@pytest.fixture
def behind(cluster: Start, rules: Path) -> Start:
    """`behind(server)`: a node with that server behind it."""

    def start(server: WebServer, n: int = 1, **settings: object) -> Cluster:
        values = {"topics": rules, "backend_url": server.url, "backend_secret": BackEnd.SECRET, **settings}
        return cluster(n, **values)

    return start


async def request(client: Client, topic: str, action: str = "show", **more: Any) -> Message:
    """A REQUEST; its answer, DATA or an ERROR."""
    return await client.call(type="REQUEST", topic=topic, action=action, **more)


async def command(client: Client, topic: str, action: str, data: Any) -> Message:
    """A COMMAND; its answer, an ACKNOWLEDGMENT or an ERROR."""
    return await client.call(type="COMMAND", topic=topic, action=action, data=data)


def slow(go: asyncio.Event) -> Callable[[Asked], Any]:
    """Answers when `go` is set."""

    async def answer(asked: Asked) -> Says:
        await go.wait()
        return Says(body=asked.target)

    return answer


async def echo(asked: Asked) -> Says:
    """Answers with what it was asked."""
    return Says(body={"target": asked.target, "said": orjson.loads(asked.body) if asked.body else None})


async def test_no_value_leads_the_gateway_elsewhere_in_the_back_end(behind: Start, connect: Connect) -> None:
    async with WebServer(echo) as server:
        (node,) = behind(server)
        ann = await connect(node, user="ann")
        for topic in (
            "contest:../internal/keys", "contest:a/b", "contest:", "contest:..", "contest:a%2Fb", "contest:%2e%2e",
            "contest:..;x", "contest:a\\b",
        ):  # fmt: skip
            refused = await request(ann, topic)
            assert (refused["type"], refused["code"]) == ("ERROR", 4007)
            assert "cannot be empty, . or .." in refused["message"]
        for user in ("../admin", "a/../b", "..%2Fadmin", "a\\b", "..", "\uff0e\uff0e"):
            assert (await request(await connect(node, user=user), "mine"))["code"] == 4007
        assert not server.asked


async def test_what_is_no_topic_is_asked_nowhere(behind: Start, connect: Connect) -> None:
    async with WebServer(echo) as server:
        (node,) = behind(server)
        client = await connect(node, user="ann")
        for topic in ("contest:\n", "multi:" + ":" * 190 + "\n", "a b", "contest:{a}", "x" * 201):
            assert (await request(client, topic))["code"] == 4007
            assert (await client.call(type="COMMAND", topic=topic, action="a"))["code"] == 4014
        assert not server.asked
        node.finish_log()
        assert not node.complaints()


# ---- with the example back end


async def test_the_example_answers_requests_and_carries_out_commands(
    served: Start, backend: BackEnd, connect: Connect
) -> None:
    nodes = served(2)
    ann, bob = await connect(nodes[0], user="ann"), await connect(nodes[1])
    answer = await request(ann, "contest:7")
    assert (answer["type"], answer["topic"], answer["action"]) == ("DATA", "contest:7", "show")
    assert answer["data"] == {"id": "7", "leader": "ann", "asked": 1}
    assert answer["requestId"] == "r1"
    assert (await request(bob, "contest:7"))["data"]["asked"] == 1, "from the cache, on any node"
    assert (await request(bob, "contest:8"))["data"]["asked"] == 2
    done = await command(ann, "contest-chat", "SEND_MESSAGE", {"text": "hi"})
    assert (done["type"], done["operation"], done["status"]) == ("ACKNOWLEDGMENT", "command", "success")
    assert (done["topic"], done["action"], done["requestId"]) == ("contest-chat", "SEND_MESSAGE", "r2")
    assert done["data"] == {"id": 3, "from": "ann", "text": "hi"}
    refused = await command(ann, "contest-chat", "SEND_MESSAGE", {})
    assert (refused["type"], refused["code"], refused["message"]) == ("ERROR", 4016, "text is missing")
    assert refused["inReplyTo"] == "r3" and "requestId" not in refused
    unknown = await command(ann, "contest-chat", "FLY", {})
    assert (unknown["code"], unknown["message"]) == (5001, "there is no such command")


async def test_clients_get_5000_if_the_back_end_rejects_the_secret(served: Start, connect: Connect) -> None:
    nodes = served(1, backend_secret="another secret, which the back end does not know")
    ann = await connect(nodes[0], user="ann")
    for answer in (await command(ann, "a", "B", {}), await request(ann, "contest:7")):
        assert (answer["code"], answer["message"]) == (5000, "The back end does not accept this gateway")
    assert nodes[0].metric("gateway_backend_open") == 0


async def test_five_hundred_clients_of_three_nodes_cost_the_back_end_one_request(
    served: Start, backend: BackEnd, connect: Connect
) -> None:
    nodes = served(3)
    clients = await asyncio.gather(*(connect(nodes[at % 3]) for at in range(500)))
    answers = await asyncio.gather(*(request(client, "contest:7") for client in clients))
    assert {orjson.dumps(answer["data"]) for answer in answers} == {b'{"id":"7","leader":"ann","asked":1}'}
    assert backend.requests("GET", "/contests/7") == 1
    assert sum(node.metric("gateway_cache_loads_total") for node in nodes) == 1


async def test_clients_get_an_error_while_the_back_end_is_down_and_answers_after_it(
    served: Start, backend: BackEnd, connect: Connect
) -> None:
    nodes = served(1, backend_timeout_seconds=1)
    ann = await connect(nodes[0], user="ann")
    backend.kill()
    for _ in range(7):
        refused = await command(ann, "contest-chat", "SEND_MESSAGE", {"text": "hi"})
        assert (refused["code"], refused["temporary"]) == (5030, True)
        assert "reason" not in refused, "it cannot have been done"
    assert nodes[0].metric("gateway_backend_open") == 1
    assert nodes[0].ready(), "another node would have no better back end"
    backend.start()

    async def done() -> bool:
        answer = await command(ann, "contest-chat", "SEND_MESSAGE", {"text": "hi"})
        return bool(answer["type"] == "ACKNOWLEDGMENT")

    await eventually(done, 15)


async def test_a_frozen_back_end_has_a_deadline_and_holds_up_nothing_else(
    served: Start, backend: BackEnd, connect: Connect
) -> None:
    nodes = served(1, backend_timeout_seconds=2)
    ann = await connect(nodes[0], user="ann")
    backend.freeze()
    try:
        await ann.send(type="COMMAND", topic="contest-chat", action="SEND_MESSAGE", data={"text": "hi"})
        await ann.send(type="ping", timestamp=1)
        refused = await ann.hear(type="ERROR", code=5030)
        assert refused["reason"] == "outcome_unknown"
        pong = ann.received(type="pong")
        assert pong and ann.messages.index(pong[0]) < ann.messages.index(refused)
    finally:
        backend.thaw()


# ---- with a server that does what the test says


async def test_the_back_end_gets_the_verified_identity_not_the_clients_claim(behind: Start, connect: Connect) -> None:
    async with WebServer(echo) as server:
        node = behind(server)[0]
        ann = await connect(node, user="ann", role="admin")
        await ann.send(
            type="COMMAND", topic="t", action="A", data={"user": "eve"}, user="eve", role="superadmin", requestId="x",
            client={"id": "other"},
        )  # fmt: skip
        answer = await ann.hear(type="ACKNOWLEDGMENT", operation="command")
        said = answer["data"]["said"]
        node_id = said.pop("node")
        assert said == {
            "topic": "t", "action": "A", "data": {"user": "eve"}, "requestId": "x", "user": "ann", "role": "admin",
            "client": {"id": ann.id, "ip": "127.0.0.1"},
        }  # fmt: skip
        assert ann.id.startswith(node_id)
        answer = await request(ann, "mine", data={"user": "eve"}, role="superadmin")
        assert answer["data"]["target"] == "/users/ann?action=show&role=superadmin&user=eve"


async def test_an_answer_is_kept_for_each_user_where_the_rule_names_the_user(behind: Start, connect: Connect) -> None:
    async with WebServer(echo) as server:
        node = behind(server)[0]
        ann, bob = await connect(node, user="ann"), await connect(node, user="bob@example.com")
        for _ in range(2):
            assert (await request(ann, "mine"))["data"]["target"] == "/users/ann?action=show"
            assert (await request(bob, "mine"))["data"]["target"] == "/users/bob%40example.com?action=show"
        assert len(server.asked) == 2


async def test_a_request_needs_the_permission_to_subscribe(behind: Start, connect: Connect) -> None:
    async with WebServer(echo) as server:
        node = behind(server)[0]
        anybody, ann = await connect(node), await connect(node, user="ann")
        refused = await request(anybody, "mine")
        assert (refused["code"], refused["requestId"]) == (4010, "r1")
        assert (await request(ann, "secret"))["code"] == 4012
        assert (await command(anybody, "t", "A", {}))["code"] == 4013
        assert (await request(anybody, "nowhere"))["code"] == 4007
        assert (await request(anybody, "contest:.."))["code"] == 4007
        assert server.asked == []


@pytest.mark.parametrize(
    ("status", "code", "temporary"),
    [(400, 4016, None), (404, 4016, None), (409, 4016, None), (403, 4403, None), (429, 4029, True), (501, 5001, None),
     (401, 5000, True), (302, 5000, True), (500, 5030, True), (503, 5030, True)],
)  # fmt: skip
async def test_refusals_have_codes(
    behind: Start, connect: Connect, status: int, code: int, temporary: bool | None
) -> None:
    async def refusing(_asked: Asked) -> Says:
        return Says(status, {"error": {"code": "x", "message": "so not"}})

    async with WebServer(refusing) as server:
        ann = await connect(behind(server)[0], user="ann")
        for answer in (await request(ann, "contest:1"), await command(ann, "t", "A", {})):
            assert (answer["type"], answer["code"], answer.get("temporary")) == ("ERROR", code, temporary)
            assert "requestId" not in answer and answer["inReplyTo"]
            assert answer["message"] == "so not" or status in (401, 302, 500, 503)


async def test_how_long_an_answer_serves(behind: Start, connect: Connect) -> None:
    said: list[tuple[str, ...]] = [("cache-control: no-store",), ("cache-control: no-store",), ()]

    async def saying(_asked: Asked) -> Says:
        return Says(body=len(said), headers=said.pop(0))

    async with WebServer(saying) as server:
        node = behind(server)[0]
        client = await connect(node)
        answers = [(await request(client, "contest:1"))["data"] for _ in range(4)]
        assert answers == [3, 2, 1, 1], "the back end says it, or else the rule"


async def test_a_refusal_is_asked_again_unless_the_back_end_lets_it_be_cached(behind: Start, connect: Connect) -> None:
    headers: tuple[str, ...] = ()

    async def refusing(_asked: Asked) -> Says:
        return Says(404, {"error": {"message": "none"}}, headers)

    async with WebServer(refusing) as server:
        client = await connect(behind(server)[0])
        for _ in range(2):
            assert (await request(client, "contest:1"))["message"] == "none"
        assert len(server.asked) == 2
        headers = ("cache-control: max-age=60",)
        for _ in range(3):
            assert (await request(client, "contest:1"))["message"] == "none"
        assert len(server.asked) == 3


async def test_a_stale_answer_serves_while_the_back_end_is_away(behind: Start, connect: Connect) -> None:
    async with WebServer(echo) as server:
        client = await connect(behind(server)[0])
        first = await request(client, "fleeting")
        assert first["type"] == "DATA"
        await server.stop()
        ends = time.monotonic() + 2.5
        while time.monotonic() < ends:
            answer = await request(client, "fleeting")
            assert answer.get("data") == first["data"], answer
            await asyncio.sleep(0.05)  # a client's messages have a rate
        await server.start()


async def test_commands_of_one_client_are_carried_out_in_order_and_requests_see_them(
    behind: Start, connect: Connect
) -> None:
    async def tardy(asked: Asked) -> Says:
        await asyncio.sleep(0.01 * (len(server.asked) % 3))
        return Says(body=1)

    async with WebServer(tardy) as server:
        ann = await connect(behind(server)[0], user="ann")
        for at in range(20):
            await ann.send(type="COMMAND", topic="t", action="A", data=at, requestId=f"c{at}")
        await ann.send(type="REQUEST", topic="contest:1", action="show", requestId="q")
        await ann.hear(type="DATA", requestId="q")
        posted = [orjson.loads(asked.body)["data"] for asked in server.asked if asked.method == "POST"]
        assert posted == list(range(20))
        assert [asked.method for asked in server.asked] == ["POST"] * 20 + ["GET"]
        assert server.most_at_once == 1


async def test_requests_of_one_client_are_under_way_together_up_to_a_limit(behind: Start, connect: Connect) -> None:
    go = asyncio.Event()
    async with WebServer(slow(go)) as server:
        node = behind(server)[0]
        client = await connect(node)
        for at in range(30):
            await client.send(type="REQUEST", topic=f"contest:{at}", action="show", requestId=f"q{at}")
        await client.send(type="ping", timestamp=1)
        await eventually(lambda: server.at_once == 8)
        other = await connect(node)
        assert (await other.ask(type="ping", timestamp=2))["type"] == "pong", "other clients do not wait"
        assert not client.received(type="pong"), "its own next frames do"
        go.set()
        await client.hear(type="pong")
        for at in range(30):
            await client.hear(type="DATA", requestId=f"q{at}")
        assert server.most_at_once == 8


async def test_a_client_that_left_leaves_nothing(behind: Start, connect: Connect) -> None:
    go = asyncio.Event()
    async with WebServer(slow(go)) as server:
        node = behind(server)[0]
        client = await connect(node, user="ann")
        for at in range(12):
            await client.send(type="COMMAND", topic="t", action="A", data=at)
        await eventually(lambda: server.at_once == 1)
        await client.leave()
        go.set()
        await eventually(lambda: len(server.asked) >= 8)
        another = await connect(node, user="ann")
        assert (await command(another, "t", "A", 1))["type"] == "ACKNOWLEDGMENT"


async def test_without_redis_the_back_end_answers_still(behind: Start, redis: Redis, connect: Connect) -> None:
    async with WebServer(echo) as server:
        node = behind(server)[0]
        ann = await connect(node, user="ann")
        redis.stop()
        assert (await request(ann, "contest:1"))["type"] == "DATA"
        assert (await command(ann, "t", "A", 1))["type"] == "ACKNOWLEDGMENT"
        redis.start()


async def test_a_broken_off_command_may_have_been_done_and_a_request_is_asked_again(
    behind: Start, connect: Connect
) -> None:
    async def breaking_off(_asked: Asked) -> Says:
        raise BreakOff

    async with WebServer(breaking_off) as server:
        ann = await connect(behind(server)[0], user="ann")
        refused = await command(ann, "t", "A", 1)
        assert (refused["code"], refused["reason"]) == (5030, "outcome_unknown")
        assert len(server.asked) == 1
        refused = await request(ann, "contest:1")
        assert refused["code"] == 5030 and "reason" not in refused
        assert len(server.asked) == 3


async def test_a_request_without_a_back_end_gets_an_error(cluster: Start, rules: Path, connect: Connect) -> None:
    ann = await connect(cluster(1, topics=rules)[0], user="ann")
    assert (await request(ann, "contest:1"))["code"] == 5001
    assert (await command(ann, "t", "A", 1))["code"] == 5001


async def test_the_answers_can_be_cleared_by_where_they_came_from(
    behind: Start, connect: Connect, api: Callable[[Front], Api]
) -> None:
    async with WebServer(echo) as server:
        node = behind(server)[0]
        client = await connect(node)
        for _ in range(2):
            await request(client, "contest:1")
        answer = await api(node).http.delete("/api/cache", params={"prefix": "source:/contests/1"})
        assert answer.json() == {"cleared": 1}
        await request(client, "contest:1")
        assert len(server.asked) == 2


async def test_large_integers_of_an_answer_reach_clients_unchanged_fresh_and_cached(behind: Start) -> None:
    async def saying(_asked: Asked) -> Says:
        return Says(text=b'{"wei":100000000000000000001}')

    async with WebServer(saying) as server:
        [node] = behind(server, open=1)
        socket = await RawSocket.open(node)
        await socket.message()
        asking = {"topic": "contest:7", "action": "show"}
        for asked in (asking | {"type": "REQUEST"}, asking | {"type": "REQUEST"}, asking | {"type": "COMMAND"}):
            socket.write(text(asked))
            _, answer = await socket.frame()
            assert b'"data":{"wei":100000000000000000001}' in answer
        await socket.close()
        assert len(server.asked) == 2, "the second request is answered from the cache"


async def test_answers_are_not_kept_while_redis_is_nearly_full(behind: Start, connect: Connect) -> None:
    async def saying(_asked: Asked) -> Says:
        return Says(body=len(server.asked))

    async with WebServer(saying) as server:
        [node] = behind(server, redis_memory_bytes=1000)
        await eventually(lambda: node.metric("gateway_redis_used_bytes") > 0)
        client = await connect(node)
        answers = [await client.call(type="REQUEST", topic="contest:7", action="show") for _ in range(3)]
    assert [answer["data"] for answer in answers] == [1, 2, 3]
