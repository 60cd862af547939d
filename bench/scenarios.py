"""The scenarios. Each is a function of a new lab and a contender, and returns the figures of one round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import orjson

from bench.contenders import (
    ALL,
    CENTRIFUGO,
    GATEWAY,
    LIMIT,
    OUR_CENTRIFUGO,
    PRICED,
    PYTHON_SOCKETIO,
    SOCKETIO,
    STAMP,
    STARLETTE,
    WS,
    Contender,
)
from bench.figures import Round
from bench.lab import Lab, Server, delivery
from bench.machine import LOAD_CORE, SERVER_CORE, cpu_seconds, memory_kb
from tests.kit.node import API_KEY
from tests.kit.waiting import until

BEATS_SECONDS: Final = 6.0  # covers several heartbeats, also with QUICK=1
SETTLE_SECONDS: Final = 3.0  # a node that has just started reads and writes more than an idle one
BATCH: Final = 100  # messages in a request
HEADERS: Final = {"Authorization": f"Bearer {API_KEY}"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario and its contenders; `measure` gets the share of the full size."""

    name: str
    title: str
    contenders: Sequence[Contender]
    measure: Callable[[Lab, Contender, float], Round]


def paced(lab: Lab, contender: Contender, share: float) -> Round:
    """Cost of a message to all subscribers under paced load."""
    clients = int(1000 * share)
    server = lab.start(contender)
    lab.connect(server, clients)
    return delivery(lab.publish(server, fan=clients, rate=100, drain=0 if contender is PYTHON_SOCKETIO else 3))


def saturation(lab: Lab, contender: Contender, share: float) -> Round:
    """Saturation: always 500 messages in flight."""
    clients = int(1000 * share)
    server = lab.start(contender)
    lab.connect(server, clients)
    answer = lab.publish(server, fan=clients, drain=0)
    return {**delivery(answer), "deliveries per CPU second": answer["received"] / max(0.001, answer["server_cpu"])}


def several(lab: Lab, contender: Contender, share: float) -> Round:
    """Each client subscribes to five topics, at saturation: the hub joins messages of several topics."""
    clients, many = int(500 * share), 5
    server = lab.start(contender)
    lab.connect(server, clients, script=contender.script_of('","'.join(f"t{number:05}" for number in range(many))))
    return delivery(lab.publish(server, fan=clients, topics=many, drain=0))


def topics(lab: Lab, contender: Contender, share: float) -> Round:
    """Each message goes to one client: the cost of a message. First under paced load, then at saturation."""
    clients = int(10_000 * share)
    server = lab.start(contender)
    lab.connect(server, clients, topics=clients)
    paced = delivery(lab.publish(server, fan=1, topics=clients, rate=2000))
    fast = delivery(lab.publish(server, fan=1, topics=clients, drain=0))
    return {
        "CPU us per message": fast["CPU us per delivery"],
        "messages/s": fast["deliveries/s"],
        "server core": fast["server core"],
        "load core": fast["load core"],
        "others' core": fast["others' core"],
        "CPU us per message, 2,000/s": paced["CPU us per delivery"],
        "p50 ms, 2,000/s": paced["p50 ms"],
        "p99 ms, 2,000/s": paced["p99 ms"],
    }


def storm(lab: Lab, contender: Contender, share: float) -> Round:
    """All clients connect at once, then are idle."""
    clients = int(10_000 * share)
    server = lab.start(contender)
    if contender is GATEWAY:
        lab.idle(server, SETTLE_SECONDS)
    empty = _idle(lab, server) if contender is GATEWAY else {}
    memory, stats, began = server.memory_kb(), lab.redis_stats(), time.monotonic()
    connected = _storm(lab, server, clients)
    after, seconds = lab.redis_stats(), time.monotonic() - began
    # Subtract the node's periodic round trips, which do not depend on clients.
    trips = after["round trips"] - stats["round trips"] - empty.get("idle Redis round trips/s", 0) * seconds
    full = _idle(lab, server) if contender is GATEWAY else {}
    lab.idle(server, 1)  # let the node free the storm's memory
    return {
        **connected,
        "KB per connection": (server.memory_kb() - memory) / clients,
        "Redis commands per client": (after["commands"] - stats["commands"]) / clients,
        "Redis round trips per 100": 100 * trips / clients,
        **{f"{metric}, empty": value for metric, value in empty.items()},
        **{f"{metric}, full": value for metric, value in full.items()},
    }


