"""`gateway dev`: a cluster with an embedded Valkey, from its start to its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from gateway.client import Gateway, Message
from gateway.dev import DevCluster, DevError
from tests.kit.process import Process, clean_environment, free_port
from tests.kit.waiting import until


@contextmanager
def gateway_dev(folder: Path, *words: str) -> Iterator[Process]:
    """The command, until it has printed how to stop it; stopped at the end with Ctrl-C."""
    command = [sys.executable, "-m", "gateway", "dev", *words]
    process = Process("dev", command, folder / "dev.out", clean_environment() | {"TMPDIR": str(folder)})
    try:
        process.spawn()
        until(lambda: "Ctrl-C stops it." in process.log() or not process.alive, 60, "the cluster runs")
        children = process.children()
        yield process
        process.signal(signal.SIGINT)
        assert process.exit_code() == 0
        assert process.log()[-1] == "Stopped."
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    finally:
        process.close()


def run(command: str) -> bytes:
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=30).stdout


async def first_message(url: str, publish: str) -> object:
    async with Gateway(url) as gateway:
        news = await gateway.subscribe("news")
        await asyncio.to_thread(run, publish)
        async for event in news:
            if isinstance(event, Message):
                return event.data
    return None


def test_the_printed_command_publishes_to_clients_of_every_node_and_ctrl_c_leaves_nothing(folder: Path) -> None:
    port = free_port()
    with gateway_dev(folder, "--nodes", "2", "--port", str(port)) as process:
        printed = "\n".join(process.log())
        assert "no load balancer, and all messages are lost" in printed
        [publish] = re.findall(r"^  (curl .*(?:\n.*)?\}')$", printed, re.MULTILINE)
        for url in (f"ws://127.0.0.1:{port}/ws", f"ws://127.0.0.1:{port + 1}/ws"):
            assert asyncio.run(first_message(url, publish)) == {"text": "hello"}
        assert run(f"curl --silent --fail http://127.0.0.1:{port}/").startswith(b"<!doctype html>")
    assert [path.name for path in folder.iterdir()] == ["dev.out"]


def test_messages_are_kept_in_the_folder(folder: Path) -> None:
    topics = folder / "topics.toml"
    topics.write_text('[[topic]]\npattern = "news"\nhistory = 10\n')
    settings = {"GATEWAY_TOPICS": str(topics)}
    for number in (1, 2):
        with DevCluster(data=folder / "kept", settings=settings) as cluster:
            key = f"-H 'Authorization: Bearer {cluster.api_key}'"
            run(f'curl -s --fail {key} {cluster.url}/api/publish -d \'{{"topic": "news", "data": {number}}}\'')
            kept = orjson.loads(run(f"curl -s --fail {key} {cluster.url}/api/topics/news/history"))
            assert [message["data"] for message in kept["messages"]] == list(range(1, number + 1))


def test_a_process_that_ends_is_reported_with_its_log(folder: Path) -> None:
    with pytest.raises(DevError, match=r"node1 has ended with 2\. The end of its log:\n.*GATEWAY_LEASE_SECONDS"):
        DevCluster(settings={"GATEWAY_LEASE_SECONDS": "never"}).__enter__()
    with DevCluster(data=folder / "kept") as cluster:
        redis = cluster.log_file("redis").read_text()
        os.kill(int(re.findall(r"[Pp]id=(\d+)|^(\d+):", redis, re.MULTILINE)[0][1]), signal.SIGKILL)
        with pytest.raises(DevError, match="redis has ended with -9"):
            cluster.watch()
