"""gateway.http.centrifugo_api: each method, on a Redis in memory."""

from __future__ import annotations

import base64
import hashlib
from types import SimpleNamespace
from typing import Any, cast

import httpx
import orjson
import pytest
from starlette.applications import Starlette

from gateway.auth.api_keys import ALL_SCOPES, ApiKey, ApiKeys
from gateway.broker.history import History
from gateway.core import topic_rules
from gateway.core.presence_set import Member, PresenceSet
from gateway.delivery.presence import PresenceTracker
from gateway.delivery.publisher import MessagePublisher
from gateway.delivery.topic_queries import TopicQueries
from gateway.http.centrifugo_api.router import MAX_COMMANDS, ROUTES
from gateway.http.centrifugo_api.wire import STATUS, ErrorCode
from gateway.settings import Settings
from tests.unit.delivery.test_publisher import KEYS
from tests.unit.memory_redis import MemoryRedis

RULES = """
[[topic]]
pattern = "kept*"
history = 10
presence = true
"""
ANN, AGAIN, ANONYMOUS = Member("n.a.1", "ann", b'{"name":"Ann"}'), Member("n.a.2", "ann"), Member("n.a.3", None)


def key(name: str, *scopes: str) -> ApiKey:
    return ApiKey(name, hashlib.sha256(name.encode()).digest(), scopes)


class Presence:
    """The presence set of each topic: three clients on `kept`."""

    async def members(self, topic: str) -> PresenceSet:
        presence_set = PresenceSet(0)
        presence_set.prime([ANN, AGAIN, ANONYMOUS] if topic == "kept" else [])
        return presence_set


