"""Tokens, permissions, revocations and keys of the API through real nodes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import tokens
from gateway.auth import api_keys
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY, JWT_SECRET, Node, token
from tests.kit.process import ROOT, Process, clean_environment, free_port
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

Start = Callable[..., Cluster]
Of = Callable[[Front], Api]

RULES = """
[[topic]]
pattern = "asked:*"
subscribe = "ask"
publish = "ask"
[[topic]]
pattern = "ticket:*"
subscribe = "token"
[[topic]]
pattern = "wallet-balance:*"
subscribe = "owner"
[[topic]]
pattern = "staff"
subscribe = "role:admin"
"""


@pytest.fixture
def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


def signed(key: Any = JWT_SECRET, algorithm: str = "HS256", kid: str | None = None, **claims: Any) -> str:
    now = int(time.time())
    about = {"sub": "ann", "iat": now, "exp": now + 3600, **claims}
    return jwt.encode(about, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def topic_token(*topics: str, user: str | None = None, seconds: float = 3600, **claims: Any) -> str:
    return tokens.issue_for_topics(JWT_SECRET, topics, user, seconds, **claims)


# ---- the end of a token


async def test_a_client_is_warned_before_its_token_expires_and_auth_renews_it_without_loss(
    cluster: Start, connect: Connect, api: Of
) -> None:
    [node] = cluster(1, jwt_leeway_seconds=1)
    client, lazy = await connect(node), await connect(node)
    for one in (client, lazy):
        assert (await one.authenticate("ann", seconds=4))["status"] == "success"
        await one.subscribe("portfolio")
    sent = await client.hear(type="SYSTEM", action="token_expiring")
    assert 0 <= _seconds(sent["data"]["expires"]) - time.time() <= 5
    assert (await client.ask(type="AUTH", authToken=token("ann")))["operation"] == "authenticate"
    assert await lazy.closed(within=15) == 3005
    await api(node).publish("portfolio", 7)
    assert (await client.hear(type="DATA"))["data"] == 7
    assert len(client.received(action="token_expiring")) == 1


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


async def test_another_user_loses_what_only_the_first_may_hear(
    cluster: Start, connect: Connect, api: Of, rules: Path
) -> None:
    [node] = cluster(1, topics=rules)
    client = await connect(node)
    await client.authenticate("root", "admin")
    assert (await client.subscribe("staff", "wallet-balance:root", "open"))["status"] == "success"
    await client.authenticate("ann")
    taken = await client.hear(type="SYSTEM", action="unsubscribed")
    assert sorted(taken["data"]["topics"]) == ["staff", "wallet-balance:root"]
    await api(node).publish_all([{"topic": topic, "data": topic} for topic in ("staff", "wallet-balance:root", "open")])
    assert (await client.hear(type="DATA"))["data"] == "open"
    assert client.data() == ["open"]


# ---- topics


async def test_only_its_owner_may_subscribe_to_a_wallet(cluster: Start, connect: Connect, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    ann, bob = await connect(node, user="ann"), await connect(node, user="bob")
    assert (await ann.subscribe("wallet-balance:ann"))["status"] == "success"
    assert (await bob.subscribe("wallet-balance:ann"))["code"] == 4403


async def test_subscription_tokens_open_topics_until_they_end(cluster: Start, connect: Connect, rules: Path) -> None:
    [node] = cluster(1, topics=rules, jwt_leeway_seconds=0)
    client = await connect(node)
    assert (await client.subscribe("ticket:1"))["code"] == 4403
    assert (await client.subscribe("ticket:1", tokens=["rubbish"]))["code"] == 4011
    assert (await client.subscribe("ticket:1", tokens=[topic_token("ticket:1", user="ann")]))["code"] == 4403
    assert (await client.subscribe("ticket:1", tokens=[token("ann")]))["code"] == 4011
    tokens = [topic_token("ticket:1", seconds=2), topic_token("ticket:2*")]
    assert (await client.subscribe("ticket:1", "ticket:22", tokens=tokens))["topics"] == ["ticket:1", "ticket:22"]
    taken = await client.hear(type="SYSTEM", action="unsubscribed")
    assert (taken["data"]["topics"], taken["data"]["reason"]) == (["ticket:1"], "subscription token expired")
    assert (await client.ask(type="AUTH", authToken=tokens[1]))["reason"] == "token_invalid"


class _BackEnd(BaseHTTPRequestHandler):
    """Lets everybody on topics with "yes" in them; its answers hold for a minute."""

    questions: list[dict[str, Any]]

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.questions.append({"path": self.path, **question})
        body = json.dumps({"allowed": [topic for topic in question["topics"] if "yes" in topic]}).encode()
        self.send_response(200)
        self.send_header("Cache-Control", "max-age=60")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def back_end() -> Iterator[ThreadingHTTPServer]:
    _BackEnd.questions = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _BackEnd) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_the_back_end_is_asked_once_and_its_word_holds(
    cluster: Start, connect: Connect, rules: Path, back_end: ThreadingHTTPServer
) -> None:
    [node] = cluster(1, topics=rules, backend_url=f"http://127.0.0.1:{back_end.server_port}")
    clients = [await connect(node, user="ann") for _ in range(5)]
    answers = await asyncio.gather(*(client.subscribe("asked:yes1", "asked:yes2") for client in clients))
    assert [answer["topics"] for answer in answers] == [["asked:yes1", "asked:yes2"]] * 5
    assert _BackEnd.questions == [
        {
            "path": "/permissions",
            "act": "subscribe",
            "topics": ["asked:yes1", "asked:yes2"],
            "user": "ann",
            "role": "user",
        }
    ]
    assert (await clients[0].subscribe("asked:yes1", "asked:no"))["code"] == 4403
    assert _BackEnd.questions[-1]["topics"] == ["asked:no"]
    assert (await clients[0].publish("asked:yes1", 1))["operation"] == "publish"
    assert (await clients[0].publish("asked:no", 1))["code"] == 4403


async def test_without_the_back_end_permission_checks_fail_with_a_temporary_error(
    cluster: Start, connect: Connect, rules: Path
) -> None:
    [node] = cluster(1, topics=rules, backend_url=f"http://127.0.0.1:{free_port()}")
    client = await connect(node, user="ann")
    answer = await client.subscribe("asked:yes")
    assert (answer["code"], answer["temporary"]) == (5030, True)
    assert (await client.subscribe("open"))["status"] == "success"


# ---- keys of a key server


@pytest.fixture
def key_server(folder: Path) -> Iterator[tuple[Process, Path, str]]:
    port, file = free_port(), folder / "jwks.json"
    command = [sys.executable, "-m", "tests.integration.keyserver", str(port), str(file)]
    process = Process("keys", command, folder / "keys.log", {**clean_environment(), "PYTHONPATH": str(ROOT)})
    try:
        yield process, file, f"http://127.0.0.1:{port}/jwks"
    finally:
        process.close()


def serve(file: Path, **private: Any) -> None:
    """Have the key server serve these keys by their names."""
    entries = [
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())), "kid": kid} for kid, key in private.items()
    ]
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"keys": entries}))
    new.replace(file)


async def test_keys_are_fetched_renewed_on_an_unknown_one_and_kept_when_the_server_is_away(
    cluster: Start, connect: Connect, key_server: tuple[Process, Path, str]
) -> None:
    process, file, url = key_server
    first, second = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    serve(file, k1=first)
    process.spawn()
    [node] = cluster(1, jwks_url=url)
    client = await connect(node)
    assert (await client.ask(type="AUTH", authToken=signed(first, "ES256", "k1")))["operation"] == "authenticate"
    # One that it signs with since now. The floor between two fetches is 10 s from the start.
    serve(file, k1=first, k2=second)
    await eventually(lambda: _is_in(client, signed(second, "ES256", "k2")), 30)
    fetched = file.with_suffix(".count").stat().st_size
    for _ in range(20):
        refused = await client.ask(
            type="AUTH", authToken=signed(ec.generate_private_key(ec.SECP256R1()), "ES256", "k9")
        )
        assert refused["reason"] == "token_invalid"
    assert file.with_suffix(".count").stat().st_size <= fetched + 1
    process.kill()
    assert (await client.ask(type="AUTH", authToken=signed(second, "ES256", "k2")))["operation"] == "authenticate"
    assert node.ready()


async def _is_in(client: Client, text: str) -> bool:
    return bool((await client.ask(type="AUTH", authToken=text))["type"] == "ACKNOWLEDGMENT")


async def test_a_node_without_any_key_yet_is_not_ready(
    folder: Path, redis: Redis, key_server: tuple[Process, Path, str]
) -> None:
    process, file, url = key_server
    with Node("n1", folder, redis, jwks_url=url) as node:
        until(lambda: _reasons(node) and all("keys" in reason for reason in _reasons(node)), 20, "only the keys miss")
        serve(file, k1=ec.generate_private_key(ec.SECP256R1()))
        process.spawn()
        until(node.ready, 20, "the node is ready")


def _reasons(node: Node) -> list[str]:
    try:
        return node.reasons()
    except httpx.TransportError:
        return []


# ---- revocation


async def test_a_revoked_token_is_refused_on_every_node_and_its_sockets_are_closed(
    cluster: Start, connect: Connect, api: Of
) -> None:
    nodes = cluster(3)
    text, other = signed(jti="t1"), signed(jti="t2")
    clients = [await connect(node, cookies={"session": text}) for node in nodes]
    spared = await connect(nodes[1], cookies={"session": other})
    done = await api(nodes[0]).post("/api/revocations", {"jti": "t1"})
    assert done["jti"] == "t1"
    assert [await client.closed() for client in clients] == [3500] * 3
    for node in nodes:
        client = await connect(node)
        assert (await client.ask(type="AUTH", authToken=text))["reason"] == "token_invalid"
        assert (await client.ask(type="AUTH", authToken=other))["operation"] == "authenticate"
        listed = await api(node).get("/api/revocations")
        assert [one["jti"] for one in listed["revocations"]] == ["t1"]
    assert spared.open


@pytest.mark.parametrize("jti", ["j" * 201, "j" * 9000, "ü" * 300, 'a"b\n'])
async def test_every_id_that_logs_in_can_be_revoked(plain: Cluster, connect: Connect, api: Of, jti: str) -> None:
    text = signed(jti=jti)
    client, other = await connect(plain[1]), await connect(plain[1])
    assert (await client.ask(type="AUTH", authToken=text))["operation"] == "authenticate"
    assert (await other.ask(type="AUTH", authToken=signed(jti=jti + "x")))["operation"] == "authenticate"
    done = await api(plain[0]).post("/api/revocations", {"jti": jti, "expires": time.time() + 60})
    assert len(done["jti"]) <= 200
    assert await client.closed() == 3500
    again = await connect(plain[2])
    assert (await again.ask(type="AUTH", authToken=text))["reason"] == "token_invalid"
    assert other.open


async def test_all_tokens_of_a_user_until_now_are_refused_and_new_ones_are_not(
    cluster: Start, connect: Connect, api: Of
) -> None:
    nodes = cluster(2)
    old = signed(iat=int(time.time()) - 10)
    client = await connect(nodes[1], cookies={"session": old})
    bob = await connect(nodes[1], user="bob")
    await api(nodes[0]).post("/api/revocations", {"user": "ann"})
    assert await client.closed() == 3500
    again = await connect(nodes[1], cookies={"session": old})
    assert (await again.subscribe("portfolio"))["code"] == 4010
    assert (await again.ask(type="AUTH", authToken=signed(iat=int(time.time()) + 1)))["operation"] == "authenticate"
    assert bob.open


async def test_revocations_outlive_nodes_and_a_lost_redis_and_reach_who_was_cut_off(
    cluster: Start, connect: Connect, api: Of, redis: Redis
) -> None:
    nodes = cluster(2, lease_seconds=2)
    text = signed(jti="t1")
    frozen = await connect(nodes[1], cookies={"session": text})
    nodes[1].freeze()  # it hears no order
    await api(nodes[0]).post("/api/revocations", {"jti": "t1", "expires": time.time() + 600})
    redis.kill_pubsub()
    nodes[1].thaw()
    assert await frozen.closed() == 3500, "it has caught up"
    redis.flush()  # the nodes write again what they know
    await eventually(lambda: redis.cli("ZCARD", "gw:{ws:revoked}") == 1, 20)
    assert 0 < redis.cli("TTL", "gw:{ws:revoked}") <= 620
    nodes[0].restart()
    until(nodes[0].ready, 60, "the node is back")
    client = await connect(nodes[0])
    assert (await client.ask(type="AUTH", authToken=text))["reason"] == "token_invalid"
    nodes.grow(1)
    assert (await (await connect(nodes[2])).ask(type="AUTH", authToken=text))["reason"] == "token_invalid"


async def test_a_revoked_subscription_token_takes_its_topics(
    cluster: Start, connect: Connect, api: Of, rules: Path
) -> None:
    [node] = cluster(1, topics=rules)
    client = await connect(node)
    assert (await client.subscribe("ticket:1", tokens=[topic_token("ticket:1", jti="t9")]))["status"] == "success"
    await api(node).post("/api/revocations", {"jti": "t9"})
    taken = await client.hear(type="SYSTEM", action="unsubscribed")
    assert taken["data"] == {"topics": ["ticket:1"], "reason": "subscription token revoked"}


@pytest.mark.parametrize(
    "body",
    [{}, [], {"jti": "a", "user": "b"}, {"jti": ""}, {"jti": 5}, {"user": "x" * 201}, {"jti": "a", "expires": 1},
     {"jti": "a", "expires": "soon"}, {"jti": "a", "expires": 1e12}, {"jti": "a", "why": "x"}],
)  # fmt: skip
async def test_a_bad_revocation_is_refused(plain: Cluster, api: Of, body: Any) -> None:
    answer = await api(plain[0]).http.post("/api/revocations", json=body)
    assert answer.status_code == 400, answer.text


# ---- keys of the API


CAME_OF_IT = [("feed", 403), ("eye", 403), (None, 401), ("chief", 200)]


async def test_each_key_is_good_for_its_scopes_and_every_administrative_act_is_logged(
    cluster: Start, connect: Connect, folder: Path
) -> None:
    made = {name: api_keys.new(name, scopes) for name, scopes in
            {"feed": ["publish:token:*"], "eye": ["read"], "chief": ["admin"]}.items()}  # fmt: skip
    file = folder / "keys.toml"
    file.write_text("".join(table for _, table in made.values()))
    [node] = cluster(1, api_keys=file)
    client = await connect(node)
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:

        async def ask(name: str, method: str, path: str, **how: Any) -> int:
            key = made[name][0] if name in made else name
            return (await http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **how)).status_code

        price, news = ({"topic": topic, "data": 1} for topic in ("token:x", "news"))
        publish = ("POST", "/api/publish")
        assert await ask("feed", *publish, json=price) == 200
        assert await ask("feed", *publish, json=news) == 403
        assert await ask("feed", *publish, json={"messages": [price, news]}) == 403
        assert await ask("eye", *publish, json=price) == 403
        assert await ask(API_KEY, *publish, json=news) == 200
        gone = ("DELETE", f"/api/clients/{client.id}")
        await eventually(lambda: _found(ask, client.id), 10)
        assert [await ask(name, *gone) for name in ("feed", "eye", "nobody", "chief")] == [403, 403, 401, 200]
        assert [await ask(name, "GET", "/api/nodes") for name in ("feed", "eye", "chief")] == [403, 200, 403]
    lines = await node.logged("audit", len(CAME_OF_IT))
    sent = [(line["key"], line["act"], line["status"]) for line in lines]
    assert sent == [(key, "disconnect_client", status) for key, status in CAME_OF_IT]
    assert all(line["about"] == {"id": client.id} and line["ip"] == "127.0.0.1" for line in lines)
    node.finish_log()
    log = "\n".join(node.process.log())
    assert not any(secret in log for secret, _ in made.values())
    assert API_KEY not in log


async def test_service_states_need_their_own_scope_and_node_states_cannot_be_written(
    cluster: Start, folder: Path
) -> None:
    scopes = {"feed": ["publish", "publish:*"], "part": ["services:price-*"], "whole": ["services"]}
    made = {name: api_keys.new(name, its) for name, its in scopes.items()}
    file = folder / "keys.toml"
    file.write_text("".join(table for _, table in made.values()))
    [node] = cluster(1, api_keys=file)
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:

        async def report(name: str, service: str) -> int:
            key = made[name][0] if name in made else name
            body = {"status": "error", "leaseSeconds": 60, "lastError": "forged"}
            headers = {"Authorization": f"Bearer {key}"}
            return (await http.put(f"/api/services/{service}", json=body, headers=headers)).status_code

        assert [await report(name, "price-feed") for name in ("feed", "part", "whole", API_KEY)] == [403, 200, 200, 200]
        assert [await report(name, "chain") for name in ("feed", "part", "whole")] == [403, 403, 200]
        for service in ("gateway.bus", "gateway.registry", "gateway.announcer", "gateway.other", "Gateway.bus"):
            assert [await report(name, service) for name in ("feed", "whole", API_KEY)] == [403, 403, 403]

        async def healthy() -> bool:
            found = (await http.get("/api/services", headers={"Authorization": f"Bearer {API_KEY}"})).json()["services"]
            own = {service["service"]: service for service in found if service["service"].startswith("gateway.")}
            well = [service["status"] == "active" for service in own.values()]
            assert not any(service["lastError"] for service in own.values()), own
            return len(well) == 3 and all(well)

        await eventually(healthy, 20)


async def test_a_read_key_may_subscribe_to_all_topics_at_the_operators_socket_and_may_not_publish(
    cluster: Start, connect: Connect, api: Of, folder: Path
) -> None:
    made = {name: api_keys.new(name, [scope]) for name, scope in (("eye", "read"), ("feed", "publish"))}
    file = folder / "keys.toml"
    file.write_text("".join(table for _, table in made.values()))
    [node] = cluster(1, api_keys=file)
    eye, feed = made["eye"][0], made["feed"][0]
    door = node.ws.removesuffix("/ws") + "/api/ws"
    client = await connect(door)
    assert (await client.subscribe("admin"))["code"] == 4010, "the door alone opens nothing"
    assert (await client.ask(type="AUTH", authToken=feed))["reason"] == "token_invalid"
    assert (await client.ask(type="AUTH", authToken=eye))["operation"] == "authenticate"
    assert (await client.subscribe("admin", "gateway:figures"))["status"] == "success"
    await api(node).publish("admin", {"incident": 7})
    await client.hear(type="DATA", topic="admin", data={"incident": 7})
    answer = await client.ask(type="REQUEST", topic="gateway:figures", action="history", requestId="q")
    assert "messages" in answer["data"]
    assert (await client.ask(type="PUBLISH", topic="contest-chat", data=1, requestId="p"))["code"] == 4010
    assert (await client.ask(type="COMMAND", topic="contest-chat", action="SAY", requestId="c"))["code"] == 4013
    taken = await client.ask(type="AUTH", authToken=token("ann"))
    assert sorted(taken["data"]["topics"]) == ["admin", "gateway:figures"], "who is ann now hears what ann may"

    stranger = await connect(node)
    assert (await stranger.ask(type="AUTH", authToken=eye))["reason"] == "token_invalid"
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        answers = [await http.get("/api/key", headers={"Authorization": f"Bearer {key}"}) for key in (eye, feed)]
    assert answers[0].json() == {"name": "eye", "scopes": ["read"]}
    assert answers[1].status_code == 403


async def test_an_administrators_token_is_good_for_the_api_and_named_in_the_log(
    plain: Cluster, connect: Connect
) -> None:
    node = plain[0]
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:

        async def ask(method: str, path: str, credential: str, **how: Any) -> tuple[int, str]:
            answer = await http.request(method, path, headers={"Authorization": f"Bearer {credential}"}, **how)
            return answer.status_code, answer.json().get("error", {}).get("message", "")

        root = token("steward", "superadmin")
        assert await ask("GET", "/api/nodes", root) == (200, "")
        assert await ask("POST", "/api/publish", root, json={"topic": "news", "data": 1}) == (200, "")
        assert await ask("DELETE", "/api/users/unknown/clients", root) == (200, "")
        assert [line["key"] for line in await node.logged("audit")] == ["admin:steward"]

        assert await ask("GET", "/api/nodes", token("ann")) == (403, "The token is valid, but not an administrator's")
        assert await ask("GET", "/api/nodes", token("steward", "admin", -60)) == (401, "The token has expired")
        assert await ask("GET", "/api/nodes", root[:-4] + "AAAA") == (401, "The token is not valid")
        assert (await ask("POST", "/api/revocations", API_KEY, json={"user": "steward"}))[0] == 200

        async def revoked() -> bool:
            return await ask("GET", "/api/nodes", root) == (401, "The token has been revoked")

        await eventually(revoked, 10)
        # Only what a page sends of its own will counts: a cookie is sent by any page.
        cookie = {"Cookie": f"session={token('chief', 'admin')}"}
        assert (await http.get("/api/nodes", headers=cookie)).status_code == 401


async def _found(ask: Any, client_id: str) -> bool:
    return bool(await ask("eye", "GET", f"/api/clients/{client_id}") == 200)


async def test_an_open_node_logs_a_warning(cluster: Start) -> None:
    [node] = cluster(1, open=1)
    await eventually(lambda: any("GATEWAY_OPEN=1" in line for line in node.process.log()))
