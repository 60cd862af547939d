"""Every case of tests/hostile/rfc6455.py against a running node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest

from tests.hostile.rfc6455 import MIB, SECTIONS, Case, close
from tests.kit.cluster import Cluster
from tests.kit.node import Node
from tests.kit.raw import RawSocket

CASES = {"1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "9": 54, "10": 1, "12": 90, "13": 126}


async def write(socket: RawSocket, case: Case) -> None:
    """Send a case's frames, chopped as it wants."""
    stream = b"".join(case.sent)
    if case.chop < 0:
        chops = list(case.sent)
    else:
        chops = [stream[at : at + case.chop] for at in range(0, len(stream), case.chop)] if case.chop else [stream]
    for chop in chops:
        socket.write(chop)
        await socket.writer.drain()
        if 0 < len(chops) < 1000:
            await asyncio.sleep(0)


async def received(socket: RawSocket) -> bytes | int:
    """The next thing the node says, as a case names it; negative: a close code."""
    opcode, payload = await socket.frame()
    if opcode == 10:
        return b"." + payload
    if opcode == 8:
        return -int.from_bytes(payload[:2], "big") if payload else -1005
    assert opcode == 1, f"a frame of opcode {opcode}"
    message = orjson.loads(payload)
    if message["type"] == "ERROR":
        return int(message["code"])
    assert message["type"] == "pong"
    return str(message["timestamp"]).encode()


async def play(node: Node, case: Case) -> None:
    """Fail unless the node does what the case wants."""
    socket = await RawSocket.open(node, extensions=case.offer)
    try:
        assert (b"permessage-deflate" in socket.answer) == case.agreed
        assert (await socket.message())["action"] == "welcome"
        for _ in range(case.rounds):
            writing = asyncio.create_task(write(socket, case))
            for wanted in case.received:
                got = await received(socket)
                assert got == wanted, f"{got!r:.100} instead of {wanted!r:.100}"
            await asyncio.gather(writing, return_exceptions=True)  # it may be closed amid what we send
        if case.closed == (1000,):
            socket.write(close(1000))
        got = await received(socket)
        assert got in [-code for code in case.closed], f"{got!r:.100} instead of a close with {case.closed}"
        if case.closed != (1000,):
            socket.write(close(1000))
        assert await socket.ended()
    finally:
        await socket.close()


@pytest.mark.parametrize("section", SECTIONS)
async def test_the_node_speaks_rfc_6455(cluster: Callable[..., Cluster], section: str) -> None:
    (node,) = cluster(
        1, max_message_bytes=16 * MIB, client_buffer_bytes=64 * MIB, client_messages_per_second=1_000_000, compression=1
    )
    cases = list(SECTIONS[section]())
    assert len({case.number for case in cases}) == len(cases) == CASES[section]
    failed = []
    for case in cases:
        try:
            await play(node, case)
        except (AssertionError, TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            failed.append(f"{case.number}: {error!r:.300}")
    print(f"section {section}: {len(cases) - len(failed)} of {len(cases)} cases passed")
    assert not failed, "\n".join(failed)
