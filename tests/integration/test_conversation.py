"""A recorded conversation with one node is repeated byte for byte; only ids, times and positions are replaced.

`tests/conversation.txt` has a step in each line: ``ann> …`` is sent, ``ann< …`` is received, ``ann+ …`` connects,
``api> …`` is a call of the HTTP API. Set RECORD=1 to write down what the node answers now.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import websockets

from gateway import __version__
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY, Node, token
from tests.kit.web_server import Asked, Says, WebServer

FILE: Final = Path(__file__).parents[1] / "conversation.txt"
SECRET: Final = "a secret that only this test and its back end know"
QUIET_SECONDS: Final = 0.3  # a recorded step ends after this time without a message
DEADLINE_SECONDS: Final = 30.0
RULES: Final = """
[[topic]]
pattern = "kept*"
history = 50
snapshot = true
publish = "anyone"

[[topic]]
pattern = "shown"
presence = true

[[topic]]
pattern = "private:*"
subscribe = "owner"
publish = "nobody"

[[topic]]
pattern = "admins"
subscribe = "role:admin"

[[topic]]
pattern = "source:*"
source = "/source/{1}"
command = "anyone"

[[topic]]
pattern = "*"
publish = "anyone"
"""
# What differs between two runs, and what stands for it in the file.
REPLACED: Final = [
    (re.compile(r"n1\.[0-9a-f]{8}\.(\d+)"), r"n1.life.\1"),
    (re.compile(r"(n1\.life\.\d+)\.[0-9a-f]{32}"), r"\1.key"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "TIME"),
    (re.compile(r'"mark":[1-9]\d+'), '"mark":MARK'),
    (re.compile(r'"epoch":"u[0-9a-z]+"'), '"epoch":"UNBORN"'),
    (re.compile(r'"epoch":"[0-9a-f]+"'), '"epoch":"EPOCH"'),
    (re.compile(r"=u[0-9a-z]+:0:0"), "=UNBORN"),
    (re.compile(r"=[0-9a-f]+:(\d+):\d{10,}"), r"=EPOCH:\1:MARK"),
    (re.compile(r'"reconnectMs":\d+'), '"reconnectMs":DELAY'),
    (re.compile(r"^retry: \d+"), "retry: DELAY"),
    (re.compile(re.escape(f'"version":"{__version__}"')), '"version":"VERSION"'),
]


def common(text: str) -> str:
    """`text` without what differs between two runs."""
    for pattern, instead in REPLACED:
        text = pattern.sub(instead, text)
    return text


async def answer(asked: Asked) -> Says:
    """The back end: it refuses what has `refuse` in its path or body."""
    if "refuse" in asked.target or b"refuse" in asked.body:
        return Says(status=403, body={"message": "not that"})
    return Says(body={"target": asked.target})


class Peer:
    """One client, and the texts that it has received."""

    def __init__(self, source: AsyncIterator[str], socket: Any = None) -> None:
        self.socket = socket
        self.received: asyncio.Queue[str] = asyncio.Queue()
        self.names: dict[str, str] = {}  # the client's id
        self._task = asyncio.create_task(self._read(source))

    async def _read(self, source: AsyncIterator[str]) -> None:
        async for text in source:
            found = re.search(r'"clientId":"([^"]+)"', text) if '"welcome"' in text else None
            if found:
                self.names["id"] = found[1]
            self.received.put_nowait(common(text))

    async def next(self, seconds: float) -> str | None:
        """The next text, or None after `seconds`."""
        try:
            return await asyncio.wait_for(self.received.get(), seconds)
        except TimeoutError:
            return None

    async def close(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def texts(socket: Any) -> AsyncIterator[str]:
    """What a WebSocket receives, and its close."""
    try:
        while True:
            yield (await socket.recv(decode=False)).decode()
    except websockets.ConnectionClosed as closed:
        yield f"close {closed.rcvd.code} {closed.rcvd.reason}" if closed.rcvd else "broken"


async def lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of an event stream, without the empty ones and the comments."""
    async for line in response.aiter_lines():
        if line not in ("", ":"):
            yield line


class Stage:
    """Carries out steps at `node`."""

    def __init__(self, node: Node, stack: AsyncExitStack) -> None:
        self.peers: dict[str, Peer] = {}
        self._node = node
        self._stack = stack

    async def do(self, name: str, sign: str, text: str) -> None:
        """Connect, send or call; a text may contain {token:NAME} and {id:PEER}."""
        text = re.sub(r"\{token:(\w+)\}", lambda m: token(m[1], "admin" if m[1] == "root" else "user"), text)
        text = re.sub(r"\{id:(\w+)\}", lambda m: self.peers[m[1]].names["id"], text)
        if sign == "+" and text.startswith("ws"):
            user = text.partition(" ")[2]
            headers = {"Cookie": f"session={token(user)}"} if user else {}
            socket = await self._stack.enter_async_context(
                websockets.connect(self._node.ws, additional_headers=headers, proxy=None, compression=None)
            )
            await self._add(name, Peer(texts(socket), socket))
        elif sign == "+":
            http = await self._stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=None))
            response = await self._stack.enter_async_context(http.stream("GET", f"{self._node.url}/sse?{text}"))
            await self._add(name, Peer(lines(response)))
        elif name == "api":
            method, path, *body = text.split(" ", 2)
            headers = {"Authorization": f"Bearer {API_KEY}"}
            async with httpx.AsyncClient(base_url=self._node.url, headers=headers, trust_env=False) as http:
                (await http.request(method, path, content=body[0] if body else None)).raise_for_status()
        elif name == "node":
            self._node.process.terminate()
        else:
            await self.peers[name].socket.send(text)

    async def _add(self, name: str, peer: Peer) -> None:
        self.peers[name] = peer
        self._stack.push_async_callback(peer.close)


async def test_the_node_repeats_the_recorded_conversation(cluster: Callable[..., Cluster], folder: Path) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    record = bool(os.environ.get("RECORD"))
    steps = [
        (match[1], match[2], match[3])
        for match in map(re.compile(r"(\w+)([+<>]) ?(.*)").fullmatch, FILE.read_text().splitlines())
        if match and (match[2] != "<" or not record)
    ]
    async with WebServer(answer) as back_end, AsyncExitStack() as stack:
        node = cluster(1, topics=rules, backend_url=back_end.url, backend_secret=SECRET, drain_seconds=0.1)[0]
        stage = Stage(node, stack)
        said: list[str] = []
        for name, sign, text in steps:
            said.append(f"{name}{sign} {text}".rstrip())
            if sign == "<":
                got = await stage.peers[name].next(DEADLINE_SECONDS)
                assert got == text, f"after {said[-6:]}"
                continue
            await stage.do(name, sign, text)
            while record:
                received = [(one, await peer.next(QUIET_SECONDS)) for one, peer in stage.peers.items()]
                said += [f"{one}< {got}" for one, got in received if got is not None]
                if not any(got for _, got in received):
                    break
        assert all(peer.received.empty() for peer in stage.peers.values())
    if record:
        FILE.write_text("\n".join(said) + "\n")
