"""`make chaos`, in short: a few faults on a small cluster, and every promise kept."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process

import pytest

from chaos.network import NAMESPACES, PREFIX, Network, NetworkError
from tests.kit.process import ROOT, clean_environment

SECONDS = 150.0  # it takes about 40 on an idle machine


async def begin(**sent: str) -> Process:
    """A run of it, short."""
    env = clean_environment() | {"QUICK": "1", "SEED": "7", **sent}
    command = [sys.executable, "-m", "chaos"]
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=env, stdout=PIPE, stderr=STDOUT)


async def end(process: Process) -> str:
    """What it printed, when it has ended; it ends what it has started."""
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return output.decode()


def was_kept(text: str, about: str) -> bool:
    """Whether the table has this fault, with its promises kept."""
    return any(about in line and "kept" in line for line in text.splitlines())


@pytest.fixture
def namespaces() -> None:
    """Hosts of their own can be made here; else the test is skipped, and says why."""
    try:
        Network(["one"]).close()
    except NetworkError as error:
        pytest.skip(str(error))


async def test_a_killed_node_deaf_nodes_a_restarted_redis_and_a_flushed_one() -> None:
    process = await begin(CLIENTS="30", FAULTS="kill deafen redis-restart flush")
    text = await end(process)
    assert process.returncode == 0, text
    for about in ("kill -9 a node", "cut pub/sub, 3 times", "stop and start Redis", "FLUSHALL"):
        assert was_kept(text, about), text


@pytest.mark.usefixtures("namespaces")
async def test_a_node_that_is_cut_off_from_redis_on_another_host() -> None:
    process = await begin(HOSTS="1", CLIENTS="20", FAULTS="cut-redis")
    text = await end(process)
    assert process.returncode == 0, text
    assert was_kept(text, "cut a node from Redis"), text
    assert not hosts_of(process)


@pytest.mark.usefixtures("namespaces")
async def test_one_that_is_interrupted_leaves_no_host_behind_and_what_a_killed_one_leaves_the_next_removes() -> None:
    interrupted, killed = await begin(HOSTS="1", CLIENTS="1"), await begin(HOSTS="1", CLIENTS="1")
    for process in (interrupted, killed):
        await until_nodes_run(process)
    interrupted.terminate()  # as `make` and supervisors do; Ctrl-C is the same to it
    text = await end(interrupted)
    assert "interrupted" in text, text
    assert not hosts_of(interrupted)
    killed.kill()
    await end(killed)
    left = hosts_of(killed)
    assert left
    Network(["one"]).close()
    assert not hosts_of(killed)
    # A namespace goes with the last process in it, so none of those is left either.


def hosts_of(process: Process) -> list[str]:
    """The namespaces there are of a run."""
    return [file.name for file in NAMESPACES.glob(f"{PREFIX}-{process.pid}-*")]


async def until_nodes_run(process: Process) -> None:
    """Wait until it has said how many clients there are."""
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        async for line in process.stdout:
            if b"clients on" in line:
                return
    raise AssertionError("it ended first")