class At:
    """The API of a node, and what it has ordered."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        rules = topic_rules.parse(RULES, "rules")
        self.orders: list[dict[str, Any]] = []
        self.next: str | None = None  # of the page of topics

        async def order(op: str, **about: Any) -> None:
            self.orders.append({"op": op, **about})

        async def client(client_id: str) -> dict[str, Any] | None:
            return {"id": client_id, "user": "ann"} if client_id == "n.a.1" else None

        async def nodes() -> list[dict[str, Any]]:
            return [{"id": "n.a", "name": "n", "version": "1", "clients": 3, "topics": 2, "started": "x"}]

        async def topics(_limit: int) -> dict[str, Any]:
            rows = [{"topic": name, "subscribers": 2} for name in ("kept", "other")]
            return {"topics": rows, "next": self.next}

        history = History(self.redis.client, KEYS, lambda: 1_700_000_000.0)
        app = Starlette(routes=ROUTES)
        app.state.node = SimpleNamespace(
            api_keys=ApiKeys([key("all", *ALL_SCOPES), key("reads", "read"), key("says", "publish:a*")]),
            publisher=MessagePublisher(
                self.redis.client, KEYS, rules, self.redis.metrics, max_message_bytes=100_000,
                now=lambda: 1_700_000_000.0,
            ),
            settings=Settings(), rules=rules, history=history,
            topic_queries=TopicQueries(history, cast(PresenceTracker, Presence()), lambda _topic: []),
            registry=SimpleNamespace(client=client, nodes=nodes, listings=SimpleNamespace(topics=topics)),
            control_publisher=SimpleNamespace(broadcast=order), seconds_since=lambda _: 7.5,
        )  # fmt: skip
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node")

    async def post(self, path: str, body: Any, with_key: str = "all", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = {"x-api-key": with_key, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self.http.post(path, content=content, headers={k: v for k, v in sent.items() if v})

    async def call(self, method: str, with_key: str = "all", /, **params: Any) -> Any:
        """The result of a command."""
        answer = await self.post(f"/api/{method}", params, with_key)
        assert answer.status_code == 200, answer.text
        content = answer.json()
        assert list(content) == (["replies"] if method == "batch" else ["result"]), content
        return content if method == "batch" else content["result"]

    async def refused(self, method: str, with_key: str = "all", /, **params: Any) -> int:
        """The code of the error of a command, whose status is that of its code in the other mode."""
        answer = await self.post(f"/api/{method}", params, with_key)
        assert answer.status_code == 200
        code = int(answer.json()["error"]["code"])
        other = await self.post(f"/api/{method}", params, with_key, x_centrifugo_error_mode="transport")
        assert (other.status_code, other.json()["error"]["code"]) == (STATUS[ErrorCode(code)], code)
        return code


async def test_a_publish_gives_the_position_on_a_topic_with_history_and_nothing_elsewhere() -> None:
    at = At()
    assert await at.call("publish", channel="plain", data={"a": 1}, tags={"x": "y", "action": "A"}) == {}
    first = await at.call("publish", channel="kept", data=1, idempotency_key="some key / of theirs")
    assert first.keys() == {"offset", "epoch"} and first["offset"] == 1
    assert await at.call("publish", channel="kept", data=1, idempotency_key="some key / of theirs") == first
    encoded = base64.b64encode(b'{"b":2}').decode()
    assert (await at.call("publish", channel="kept", b64data=encoded))["offset"] == 2
    assert await at.call("publish", "says", channel="ab", data=1, skip_history=True) == {}


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"channel": "a b", "data": 1}, 107), ({"data": 1}, 107), ({"channel": "a"}, 107),
        ({"channel": "a", "data": None}, 107), ({"channel": "a", "b64data": "!"}, 107),
        ({"channel": "a", "b64data": base64.b64encode(b"x").decode()}, 107),
        ({"channel": "system", "data": 1}, 103), ({"channel": "a", "data": 1, "tags": 7}, 107),
        ({"channel": "kept", "data": 1, "skip_history": True}, 108), ({"channel": "a", "data": 1, "version": 3}, 108),
        ({"channel": "a", "data": "x" * 100_000}, 106), ({"channel": "a", "data": 1, "idempotency_key": 7}, 107),
    ],
)  # fmt: skip
async def test_a_bad_publish_is_refused(params: dict[str, Any], code: int) -> None:
    at = At()
    assert await at.refused("publish", **params) == code
    assert at.redis.published == []


async def test_a_broadcast_answers_for_each_channel() -> None:
    at = At()
    responses = (await at.call("broadcast", channels=["kept", "a b", "plain", "system", "kept"], data=7))["responses"]
    assert responses[0]["result"]["offset"] == 1
    assert responses[2] == {"result": {}}
    assert [response.get("error", {}).get("code") for response in responses] == [None, 107, None, 103, 107]
    assert len(at.redis.published) == 2
    assert await at.refused("broadcast", channels=[], data=1) == 107
    assert await at.refused("broadcast", channels=["a"] * 1001, data=1) == 107


@pytest.mark.parametrize(
    ("method", "params", "order"),
    [
        ("subscribe", {"user": "ann", "channel": "a"}, {"op": "subscribe", "user": "ann", "topics": ["a"]}),
        ("subscribe", {"user": "ann", "client": "n.a.1", "channel": "a"},
         {"op": "subscribe", "client": "n.a.1", "topics": ["a"]}),
        ("unsubscribe", {"user": "ann", "channel": "a"}, {"op": "unsubscribe", "user": "ann", "topics": ["a"]}),
        ("disconnect", {"user": "ann"}, {"op": "disconnect", "user": "ann"}),
        ("disconnect", {"user": "ann", "disconnect": {"code": 0, "reason": "spam"}},
         {"op": "disconnect", "user": "ann", "reason": "spam"}),
        ("refresh", {"user": "ann", "expired": True}, {"op": "expire", "user": "ann", "expires": 1}),
        ("refresh", {"user": "ann", "expire_at": 1_800_000_000},
         {"op": "expire", "user": "ann", "expires": 1_800_000_000}),
        ("refresh", {"user": "ann"}, {"op": "expire", "user": "ann", "expires": None}),
    ],
)  # fmt: skip
async def test_orders_go_to_the_nodes(method: str, params: dict[str, Any], order: dict[str, Any]) -> None:
    at = At()
    assert await at.call(method, **params) == {}
    assert at.orders == [order]


async def test_an_order_for_a_client_of_another_user_has_no_effect() -> None:
    at = At()
    for client in ("n.a.1", "{no id}"):
        assert await at.call("disconnect", user="bob", client=client) == {}
    assert at.orders == []


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("subscribe", {"channel": "a"}, 107), ("subscribe", {"user": "u", "channel": "system"}, 103),
        ("subscribe", {"user": "u", "channel": "a", "expire_at": 7}, 108), ("disconnect", {"user": ["u"]}, 107),
        ("disconnect", {"user": "u", "whitelist": "x"}, 107), ("disconnect", {"user": "u", "whitelist": [1]}, 107),
        ("disconnect", {"user": "u", "disconnect": {"code": 1000}}, 107), ("disconnect", {"user": "x" * 201}, 107),
        ("disconnect", {"user": "u", "disconnect": {"reason": "é" * 62}}, 107),
        ("subscribe", {"user": "u", "channel": "a", "data": "x" * 17_000}, 107),
        ("subscribe", {"user": "u", "channel": "a", "recover_since": 7}, 107),
        ("refresh", {"user": "u", "expire_at": -1}, 107), ("refresh", {"user": "u", "expired": 1}, 107),
        ("presence", {"channel": "plain"}, 108), ("history", {"channel": "plain"}, 108), ("history", {}, 107),
        ("history_remove", {"channel": "plain"}, 108), ("history", {"channel": "kept", "limit": -2}, 107),
        ("history", {"channel": "kept", "since": {"offset": -1}}, 107),
        ("history", {"channel": "kept", "since": 1}, 107),
        ("channels", {"pattern": "a b"}, 107), ("rpc", {"method": "x"}, 104), ("map_publish", {}, 104),
    ],
)  # fmt: skip
async def test_a_command_that_cannot_be_executed_is_refused(method: str, params: dict[str, Any], code: int) -> None:
    at = At()
    assert await at.refused(method, **params) == code
    assert at.orders == []


async def test_presence_lists_clients_and_counts_people() -> None:
    at = At()
    assert await at.call("presence", "reads", channel="kept") == {
        "presence": {
            "n.a.1": {"client": "n.a.1", "user": "ann", "conn_info": {"name": "Ann"}},
            "n.a.2": {"client": "n.a.2", "user": "ann"},
            "n.a.3": {"client": "n.a.3", "user": ""},
        }
    }
    assert await at.call("presence_stats", "reads", channel="kept") == {"num_clients": 3, "num_users": 2}
    assert await at.call("presence", channel="kept:empty") == {"presence": {}}


@pytest.mark.parametrize(
    ("params", "data"),
    [
        ({}, []), ({"limit": -1}, [1, 2, 3, 4, 5]), ({"limit": 2}, [1, 2]), ({"limit": 2, "reverse": True}, [5, 4]),
        ({"limit": 2, "since": {"offset": 2}}, [3, 4]), ({"limit": 2, "since": {"offset": 4}, "reverse": True}, [3, 2]),
        ({"limit": -1, "since": {"offset": 9}}, []), ({"limit": 9, "since": {"offset": 1}, "reverse": True}, []),
    ],
)  # fmt: skip
async def test_history_has_pages_in_both_directions(params: dict[str, Any], data: list[int]) -> None:
    at = At()
    for number in range(1, 6):
        position = await at.call("publish", channel="kept", data=number, tags={"action": "A", "x": "y"})
    found = await at.call("history", "reads", channel="kept", **params)
    assert (found["offset"], found["epoch"]) == (5, position["epoch"])
    assert [message["data"] for message in found["publications"]] == data
    assert all(message["tags"] == {"action": "A", "x": "y"} for message in found["publications"])
    since = {"offset": 1, "epoch": "another"}
    assert await at.refused("history", channel="kept", since=since) == 112
    await at.call("history_remove", channel="kept")
    assert (await at.call("history", channel="kept", limit=-1))["publications"] == []


async def test_info_and_channels_show_the_cluster() -> None:
    at = At()
    [node] = (await at.call("info"))["nodes"]
    assert (node["uid"], node["num_clients"], node["num_channels"], node["uptime"]) == ("n.a", 3, 2, 7)
    assert await at.call("channels") == {"channels": {"kept": {"num_clients": 2}, "other": {"num_clients": 2}}}
    assert list((await at.call("channels", pattern="k*"))["channels"]) == ["kept"]
    at.next = "other"
    assert await at.refused("channels") == 106


async def test_a_batch_answers_each_command_and_goes_on_after_an_error() -> None:
    at = At()
    commands: list[Any] = [{"publish": {"channel": "kept", "data": 1}}, {"rpc": {}}, {"publish": 7}, 7, {"info": {}}]
    replies = (await at.call("batch", commands=commands, parallel=True))["replies"]
    assert replies[0]["publish"]["offset"] == 1
    assert [reply.get("error", {}).get("code") for reply in replies] == [None, 104, 107, 107, None]
    assert await at.refused("batch", commands=[{"info": {}}] * (MAX_COMMANDS + 1)) == 107
    assert await at.refused("batch", commands=None) == 107
    nested = (await at.call("batch", commands=[{"batch": {"commands": []}}]))["replies"]
    assert nested[0]["error"]["code"] == 104


async def test_a_command_may_stand_in_the_body() -> None:
    at = At()
    answer = await at.post("/api", {"method": "publish", "params": {"channel": "kept", "data": 1}})
    assert answer.json()["result"]["offset"] == 1
    bodies: list[Any] = [[], {}, {"method": 7}]
    for bad in bodies:
        assert (await at.post("/api", bad)).json()["error"]["code"] == 107


@pytest.mark.parametrize(
    ("with_key", "method", "params", "allowed"),
    [
        ("reads", "presence", {"channel": "kept"}, True), ("reads", "publish", {"channel": "a", "data": 1}, False),
        ("reads", "disconnect", {"user": "u"}, False), ("reads", "history_remove", {"channel": "kept"}, False),
        ("says", "publish", {"channel": "ab", "data": 1}, True),
        ("says", "publish", {"channel": "b", "data": 1}, False),
        ("says", "info", {}, False), ("says", "subscribe", {"user": "u", "channel": "ab"}, False),
    ],
)  # fmt: skip
async def test_a_key_may_do_what_its_scopes_allow(
    with_key: str, method: str, params: dict[str, Any], allowed: bool
) -> None:
    at = At()
    if allowed:
        await at.call(method, with_key, **params)
    else:
        assert await at.refused(method, with_key, **params) == 103
        assert at.orders == []


async def test_a_request_without_a_valid_key_is_answered_401_without_a_body() -> None:
    at = At()
    for with_key, headers in (("bad", {}), ("", {}), ("", {"authorization": "apikey bad"})):
        answer = await at.post("/api/info", {}, with_key, **headers)
        assert (answer.status_code, answer.content) == (401, b"")
    assert (await at.post("/api/info?api_key=all", {}, "")).status_code == 401
    assert (await at.post("/api/info", {}, "", authorization="apikey all")).status_code == 200


async def test_paths_of_our_own_api_are_commands_only_with_a_key_of_theirs() -> None:
    at = At()
    for path in ("/api/publish", "/api/broadcast", "/api/rebalance", "/api"):
        assert (await at.post(path, {}, "", authorization="Bearer all")).status_code == 404
    assert (await at.http.get("/api/info", headers={"x-api-key": "all"})).status_code == 404


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"\x1f\x8b", 415), (b"[" * 300_000, 400)])
async def test_a_body_that_is_no_json_is_refused_with_a_status(body: bytes, status: int) -> None:
    assert (await At().post("/api/publish", body)).status_code == status
    assert (await At().post("/api/publish", b"[7]")).json()["error"]["code"] == 107


async def test_redis_away_is_an_internal_error() -> None:
    at = At()
    at.redis.away = True
    assert await at.refused("publish", channel="a", data=1) == 100


async def test_an_order_for_a_client_without_a_row_goes_to_its_node() -> None:
    at = At()
    assert await at.call("disconnect", user="bob", client="n.a.9") == {}
    assert [order["client"] for order in at.orders] == ["n.a.9"]
