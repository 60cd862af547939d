"""gateway.js in a real browser, through the real load balancer: pages survive faults of the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page

from tests.browser.visitor import Visitor
from tests.kit.client import Api
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import Node, token
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

Start = Callable[..., Cluster]
Balancers = Callable[..., LoadBalancer]

LONG = 60.0  # s, for what takes several reconnects on a busy machine

RULES = """
[[topic]]
pattern = "kept*"
history = 1000

[[topic]]
pattern = "secret"
subscribe = "user"
"""

PAGE = """<!doctype html>
<title>Twenty lines</title>
<script type="module">
  import { Gateway } from "/gateway.js";
  const gateway = new Gateway("/ws", window.token && { getToken: () => window.token() });
  window.gateway = gateway;
  window.received = [];
  window.gaps = [];
  window.states = [];
  window.said = [];
  const seen = () => ({ node: gateway.node, at: performance.now() });
  gateway.addEventListener("state", ({ detail }) => states.push({ ...detail, ...seen() }));
  gateway.addEventListener("system", ({ detail }) => said.push(detail));
  gateway.subscribe("kept", {
    onData: ({ data }) => received.push(data),
    onGap: ({ reason }) => gaps.push(reason),
    onState: (state, error) => { window.subscription = state; window.error = error?.message; },
  });
  gateway.connect().catch((error) => { window.refused = error.message; });
</script>
"""

# From docs/reference/protocol.md alone, without any library.
PLAIN = """<!doctype html>
<title>Fifteen lines</title>
<script>
  const [received, topic] = [[], "kept"];
  let last = null;
  function connect() {
    const socket = new WebSocket(`ws://${location.host}/ws`);
    socket.onopen = () => socket.send(JSON.stringify(
      { type: "SUBSCRIBE", topics: [topic], requestId: "1", ...(last && { recover: { [topic]: last } }) }));
    socket.onmessage = ({ data }) => {
      const { type, data: value, epoch, offset, positions } = JSON.parse(data);
      if (type === "ACKNOWLEDGMENT") last ??= positions[topic];
      if (type !== "DATA" || (epoch === last?.epoch && offset <= last.offset)) return;
      last = { epoch, offset };
      received.push(value);
    };
    socket.onclose = ({ code }) => code >= 3500 && code < 4000 || setTimeout(connect, 1000 + 2000 * Math.random());
  }
  connect();
</script>
"""


@pytest.fixture
def redis(folder: Path) -> Any:
    """A private redis-server that keeps what it has over a restart."""
    with Redis(folder, aof=True, fsync="always") as server:
        yield server


@pytest.fixture
def rules(folder: Path) -> Path:
    """Topic rules."""
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


class Publisher:
    """Publishes 0, 1, 2, … on the topic, each until some node has taken it."""

    def __init__(self, nodes: Cluster) -> None:
        self.count = 0
        self._apis = [Api(node) for node in nodes]

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Publish meanwhile."""
        done = asyncio.Event()
        task = asyncio.create_task(self._publish(done))
        try:
            yield
        finally:
            done.set()
            await task
            await asyncio.gather(*(api.close() for api in self._apis))

    async def more(self, count: int) -> None:
        """Wait until so many more were taken."""
        wanted = self.count + count
        await eventually(lambda: self.count >= wanted, LONG, f"{count} more were published")

    async def _publish(self, done: asyncio.Event) -> None:
        at = 0
        while not done.is_set():
            message = {"topic": "kept", "data": self.count, "idempotencyKey": f"k{self.count}"}
            try:
                answer = await self._apis[at % len(self._apis)].http.post("/api/publish", json=message, timeout=2)
                taken = answer.status_code == 200
            except httpx.HTTPError:
                taken = False
            self.count += taken
            at += not taken
            await asyncio.sleep(0.02)


async def subscribed(page: Page) -> None:
    """Wait until its topic is subscribed."""
    await eventually(lambda: page.evaluate("window.subscription === 'subscribed'"), LONG, "the page hears its topic")


async def has_all(page: Page, count: int) -> None:
    """Wait for the last of `count` numbers, then check that the page received each once and in order."""
    await eventually(
        lambda: page.evaluate("n => received.includes(n)", count - 1), LONG, f"the page has received {count - 1}"
    )
    assert await page.evaluate("received") == list(range(count))


