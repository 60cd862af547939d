"""Sends arbitrary bytes, frames, messages, handshakes and requests to a running node."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Final

from fuzz.pure import dumps, message, mutate, value
from tests.kit.client import Client
from tests.kit.node import Node, token
from tests.kit.raw import RawSocket, frame
from tests.kit.waiting import eventually

ANSWER_SECONDS: Final = 20.0
GROWTH_BYTES: Final = 48 << 20  # permitted growth after the first rounds: pools, caches


class Found(AssertionError):
    """A target found a fault."""


class Watch:
    """A well-behaved client and the node's metrics, from the first round to the last."""

    def __init__(self, node: Node, client: Client) -> None:
        self.node = node
        self.client = client
        self.expected: set[str] = set()  # error events that the node should log
        self._marks = 0
        self._memory = 0

    async def look(self) -> None:
        """Fails unless the node runs, answers, and logs no unexpected error."""
        if not self.node.process.alive:
            raise Found("the node exited")
        self._marks += 1
        await self.client.send(type="ping", timestamp=self._marks)
        await self.client.hear(type="pong", timestamp=self._marks, start=max(0, len(self.client.messages) - 1))
        if complaints := [line for line in self.node.complaints() if line.get("event") not in self.expected]:
            raise Found(f"the node logged an error: {complaints[0]}")
        del self.client.messages[1:]

    async def warm(self) -> None:
        """Records the node's current memory as the baseline."""
        self._memory = self.node.memory_bytes()

    async def settle(self) -> None:
        """Fails unless all other sockets are closed and the memory is near its baseline."""
        await self.look()
        await eventually(
            lambda: self.node.metric("gateway_connections") == 1, ANSWER_SECONDS, "all sockets but one are closed"
        )
        held = self.node.memory_bytes()
        if self._memory and held - self._memory > GROWTH_BYTES:
            raise Found(f"the node uses {held >> 20} MiB; after the first rounds it used {self._memory >> 20} MiB")


async def sockets(random: Random, watch: Watch) -> int:
    """Sends frames and bytes of all kinds on one socket: the node may only close it. Returns the bytes sent."""
    socket = await RawSocket.open(watch.node)
    sent = 0
    try:
        for _ in range(random.randrange(1, 12)):
            payload = random.choice([dumps(message(random)), random.randbytes(random.randrange(300)), b"\xff" * 126])
            made = frame(
                random.choice([0, 1, 1, 1, 1, 2, 8, 9, 10, random.randrange(16)]), payload,
                final=random.random() < 0.9, masked=random.random() < 0.97,
                reserved=random.choice([0] * 20 + [0x40, 0x20, 0x10]),
            )  # fmt: skip
            if random.random() < 0.1:
                made = mutate(random, made)
            sent += len(made)
            for at in sorted(random.randrange(len(made) + 1) for _ in range(random.randrange(3))):
                socket.write(made[:at])
                made = made[at:]
                await asyncio.sleep(0)
            socket.write(made)
        if random.random() < 0.3:
            socket.writer.write_eof()
            await socket.ended()
    except OSError:
        pass  # the node closed it while this side was sending
    finally:
        await socket.close()
    return sent


async def sessions(random: Random, watch: Watch) -> int:
    """Sends arbitrary messages in valid frames: the node answers each, and the socket stays open."""
    client = await Client.connect(
        watch.node, user=random.choice([None, "ann", "root"]), role=random.choice(["user", "admin"])
    )
    sent = 0
    try:
        for _ in range(random.randrange(1, 20)):
            made = message(random)
            if random.random() < 0.2:
                made["authToken"] = token("ann")
            text = dumps(made if random.random() < 0.9 else value(random))
            if random.random() < 0.3:
                text = mutate(random, text)
            with contextlib.suppress(UnicodeDecodeError):
                await client.socket.send(text.decode())
                sent += len(text)
        mark = f"end {random.random()}"
        await client.send(type="ping", timestamp=mark)
        await client.hear(type="pong", timestamp=mark, within=ANSWER_SECONDS)
        if failed := [reply for reply in client.messages if reply.get("code") == 5000]:
            raise Found(f"the node had an internal error: {failed[0]}")
    finally:
        await client.leave()
    return sent


LINES: Final = [
    b"Host: localhost", b"Host: evil.example", b"Host:", b"Upgrade: websocket", b"Connection: Upgrade", b"Origin: null",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Key: x", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Version: 7", b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Protocol: a, b, \xff",
    b"Cookie: session=x; a=\xff; =; ;;", b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: chunked",
    b"Authorization: Bearer x", b"Authorization: \xff", b"X-Forwarded-For: \xff, 1.1.1.1", b"X-Forwarded-Proto: x",
    b"Expect: 100-continue", b"Connection: close", b"X: " + b"y" * 9000, b": x", b" folded", b"X-Request-ID: \xff",
]  # fmt: skip
TARGETS_HTTP: Final = [
    b"/", b"/ws", b"/api/v69/ws", b"/ws?token=x", b"/ws?\xff", b"/metrics", b"/readyz", b"/api/nodes", b"/api/publish",
    b"/api/topics/%ff", b"/static/../../pyproject.toml", b"/static/%2e%2e/settings.py", b"/static/\x00", b"*", b"//",
    b"/%", b"http://[/ws", b"/static/page.js",
]  # fmt: skip


async def requests(random: Random, watch: Watch) -> int:
    """Sends requests and handshakes of all kinds, and bytes that are not HTTP."""
    method = random.choice([b"GET", b"GET", b"GET", b"POST", b"HEAD", b"DELETE", b"TRACE", b"CONNECT", b"X", b""])
    target = random.choice(TARGETS_HTTP)
    version = random.choice([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b""])
    lines = [random.choice(LINES) for _ in range(random.randrange(8))]
    if random.random() < 0.7:
        lines = [*LINES[:1], *LINES[3:5], LINES[6], LINES[8], *lines[:2]]
    head = method + b" " + target + b" " + version + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
    request = mutate(random, head) if random.random() < 0.5 else head
    request += random.choice([b"", random.randbytes(50), frame(1, dumps(message(random)))])
    reader, writer = await asyncio.open_connection("127.0.0.1", watch.node.port)
    try:
        writer.write(request)
        with contextlib.suppress(OSError):
            writer.write_eof()
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await reader.read(1 << 16)
            # 503: overload; 505: a WebSocket handshake with another version of HTTP.
            if answer.startswith(b"HTTP/1.1 5") and answer[9:12] not in (b"503", b"505"):
                raise Found(f"the node answered {answer[:200]!r} to {request[:400]!r}")
            if b"requires-python" in answer or b"class Settings" in answer:
                raise Found(f"the node served a private file to {request[:400]!r}")
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return len(request)


TARGETS: Final = {"sockets": sockets, "sessions": sessions, "requests": requests}
