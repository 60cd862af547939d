"""`gateway haproxy-sync`: HAProxy's servers are the nodes of the registry, as they come and go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.core.haproxy_slots import UNUSED_ADDRESS
from tests.conftest import Connect
from tests.kit.client import new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import NAMESPACE
from tests.kit.process import ROOT, Process, clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

SLOTS = 4
Start = Callable[..., Process]


@pytest.fixture
def balancer(folder: Path) -> Iterator[LoadBalancer]:
    """HAProxy with slots, all of them free."""
    (folder / "lb").mkdir()
    with LoadBalancer([], folder / "lb", GW_SLOTS=SLOTS) as balancer:
        yield balancer


def command(balancer: LoadBalancer, *options: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "gateway", "haproxy-sync", "--socket", str(balancer.socket), *options]


def environment(redis: Redis) -> dict[str, str]:
    """The cluster's."""
    return clean_environment() | {"GATEWAY_REDIS_URL": redis.url, "GATEWAY_NAMESPACE": NAMESPACE}


@pytest.fixture
def sync(balancer: LoadBalancer, redis: Redis, folder: Path) -> Iterator[Start]:
    """`sync(patience=2)`: runs beside `balancer`."""
    with ExitStack() as stack:

        def start(patience: float = 60) -> Process:
            words = command(balancer, "--interval", "0.2", "--patience", str(patience))
            process = Process("haproxy-sync", words, folder / "sync.log", environment(redis))
            stack.callback(process.close)
            process.spawn()
            return process

        yield start