async def state(page: Page) -> str:
    """What its connection is doing."""
    found: str = await page.evaluate("gateway.state")
    return found


async def node_of(page: Page, nodes: Cluster) -> Node:
    """The node that serves it."""
    name = await page.evaluate("gateway.node")
    return next(node for node in nodes if node.name == name)


async def is_on(page: Page, node: Node) -> None:
    """Wait until `node` serves it."""
    await eventually(lambda: page.evaluate("name => gateway.node === name", node.name), LONG, f"it is on {node.name}")


def is_back(node: Node, front: LoadBalancer) -> None:
    """Wait until `node` is ready, and HAProxy knows."""
    until(node.ready, 60, f"{node.name} is ready")
    until(lambda: front.up(node), 30, f"HAProxy has found {node.name} up")


async def restart_all(nodes: Cluster, front: LoadBalancer) -> None:
    """A rolling restart: each node leaves when the one before is back."""
    for node in nodes:
        await asyncio.to_thread(node.restart)
        await asyncio.to_thread(is_back, node, front)


@pytest.mark.parametrize("html", [PAGE, PLAIN], ids=["gateway.js", "plain WebSocket"])
async def test_a_small_page_loses_nothing_to_a_killed_node_a_redis_restart_and_a_rolling_restart(
    cluster: Start, haproxy: Balancers, browser: Browser, redis: Redis, rules: Path, html: str
) -> None:
    nodes = cluster(3, topics=rules, drain_seconds=1, lease_seconds=3)
    front = haproxy(nodes.nodes, RL_REQ=4000)
    visitor = await Visitor.open(browser, front, "/mine", html=html)
    page = visitor.page
    place = "window.subscription === 'subscribed'" if html is PAGE else "last !== null"
    await eventually(lambda: page.evaluate(place), LONG, "the page hears its topic")
    publisher = Publisher(nodes)
    async with publisher.at_work():
        await publisher.more(20)
        for node in [await node_of(page, nodes)] if html is PAGE else list(nodes)[:2]:
            node.kill()
            await publisher.more(50)
            node.start()
            await asyncio.to_thread(is_back, node, front)
        redis.stop()
        redis.start()
        await publisher.more(50)
        await restart_all(nodes, front)
    await has_all(page, publisher.count)
    if html is PAGE:
        assert await page.evaluate("gaps") == []
    visitor.failed_loads(503)  # while Redis was away no node was ready
    assert visitor.faults == []


async def test_a_drain_moves_a_page_after_the_nodes_delay(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path
) -> None:
    nodes = cluster(2, topics=rules, drain_seconds=1)
    front = haproxy(nodes.nodes)
    page = (await Visitor.open(browser, front, "/mine", html=PAGE)).page
    await subscribed(page)
    home = await node_of(page, nodes)
    publisher = Publisher(nodes)
    async with publisher.at_work():
        home.terminate()
        await eventually(
            lambda: page.evaluate("states.filter(({ state }) => state === 'connected').length === 2"), LONG
        )
    waiting, again = await page.evaluate(
        "[states.find(({ state }) => state === 'waiting'), states.findLast(({ state }) => state === 'connected')]"
    )
    [sent] = await page.evaluate("said.filter(({ action }) => action === 'shutdown')")
    assert (waiting["code"], waiting["waitMs"]) == (3001, sent["reconnectMs"])
    assert again["at"] - waiting["at"] < sent["reconnectMs"] + 5_000
    assert again["node"] != home.name
    await has_all(page, publisher.count)
    assert await page.evaluate("gaps") == []
    assert await asyncio.to_thread(home.process.exit_code) == 0