def storm_haproxy(lab: Lab, contender: Contender, share: float) -> Round:
    """All clients connect at once through HAProxy."""
    return _storm(lab, lab.start(contender, haproxy=True), int(5000 * share))


def _storm(lab: Lab, server: Server, clients: int) -> Round:
    """Connects all clients at once. On our node the storm ends when Redis lists all of them."""
    cpu = cpu_seconds(server.pids)
    answer = lab.connect(server, clients, parallel=1000)
    if server.contender is GATEWAY:
        until(lambda: _registered(lab) == clients, 20, "Redis lists all clients")
    used = max(0.001, cpu_seconds(server.pids) - cpu)
    return {
        "connects/s": clients / answer["seconds"],
        "connects per CPU second": clients / used,
        "CPU us per connect": 1e6 * used / clients,
        "load core": answer["load_cpu"] / answer["seconds"],
    }


def _idle(lab: Lab, server: Server) -> Round:
    before = lab.redis_stats()
    answer = lab.idle(server, BEATS_SECONDS)
    after = lab.redis_stats()
    return {
        "idle Redis commands/s": (after["commands"] - before["commands"]) / BEATS_SECONDS,
        "idle Redis round trips/s": (after["round trips"] - before["round trips"]) / BEATS_SECONDS,
        "idle CPU ms/s": 1000 * answer["server_cpu"] / BEATS_SECONDS,
    }


def _registered(lab: Lab) -> int:
    return sum(lab.ask_redis("HLEN", key) for key in lab.ask_redis("KEYS", "*}:clients"))


def recovery(lab: Lab, contender: Contender, share: float) -> Round:
    """All clients disconnect and return to a topic with history, at fifty different positions."""
    clients, spread = int(5000 * share), 50
    server = lab.start(contender)
    lab.connect(server, clients, topic="h00000")
    stamped = {"at": "0" * len(STAMP), "pad": "x" * 80}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.front}", headers=HEADERS, trust_env=False) as api:
        api.post("/api/publish", json={"messages": [{"topic": "h00000", "data": stamped}] * 100}).raise_for_status()
        position = api.get("/api/topics/h00000/history", params={"limit": 1}).raise_for_status().json()
    lab.load.ask("close", 5)
    recover = {"h00000": {"epoch": position["epoch"], "offset": "PLACE"}}
    asked = {"type": "SUBSCRIBE", "topics": ["h00000"], "requestId": "1", "recover": recover}
    script = b"> " + orjson.dumps(asked).replace(b'"PLACE"', b"{place}") + b'\n< "recovered":true\n'
    cpu = cpu_seconds(server.pids)
    answer = lab.connect(server, clients, script=script, parallel=1000, place=position["offset"], spread=spread)
    missed = sum(number % spread for number in range(clients))
    assert answer["received"] == missed, f"{missed} messages were missed, {answer['received']} recovered"
    return {
        "clients/s": clients / answer["seconds"],
        "messages recovered/s": missed / answer["seconds"],
        "CPU us per client": 1e6 * (cpu_seconds(server.pids) - cpu) / clients,
    }


def publishing(lab: Lab, contender: Contender, share: float) -> Round:  # noqa: ARG001  (few connections are enough)
    """Publish rate of one node: over HTTP, in batches and over WebSocket without subscribers, then with one."""
    server = lab.start(contender)
    figures: dict[str, float] = {}
    for topic, kept in (("t00000", ""), ("h00000", ", history")):
        figures |= _published(lab, server, f"HTTP publish{kept}", "http", contender.request(topic))
        batch = contender.request(topic, BATCH)
        figures |= _published(lab, server, f"batched message{kept}", "http", batch, messages=BATCH)
        script = contender.script_of("t00001")
        figures |= _published(lab, server, f"socket publish{kept}", "ws", contender.publish_text(topic), 64, script)
    lab.connect(server, 1, topic="t00000")
    return figures | _published(lab, server, "HTTP publish, one subscriber", "http", contender.request("t00000"))