def once(balancer: LoadBalancer, redis: Redis) -> subprocess.CompletedProcess[str]:
    """One pass."""
    return subprocess.run(
        command(balancer, "--once"), env=environment(redis), cwd=ROOT, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip


def led(balancer: LoadBalancer) -> dict[str, str]:
    """Where each slot leads that is not free."""
    rows = {name: row["addr"] for name, row in balancer.servers().items() if name != "BACKEND"}
    return {name: address for name, address in rows.items() if address != UNUSED_ADDRESS}


def up(balancer: LoadBalancer) -> set[str]:
    """Addresses of the servers that HAProxy has checked and found up."""
    rows = [row for name, row in balancer.servers().items() if name != "BACKEND"]
    return {row["addr"] for row in rows if row["status"] == "UP" and row["check_status"] == "L7OK"}


async def test_nodes_get_clients_as_they_come(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, sync: Start, connect: Connect
) -> None:
    nodes = cluster(2)
    running = sync()
    until(lambda: up(balancer) == {node.address for node in nodes})
    assert {(await connect(balancer, source=new_source())).node for _ in range(8)} == {"n1", "n2"}
    before = led(balancer)
    nodes.grow(1)
    until(lambda: up(balancer) == {node.address for node in nodes})
    assert before.items() <= led(balancer).items()
    running.terminate()
    assert running.exit_code() == 0


async def test_a_cookie_does_not_depend_on_the_server_slots(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, redis: Redis, folder: Path, connect: Connect
) -> None:
    nodes = cluster(3)
    assert once(balancer, redis).returncode == 0
    (folder / "other").mkdir()
    with LoadBalancer(nodes[::-1], folder / "other") as other:
        for _ in range(4):
            jar: dict[str, str] = {}
            node = (await connect(balancer, source=new_source(), cookies=jar)).node
            assert (await connect(other, source=new_source(), cookies=jar)).node == node
        source = new_source()
        node = (await connect(balancer, source=source)).node
        assert {(await connect(balancer, source=source)).node for _ in range(3)} == {node}


def test_one_pass_does_all_there_is_to_do_and_the_next_nothing(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, redis: Redis
) -> None:
    nodes = cluster(2)
    first, second = once(balancer, redis), once(balancer, redis)
    assert (first.returncode, first.stderr) == (0, "")
    assert [line.partition(" leads to ")[0] for line in first.stdout.splitlines()] == ["slot1", "slot2"]
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert set(led(balancer).values()) == {node.address for node in nodes}


def test_impossible_options_fail_with_a_message(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, redis: Redis
) -> None:
    cluster(SLOTS + 1)
    made = once(balancer, redis)
    assert made.returncode == 1
    assert f"no slot of {SLOTS} is free for n{SLOTS + 1}." in made.stderr
    assert len(led(balancer)) == SLOTS
    redis.kill()
    assert once(balancer, redis).stderr.startswith("Redis: ")
    assert len(led(balancer)) == SLOTS
    balancer.kill()
    redis.start()
    assert once(balancer, redis).stderr.startswith(f"HAProxy at {balancer.socket}: ")


async def test_a_dead_nodes_slot_is_free_after_a_while_and_its_address_is_taken_up_again(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, sync: Start, connect: Connect
) -> None:
    nodes = cluster(2, lease_seconds=1)
    sync(patience=3)
    until(lambda: up(balancer) == {node.address for node in nodes})
    slots = led(balancer)
    nodes[0].kill()
    until(lambda: balancer.down(nodes[0]))
    assert led(balancer) == slots, "down, and not yet for long"
    until(lambda: set(led(balancer).values()) == {nodes[1].address})
    assert {(await connect(balancer, source=new_source())).node for _ in range(3)} == {"n2"}
    nodes[0].start()
    until(lambda: up(balancer) == {node.address for node in nodes}, 30)


async def test_a_node_that_restarts_keeps_its_slot(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, sync: Start
) -> None:
    nodes = cluster(2, lease_seconds=1)
    running = sync()
    until(lambda: up(balancer) == {node.address for node in nodes})
    slots, said = led(balancer), running.log()
    nodes[0].restart()  # HAProxy may find it away or not, as quick as it is
    until(lambda: up(balancer) == {node.address for node in nodes}, 30)
    assert (led(balancer), running.log()) == (slots, said)


async def test_redis_away_changes_nothing(
    cluster: Callable[..., Cluster], redis: Redis, balancer: LoadBalancer, sync: Start, connect: Connect
) -> None:
    nodes = cluster(2, lease_seconds=1)
    running = sync(patience=0)
    until(lambda: up(balancer) == {node.address for node in nodes})
    slots = led(balancer)
    client = await connect(balancer)
    redis.kill()
    until(lambda: any(line.startswith("Redis: ") for line in running.log()))
    until(lambda: all(balancer.down(node) for node in nodes))
    assert led(balancer) == slots
    redis.start()
    # Redis is back but empty: the nodes are unregistered, and down, until they renew their leases.
    until(lambda: up(balancer) == {node.address for node in nodes}, 30)
    assert client.open


async def test_what_is_in_maintenance_by_hand_stays_so(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, sync: Start
) -> None:
    nodes = cluster(2)
    running = sync(patience=0)
    until(lambda: up(balancer) == {node.address for node in nodes})
    [slot] = [name for name, address in led(balancer).items() if address == nodes[0].address]
    balancer.ask(f"set server gw/{slot} state maint")
    nodes.grow(1)
    until(lambda: up(balancer) == {nodes[1].address, nodes[2].address})
    assert balancer.servers()[slot]["status"] == "MAINT"
    assert led(balancer)[slot] == nodes[0].address
    assert running.alive


async def test_a_frozen_node_that_lost_its_slot_keeps_its_sockets(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, sync: Start, connect: Connect
) -> None:
    nodes = cluster(2, lease_seconds=1)
    sync(patience=1)
    until(lambda: up(balancer) == {node.address for node in nodes})
    client = await connect(balancer)
    node = next(node for node in nodes if node.name == client.node)
    node.freeze()
    try:
        until(lambda: node.address not in led(balancer).values(), 30)
    finally:
        node.thaw()
    until(lambda: up(balancer) == {node.address for node in nodes}, 30)
    assert client.open
    assert (await client.subscribe("still-served"))["operation"] == "subscribe"


async def test_after_a_reload_the_slots_lead_where_they_led(
    cluster: Callable[..., Cluster], balancer: LoadBalancer, sync: Start, connect: Connect
) -> None:
    nodes = cluster(2)
    running = sync()
    until(lambda: up(balancer) == {node.address for node in nodes})
    slots = led(balancer)
    state = balancer.socket.with_suffix(".state")
    until(lambda: all(f" {node.port} " in state.read_text() for node in nodes))
    jar: dict[str, str] = {}
    first = await connect(balancer, cookies=jar)
    running.freeze()  # the sync process cannot act after the reload
    [worker] = balancer.process.children()
    balancer.reload()
    await eventually(lambda: set(balancer.process.children()) - {worker})
    for _ in range(10):
        assert (await connect(balancer, cookies=jar, source=new_source())).node == first.node
    until(lambda: up(balancer) == {node.address for node in nodes})
    assert led(balancer) == slots
    running.thaw()