async def test_a_token_is_replaced_before_it_ends_and_a_bad_one_ends_it(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path
) -> None:
    front = haproxy(cluster(1, topics=rules).nodes)
    given: list[str] = []

    def fresh() -> str:
        given.append(token("ann", seconds=6) if len(given) < 4 else "rubbish")
        return given[-1]

    context = await browser.new_context()
    await context.expose_function("token", fresh)
    page = await context.new_page()
    await page.route(f"{front.url}/mine", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
    await page.goto(f"{front.url}/mine")
    await subscribed(page)
    await eventually(lambda: len(given) == 4, LONG)
    assert await page.evaluate("states.map(({ state }) => state)") == ["connecting", "connected", "authenticated"]
    # From now on every token is bad: the last good one ends, and with it the connection, for good.
    await eventually(lambda: page.evaluate("gateway.state === 'closed'"), LONG)
    assert await page.evaluate("[states.at(-1).code, states.at(-1).reason]") == [4401, "token_invalid"]
    assert await page.evaluate("subscription") == "ended"


async def test_a_page_that_goes_offline_comes_back_with_the_network(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path
) -> None:
    nodes = cluster(1, topics=rules)
    front = haproxy(nodes.nodes)
    visitor = await Visitor.open(browser, front, "/mine", html=PAGE)
    page = visitor.page
    await subscribed(page)
    publisher = Publisher(nodes)
    async with publisher.at_work():
        await publisher.more(10)
        await visitor.context.set_offline(True)
        await page.evaluate("gateway.reconnect()")  # Chromium's emulation leaves open sockets alone
        await eventually(lambda: page.evaluate("states.filter(({ state }) => state === 'waiting').length >= 3"), LONG)
        assert await page.evaluate("subscription") == "pending"
        await visitor.context.set_offline(False)  # the browser notifies the page, which reconnects at once
        await eventually(lambda: page.evaluate("subscription === 'recovered'"), LONG)
    await has_all(page, publisher.count)
    assert await page.evaluate("gaps") == []


async def test_a_page_leaves_a_node_that_no_longer_answers_when_the_network_changes(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path
) -> None:
    nodes = cluster(2, topics=rules)
    page = (await Visitor.open(browser, haproxy(nodes.nodes), "/mine", html=PAGE)).page
    await subscribed(page)
    home = await node_of(page, nodes)
    home.freeze()
    try:
        await page.evaluate("dispatchEvent(new Event('online'))")
        await eventually(lambda: page.evaluate("name => gateway.node !== name", home.name), LONG)
        await eventually(lambda: page.evaluate("subscription === 'recovered'"), LONG)
    finally:
        home.thaw()


async def test_fifty_tabs_lose_nothing_to_a_killed_node(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path
) -> None:
    nodes = cluster(2, topics=rules)
    front = haproxy(nodes.nodes, RL_REQ=4000, RL_CONN=4000, RL_CUR=1000)
    profiles = [await browser.new_context() for _ in range(5)]
    pages = []
    for profile in profiles:
        await profile.route(f"{front.url}/mine", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        for _ in range(10):
            page = await profile.new_page()
            await page.goto(f"{front.url}/mine")
            pages.append(page)
    for page in pages:
        await subscribed(page)
    publisher = Publisher(nodes)
    async with publisher.at_work():
        await publisher.more(10)
        (await node_of(pages[0], nodes)).kill()
        await publisher.more(30)
        survivor = next(node for node in nodes if node.process.alive)
        for page in pages:
            await is_on(page, survivor)
    for page in pages:
        await has_all(page, publisher.count)
        assert await page.evaluate("gaps") == []
    # Who lost its node came back by a wait of its own, not in step.
    waits = [await page.evaluate("states.find(({ state }) => state === 'waiting')?.waitMs") for page in pages]
    moved = [wait for wait in waits if wait is not None]
    assert len(set(moved)) == len(moved) >= 10


async def test_the_classic_script_is_the_same_client(plain: Cluster, front: LoadBalancer, browser: Browser) -> None:
    html = """<!doctype html><title>Classic</title><script src="/gateway.classic.js"></script>
    <script>window.ready = (window.client = new gateway.Gateway("/ws")).connect();</script>"""
    visitor = await Visitor.open(browser, front, "/mine", html=html)
    await visitor.page.evaluate("ready")
    assert await visitor.page.evaluate("client.node") in {node.name for node in plain}
    assert visitor.faults == []


async def test_a_page_of_another_host_loads_the_module(plain: Cluster, front: LoadBalancer, browser: Browser) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    await page.route(
        "http://elsewhere.test/", lambda route: route.fulfill(body="<title>x</title>", content_type="text/html")
    )
    await page.goto("http://elsewhere.test/")
    assert await page.evaluate(f"import('{front.url}/gateway.js').then(it => typeof it.Gateway)") == "function"