def _published(
    lab: Lab, server: Server, what: str, via: str, template: bytes, publishers: int = 32, script: bytes = b"",
    messages: int = 1,
) -> dict[str, float]:  # fmt: skip
    answer = lab.publish_through(server, via, template, publishers, script)
    assert not answer["refused"], f"{answer['refused']} requests were rejected"
    assert answer["answered"], f"no request was answered in {answer['seconds']:.1f} s: {what}"
    published = answer["answered"] * messages
    return {
        f"{what}, per second": answer["answered"] * messages / answer["seconds"],
        f"CPU us per {what}": 1e6 * answer["server_cpu"] / published,
        f"Redis CPU us per {what}": 1e6 * answer["beside_cpu"] / published,
    }


def two_cores(lab: Lab, contender: Contender, share: float) -> Round:  # noqa: ARG001  (few connections are enough)
    """HTTP publishes to one node, then to two nodes on a core each."""
    figures: dict[str, float] = {}
    for nodes in (1, 2):
        server = lab.start(contender, nodes=nodes, cores=(SERVER_CORE, LOAD_CORE))
        what = f"HTTP publish, {nodes} node{'s' * (nodes > 1)}"
        figures |= _published(lab, server, what, "http", contender.request("t00000"), 32 * nodes)
    return figures


def haproxy(lab: Lab, contender: Contender, share: float) -> Round:
    """Delay for 500 clients of two nodes behind HAProxy, 50 messages a second."""
    clients = int(500 * share)
    server = lab.start(contender, nodes=2, haproxy=True)
    lab.connect(server, clients)
    seconds = 2 * lab.seconds
    return delivery(lab.publish(server, fan=clients, rate=50, seconds=seconds, drain=3))


def beside(lab: Lab, contender: Contender, share: float) -> Round:
    """Costs of HAProxy and Redis; docs/how-to/scale.md uses them."""
    clients = int(2000 * share)
    server = lab.start(contender, nodes=2, haproxy=True)
    memory, rows = memory_kb(server.beside), lab.redis_bytes()
    lab.connect(server, clients)
    until(lambda: _registered(lab) == clients, 20, "Redis lists all clients")
    figures = {
        "HAProxy KB per connection": (memory_kb(server.beside) - memory) / clients,
        "Redis bytes per client": (lab.redis_bytes() - rows) / clients,
    }
    balanced = lab.publish(replace(server, pids=server.beside), fan=clients, rate=25_000 / clients)
    figures["HAProxy CPU us per delivery"] = 1e6 * balanced["server_cpu"] / max(1, balanced["received"])
    lab.load.ask("close", 5)
    for nodes in (1, 4):
        server = lab.start(contender, nodes=nodes)
        lab.connect(server, nodes, ports=server.ports)
        relayed = replace(server, pids=(lab.redis.process.pid,))
        answer = lab.publish(relayed, fan=nodes, rate=500, seconds=2 * lab.seconds)
        # Each node receives each message once.
        figures[f"Redis CPU us per message, {nodes} nodes"] = (
            1e6 * answer["server_cpu"] * nodes / max(1, answer["received"])
        )
        lab.load.ask("close", 5)
    return figures


def presence(lab: Lab, contender: Contender, share: float) -> Round:
    """A topic with presence: every member is notified of every join."""
    clients = int(5000 * share)
    server = lab.start(contender)
    cpu = cpu_seconds(server.pids)
    answer = lab.connect(server, clients, topic="p00000", parallel=1000)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.front}", headers=HEADERS, trust_env=False, timeout=20) as api:

        def members() -> Any:
            return api.get("/api/topics/p00000/presence").raise_for_status().json()["count"]

        until(lambda: members() == clients, 20, "all clients are members")
    used = cpu_seconds(server.pids) - cpu
    figures = {"joins/s": clients / answer["seconds"], "CPU us per join": 1e6 * used / clients}
    return figures | dict(delivery(lab.publish(server, topic="p00000", fan=clients, rate=10)))


def stalled(lab: Lab, contender: Contender, share: float) -> Round:
    """One of many clients stops reading: the effect on the others."""
    clients = int(1000 * share)
    server = lab.start(contender, client_buffer_bytes=64 << 10, max_message_bytes=64 << 10)
    lab.connect(server, clients, stall=1)
    seconds = 3 * lab.seconds
    figures = delivery(lab.publish(server, fan=clients - 1, rate=100, size=4000, seconds=seconds, drain=0))
    expected = 100 * (clients - 1)
    return {"delivered of what was published": figures["deliveries/s"] / expected, **figures}


