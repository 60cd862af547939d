"""Hostile clients from many sources at a steady pace: ``python -m tests.hostile.flood PORT PACE``.

A process of its own, which obeys the lines of its standard input: to ``go N`` it answers with a line when N more have
come and gone, with anything else it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import sys
from collections.abc import Callable
from typing import Final

from tests.kit.raw import frame, text

SECONDS: Final = 5.0  # one of them stays at most so long
PARALLEL: Final = 100
TOPICS: Final = 1000  # a node remembers the rules of the last 65,536 names, which would look like a leak

HANDSHAKE: Final = (
    b"GET /ws HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
# What is sent instead of a handshake.
BAD_HANDSHAKES: Final = [
    HANDSHAKE,  # and no end
    HANDSHAKE.replace(b"13", b"7") + b"\r\n",
    HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"x") + b"\r\n",
    HANDSHAKE + b"Cookie: session=" + b"e" * 8000 + b"\r\n\r\n",
    HANDSHAKE + b"Origin: https://evil.example\r\n\r\n",
    HANDSHAKE + b"X-Forwarded-For: 1.2.3.4, " + b"9" * 3000 + b"\r\n\r\n",
    HANDSHAKE.replace(b"/ws", b"/ws?token=x") + b"\r\n",
    HANDSHAKE.replace(b"/ws", b"/" + b"%2e" * 1000) + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{",
    b"",
]
# What is sent behind one.
BAD_FRAMES: Final[list[Callable[[random.Random], bytes]]] = [
    lambda chance: chance.randbytes(200),
    lambda _: frame(1, b"{}", masked=False),
    lambda _: frame(1, b"[" * 60_000),
    lambda _: frame(1, b"x" * 100_000)[:60_000],
    lambda _: frame(2, b"\x00" * 1000),
    lambda _: frame(1, b"\xff\xfe"),
    lambda _: frame(9, b"x" * 125) * 100,
    lambda _: text({"type": "AUTH", "authToken": "e" * 4000}) * 10,
    lambda chance: text({"type": "SUBSCRIBE", "topics": [f"h{chance.randrange(TOPICS)}" for _ in range(20)]}),
    lambda _: text({"type": "LOGS", "logs": [{"message": "x" * 1000}] * 50}),
    lambda _: b"".join(frame(0 if at else 1, b"x", final=False) for at in range(500)),
    lambda _: b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff1234",
]


async def attack(port: int, source: str, chance: random.Random) -> None:
    """One of them: come, be a nuisance, be gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), limit=1 << 12)
    try:
        if chance.random() < 0.5:
            writer.write(chance.choice(BAD_HANDSHAKES))
        else:
            writer.write(HANDSHAKE + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(chance.choice(BAD_FRAMES)(chance))
        if chance.random() < 0.5:  # some wait for the answer, some do not
            await reader.read(1 << 12)
    finally:
        writer.transport.abort()


async def flood(port: int, pace: float) -> None:
    """Obey the lines of standard input; `pace` of them come in a second."""
    chance = random.Random(7)
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(PARALLEL)
    numbers = itertools.count()

    async def one() -> None:
        number = next(numbers)
        source = f"127.{2 + number // 62_500 % 100}.{number // 250 % 250}.{number % 250 + 1}"
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await attack(port, source, chance)
        finally:
            room.release()

    while (order := (await loop.run_in_executor(None, sys.stdin.readline)).split())[:1] == ["go"]:
        async with asyncio.TaskGroup() as tasks:
            due = loop.time()
            for _ in range(int(order[1])):
                due = max(due + 1 / pace, loop.time() - 0.1)
                await asyncio.sleep(due - loop.time())
                await room.acquire()
                tasks.create_task(one())
        print("done", flush=True)


if __name__ == "__main__":
    os.nice(10)  # its own work is not to be measured at those it disturbs
    asyncio.run(flood(int(sys.argv[1]), float(sys.argv[2])))
