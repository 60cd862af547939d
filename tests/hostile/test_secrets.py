"""No log contains a secret, even after many errors: the nodes' at debug level, HAProxy's and Redis'."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect as open_socket

from gateway.settings import Settings, SettingsError
from tests.kit.client import Client
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, JWT_SECRET, token
from tests.kit.raw import RawSocket, frame
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

PASSWORD = "redis-password-4711"
OLD_SECRET = "an older secret, which is good as well, 4711"
BACKEND_SECRET = "signs what the back end is asked, 4711"
WRONG_KEY = "not-the-key-4711"
COOKIE = "another-sites-cookie-4711"


def read_logs(folder: Path) -> dict[str, str]:
    """All that every process has printed."""
    return {file.name: file.read_text(errors="replace") for file in folder.glob("*.log")}


async def knock(url: str) -> None:
    """A connect that is refused."""
    with contextlib.suppress(websockets.InvalidHandshake):
        async with open_socket(url, proxy=None, additional_headers={"Cookie": f"session={token('url')}; x={COOKIE}"}):
            pass


async def test_no_secret_is_ever_logged(
    redis: Redis, cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], folder: Path
) -> None:
    redis.cli("CONFIG", "SET", "requirepass", PASSWORD)
    nodes = cluster(
        2, log_level="debug", redis_url=redis.url.replace("//", f"//:{PASSWORD}@"), jwt_secret_previous=OLD_SECRET,
        backend_url="http://127.0.0.1:9", backend_secret=BACKEND_SECRET,
    )  # fmt: skip
    front = haproxy(nodes.nodes)
    said = {
        "good": token("ann"),
        "expired": token("ann", seconds=-60),
        "changed": token("ann") + "x",
        "admin": token("root", "admin"),
    }
    streams = []
    for door in (nodes[0], front):
        stream = await Client.connect(door, over="sse", says_to=nodes[1].url)
        await stream.ask(type="ping")
        streams.append(stream.socket.name)  # type: ignore[attr-defined]  # an EventSocket's
        await stream.leave()
        for one in said.values():
            await knock(f"{door.ws}?token={one}")
            await knock(f"{door.ws}?access_token={one}")
            client = await Client.connect(
                door, cookies={"session": one, "other": COOKIE}, headers={"Authorization": f"Bearer {one}"}
            )
            await client.ask(type="AUTH", authToken=one)
            await client.ask(type="SUBSCRIBE", topics=["portfolio"], authToken=one)
            await client.ask(type="PUBLISH", topic="chat", data={"mine": one})
            await client.ask(type="COMMAND", topic="chat", action="SEND", data={"mine": one})
            await client.ask(type="REQUEST", topic="system", action="nothing", authToken=one)
            await client.ask_text('{"type":"AUTH","authToken":"' + one)
            await client.ask(type="AUTH" + one, authToken=one)
            await client.leave()
        raw = await RawSocket.open(door)
        raw.write(frame(1, f'{{"type":"AUTH","authToken":"{said["good"]}"}}'.encode(), masked=False))
        await raw.close()
    keys = [f"Bearer {API_KEY}", f"Bearer {WRONG_KEY}", f"Basic {WRONG_KEY}", f"Bearer {said['admin']}", WRONG_KEY]
    async with httpx.AsyncClient(trust_env=False) as http:
        for url in (nodes[0].url, front.admin, front.url):
            for key in keys:
                for path in ("/api/nodes", f"/api/nodes?key={WRONG_KEY}", "/api/nothing"):
                    await http.get(url + path, headers={"Authorization": key, "Cookie": f"session={COOKIE}"})
                await http.post(f"{url}/api/publish", headers={"Authorization": key}, content=b'{"topic":')
                await http.request("DELETE", f"{url}/api/users/unknown/clients", headers={"Authorization": key})
                await http.post(f"{url}/api/revocations", headers={"Authorization": key}, json={"user": "unknown"})
    redis.cli_as(PASSWORD, "CONFIG", "SET", "requirepass", "changed")  # the nodes' password is refused from now on
    redis.cli_as("changed", "CLIENT", "KILL", "TYPE", "normal")
    redis.cli_as("changed", "CLIENT", "KILL", "TYPE", "pubsub")
    await eventually(lambda: all(node.reasons() for node in nodes), 20)
    redis.cli_as("changed", "CONFIG", "SET", "requirepass", PASSWORD)
    await eventually(lambda: not any(node.reasons() for node in nodes), 30)

    secrets = [JWT_SECRET, OLD_SECRET, API_KEY, PASSWORD, BACKEND_SECRET, WRONG_KEY, COOKIE, *said.values()]
    # Search for the signatures, without which a token is useless, and for parts of them.
    secrets += [name.rpartition(".")[2] for name in streams]
    secrets += [one.rpartition(".")[2][:20] for one in said.values()]
    for node in nodes:
        node.finish_log()
    logs = read_logs(folder)
    assert {"n1.log", "n2.log", "haproxy.log", "redis.log"} <= logs.keys()
    assert '"level":"debug"' in logs["n1.log"]
    assert "client opened" in logs["n1.log"]
    assert r"\/api\/nodes" in logs["haproxy.log"]
    found = [(name, secret) for name, text in logs.items() for secret in secrets if secret in text]
    assert not found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("JWT_SECRET", f"{PASSWORD}\udcff"),
        ("JWT_SECRET_PREVIOUS", f"{PASSWORD}\udcff"),
        ("API_KEY", f"{PASSWORD}\udcff"),
        ("BACKEND_SECRET", f"{PASSWORD}\udcff"),
        ("BACKEND_URL", f"http://ann:{PASSWORD}@host"),
        ("REDIS_URL", f"http://:{PASSWORD}@host"),
    ],
)
def test_a_bad_secret_is_not_repeated_by_the_sentence_that_refuses_it(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({f"GATEWAY_{name}": text}, lambda: "host")
    assert PASSWORD not in str(refused.value)


async def test_what_is_asked_of_a_node_without_its_log(cluster: Callable[..., Cluster]) -> None:
    """Nor do its answers tell them: metrics, readiness, status, the description."""
    (node,) = cluster(1, jwt_secret_previous=OLD_SECRET)
    async with httpx.AsyncClient(trust_env=False) as http:
        answers = await asyncio.gather(
            *(http.get(node.url + path) for path in ("/metrics", "/readyz", "/healthz", "/api/openapi.json", "/")),
            http.get(f"{node.url}/api/nodes", headers={"Authorization": f"Bearer {API_KEY}"}),
        )
    for answer in answers:
        assert not [secret for secret in (JWT_SECRET, OLD_SECRET, API_KEY) if secret in answer.text]