def compression(lab: Lab, contender: Contender, share: float) -> Round:
    """Prices to clients without and with permessage-deflate, from one node with compression."""
    clients = int(1000 * share)
    server = replace(lab.start(contender, compression=1), contender=PRICED)
    figures: dict[str, float] = {}
    for size in (1000, 2000, 4000):
        for deflate, how in ((0, "plain"), (1, "compressed")):
            lab.connect(server, clients, deflate=deflate)
            answer = lab.publish(server, fan=clients, rate=50, size=size, drain=10)
            assert not answer["lost"], f"{answer['lost']} deliveries were lost"
            found, received = delivery(answer), max(1, answer["received"])
            figures[f"CPU us per delivery, {size // 1000} KB {how}"] = found["CPU us per delivery"]
            figures[f"bytes per delivery, {size // 1000} KB {how}"] = answer["received_bytes"] / received
            figures["others' core"] = max(found["others' core"], figures.get("others' core", 0))
            lab.load.ask("close", 5)
    return figures


def _sized(clients: int, rate: float, *, many: int = 1, nodes: int = 1) -> Callable[[Lab, Contender, float], Round]:
    def measure(lab: Lab, contender: Contender, share: float) -> Round:
        here = max(many if many < 1000 else 1, int(clients * share))
        topics = min(many, here)
        server = lab.start(contender, nodes=nodes)
        lab.connect(server, here, topics=topics, ports=server.ports)
        return delivery(lab.publish(server, fan=here / topics, topics=topics, rate=rate))

    return measure


OURS: Final = (GATEWAY,)
RIVALS: Final = (GATEWAY, CENTRIFUGO)  # with the same API, over HTTP and WebSocket
DELIVERING: Final = (*ALL, OUR_CENTRIFUGO)
BOUNDED: Final = (GATEWAY, LIMIT)  # where the kernel determines the figure, the C program is measured too
SCENARIOS: Final = (
    Scenario("paced", "1,000 subscribers, 100 messages of 200 bytes a second", DELIVERING, paced),
    Scenario("saturation", "1,000 subscribers, at saturation", DELIVERING, saturation),
    Scenario("several", "500 clients with five topics each, at saturation", OURS, several),
    Scenario(
        "topics", "10,000 topics with one subscriber each", (GATEWAY, CENTRIFUGO, STARLETTE, WS, SOCKETIO), topics
    ),
    Scenario(
        "storm",
        "10,000 connects with SUBSCRIBE, then idle",
        (GATEWAY, CENTRIFUGO, STARLETTE, WS, SOCKETIO, PYTHON_SOCKETIO),
        storm,
    ),
    Scenario("storm-haproxy", "5,000 connects with SUBSCRIBE through HAProxy", RIVALS, storm_haproxy),
    Scenario("recovery", "5,000 clients return to a topic with history", OURS, recovery),
    Scenario("publishing", "publish rate of one node", RIVALS, publishing),
    Scenario("two-cores", "publish rate of two nodes on two cores", OURS, two_cores),
    Scenario(
        "haproxy",
        "two nodes behind HAProxy, 500 clients, 50 messages a second",
        ALL,
        haproxy,
    ),
    Scenario("beside", "costs of HAProxy and Redis", OURS, beside),
    Scenario("presence", "a topic with presence and 5,000 clients", OURS, presence),
    Scenario(
        "stalled", "one of 1,000 clients stops reading, 100 messages of 4 KB a second", (GATEWAY, STARLETTE), stalled
    ),
    Scenario("compression", "1,000 subscribers, 50 messages of prices a second", OURS, compression),
    Scenario("subscribers-100", "100 subscribers, 50,000 deliveries a second", BOUNDED, _sized(100, 500)),
    Scenario("subscribers-1000", "1,000 subscribers, 50,000 deliveries a second", BOUNDED, _sized(1000, 50)),
    Scenario("subscribers-10000", "10,000 subscribers, 50,000 deliveries a second", BOUNDED, _sized(10_000, 5)),
    Scenario("topics-10", "1,000 subscribers of 10 topics, 500 messages a second", OURS, _sized(1000, 500, many=10)),
    Scenario(
        "nodes-2", "1,000 subscribers of 2 nodes on one core, 50 messages a second", OURS, _sized(1000, 50, nodes=2)
    ),
    Scenario("nodes-4", "the same with 4 nodes", OURS, _sized(1000, 50, nodes=4)),
    Scenario("nodes-8", "the same with 8 nodes", OURS, _sized(1000, 50, nodes=8)),
)
BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}
