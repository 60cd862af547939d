"""A node serves although no process reads its log; it logs once why it is not ready."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.node import Node
from tests.kit.process import Host
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

ApiOf = Callable[[Front], Api]


class Piped(Node):
    """A node whose standard output and error are one pipe; `reader` is its other end."""

    reader = -1

    def start(self) -> None:
        """Run it."""
        self.reader, writer = os.pipe()
        process = self.process
        process._process = subprocess.Popen(
            process._command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=process._env
        )
        os.close(writer)

    def close_reader(self) -> None:
        """The process that read the log has ended."""
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


@pytest.fixture
def piped(folder: Path, redis: Redis) -> Iterator[Piped]:
    """One."""
    with Piped("n1", folder, redis, drain_seconds=0.2, lease_seconds=2) as node:
        try:
            yield node
        finally:
            node.close_reader()


async def serves(node: Node, connect: Connect, api: ApiOf) -> None:
    """It connects, publishes and delivers."""
    client = await connect(node)
    await client.subscribe("prices")
    await api(node).publish("prices", "received")
    await client.hear(type="DATA", data="received")
    await client.close()


async def test_a_closed_log_pipe_does_not_stop_the_node(
    piped: Piped, redis: Redis, connect: Connect, api: ApiOf
) -> None:
    await eventually(piped.ready, 60)
    client = await connect(piped)
    await client.subscribe("prices")
    piped.close_reader()
    redis.kill_pubsub()
    await client.hear(action="gap")
    await eventually(piped.ready)
    await serves(piped, connect, api)
    await eventually(lambda: piped.metric("gateway_log_lines_dropped_total") > 0)
    piped.terminate()
    await client.hear(action="shutdown", within=20)
    assert await asyncio.to_thread(piped.process.exit_code) == 0


async def test_a_full_log_without_a_reader_does_not_block_the_node(piped: Piped, connect: Connect, api: ApiOf) -> None:
    await eventually(piped.ready, 60)
    strangers = [await connect(piped) for _ in range(10)]
    logs = [{"level": "error", "message": "x" * 480} for _ in range(20)]

    async def fill() -> bool:
        for stranger in strangers:
            await stranger.send(type="LOGS", logs=logs)
        return piped.metric("gateway_log_lines_dropped_total") > 0

    for _ in range(15):
        await fill()
    await serves(piped, connect, api)
    assert piped.ready()
    piped.terminate()
    assert await asyncio.to_thread(piped.process.exit_code) == 0  # also at its end it waits for no reader


async def test_each_change_of_readiness_is_logged_once_with_its_reason(
    cluster: Callable[..., Cluster], redis: Redis
) -> None:
    [node] = cluster(1, lease_seconds=2, redis_timeout_seconds=0.3)
    await eventually(lambda: len(node.events("node is ready")) == 1)
    redis.freeze()
    try:
        await eventually(lambda: bool(node.reasons()), 20)
        await asyncio.sleep(4)  # it is retried many times meanwhile
    finally:
        redis.thaw()
    await eventually(node.ready)
    await eventually(lambda: len(node.events("node is ready")) == 2)
    lines = node.events("node is not ready")[1:]  # the first is from the start
    assert 1 <= len(lines) <= 2
    assert any(word in lines[0]["reason"] for word in ("lease not renewed", "bus"))
    assert len(node.process.log()) < 60


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT, signal.SIGTERM])
async def test_each_signal_drains(
    number: signal.Signals, cluster: Callable[..., Cluster], redis: Redis, connect: Connect
) -> None:
    [node] = cluster(1, drain_seconds=0.5)
    client = await connect(node)
    node.process.signal(number)
    await client.hear(action="shutdown", within=20)
    assert await client.closed() == 3001
    assert await asyncio.to_thread(node.process.exit_code) == 0
    assert redis.cli("KEYS", "*ws:node*") == []


@pytest.mark.parametrize("numbers", [[signal.SIGHUP], [signal.SIGQUIT, signal.SIGINT, signal.SIGHUP, signal.SIGTERM]])
@pytest.mark.parametrize("event", ["node started", "draining"])
async def test_signals_at_the_start_and_in_a_drain_end_it_in_order(
    numbers: list[signal.Signals], event: str, folder: Path, redis: Redis
) -> None:
    with Node("n1", folder, redis, drain_seconds=0.2) as node:
        await eventually(lambda: "node started" in "".join(node.process.log()), 60, "it starts")
        if event == "draining":
            node.terminate()
            await eventually(lambda: bool(node.events("draining")))
        for number in numbers:
            node.process.signal(number)
        assert await asyncio.to_thread(node.process.exit_code) == 0
        assert node.complaints() == []
        assert node.events("node left")
    assert redis.cli("KEYS", "*ws:node*") == []


async def test_lines_have_the_load_balancers_request_id(cluster: Callable[..., Cluster], connect: Connect) -> None:
    [node] = cluster(1, log_level="debug")
    async with httpx.AsyncClient(trust_env=False) as http:
        await http.delete(f"{node.url}/api/clients/none", headers={"X-Request-ID": "4f1c-api"})
        await http.delete(f"{node.url}/api/clients/none")
    await connect(node, headers={"X-Request-ID": "4f1c-socket"})
    first, second = await node.logged("audit", 2)
    assert first["request"] == "4f1c-api" and "request" not in second
    assert [line["request"] for line in await node.logged("client opened")] == ["4f1c-socket"]


async def test_a_low_limit_of_file_descriptors_is_logged_at_the_start(folder: Path, redis: Redis) -> None:
    limited = Host("127.0.0.1", ("prlimit", "--nofile=512"))
    with Node("n1", folder, redis, limited) as node:
        [line] = await node.logged("few file descriptors")
        assert (line["limit"], line["clients"]) == (512, 460)
