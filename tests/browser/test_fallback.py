"""gateway.js behind proxies that break WebSockets: it uses Server-Sent Events or long polling instead."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.browser.test_gateway_js import (
    LONG,
    PAGE,
    Balancers,
    Publisher,
    Start,
    has_all,
    node_of,
    redis,
    restart_all,
    rules,
    subscribed,
)
from tests.browser.visitor import Visitor
from tests.kit.client import Api
from tests.kit.load_balancer import LoadBalancer
from tests.kit.process import Closing, Process, clean_environment, free_port, program
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

__all__ = ["redis", "rules"]  # fixtures

# What an office's proxy does to what it does not know.
CONFIG = """
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend office
  bind 127.0.0.1:{port}
  {refusals}
  default_backend internet
backend internet
  server there {there}
"""
NO_UPGRADE = "http-request deny status 400 if { req.hdr(Upgrade) -m found }"
NO_EVENTS = "http-request deny status 403 if { path /sse }"
# It says nothing until the answer is whole, which it never is.
HELD_EVENTS = "http-request tarpit if { path /sse }\n  timeout tarpit 1h"


class Proxy(Closing):
    """A proxy on the way to `front`, which refuses some of what goes through it."""

    def __init__(self, front: LoadBalancer, folder: Path, *refusals: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._there = front.url.removeprefix("http://")
        self._file = folder / "proxy.cfg"
        command = [program("haproxy"), "-db", "-f", str(self._file)]
        self.process = Process("proxy", command, folder / "proxy.log", clean_environment())
        self._start(*refusals)

    def restart(self, *refusals: str) -> None:
        """Cut all connections, and refuse something else from now on."""
        self.process.kill()
        self._start(*refusals)

    def _start(self, *refusals: str) -> None:
        self._file.write_text(CONFIG.format(port=self.port, refusals="\n  ".join(refusals), there=self._there))
        self.process.spawn()
        until(self._listens, what="the proxy listens")

    def _listens(self) -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """End it."""
        self.process.close()


@pytest.fixture
def proxy(folder: Path) -> Iterator[Callable[..., Proxy]]:
    """`proxy(front, NO_UPGRADE)`: one of these on the way."""
    started: list[Proxy] = []

    def start(front: LoadBalancer, *refusals: str) -> Proxy:
        started.append(Proxy(front, folder, *refusals))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize(
    ("refusals", "over"),
    [([NO_UPGRADE], "sse"), ([NO_UPGRADE, NO_EVENTS], "poll"), ([NO_UPGRADE, HELD_EVENTS], "poll")],
    ids=["events", "polling", "events held back"],
)
async def test_behind_a_proxy_that_breaks_websockets_nothing_is_lost_to_a_killed_node(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path, proxy: Callable[..., Proxy],
    refusals: list[str], over: str,
) -> None:  # fmt: skip
    nodes = cluster(2, topics=rules, lease_seconds=3)
    front = haproxy(nodes.nodes, RL_REQ=40000, RL_CONN=4000)
    way = proxy(front, *refusals)
    page = (await Visitor.open(browser, way, "/mine", html=PAGE)).page
    await subscribed(page)
    back_end = Api(nodes[0])
    await eventually(lambda: transports(back_end, [over]))
    await back_end.close()
    publisher = Publisher(nodes)
    async with publisher.at_work():
        await publisher.more(50)
        home = await node_of(page, nodes)
        home.kill()
        await publisher.more(50)
        await eventually(lambda: page.evaluate("name => gateway.node !== name", home.name), LONG)
        await eventually(lambda: page.evaluate("subscription === 'recovered'"), LONG)
        await publisher.more(20)
    await has_all(page, publisher.count)
    assert await page.evaluate("gaps") == []


async def transports(back_end: Api, wanted: list[str]) -> bool:
    return [row["transport"] for row in await back_end.clients()] == wanted


async def test_by_events_a_page_loses_nothing_to_a_redis_restart_and_a_rolling_restart(
    cluster: Start, haproxy: Balancers, browser: Browser, redis: Redis, rules: Path, proxy: Callable[..., Proxy]
) -> None:
    nodes = cluster(2, topics=rules, drain_seconds=1, lease_seconds=3)
    front = haproxy(nodes.nodes, RL_REQ=40000)
    page = (await Visitor.open(browser, proxy(front, NO_UPGRADE), "/mine", html=PAGE)).page
    await subscribed(page)
    publisher = Publisher(nodes)
    async with publisher.at_work():
        await publisher.more(20)
        redis.stop()
        redis.start()
        await publisher.more(50)
        await restart_all(nodes, front)
    await has_all(page, publisher.count)
    assert await page.evaluate("gaps") == []


async def test_a_page_sends_requests_and_publishes_over_http(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path, proxy: Callable[..., Proxy]
) -> None:
    front = haproxy(cluster(1, topics=rules, open=1).nodes)
    page = (await Visitor.open(browser, proxy(front, NO_UPGRADE), "/mine", html=PAGE)).page
    await subscribed(page)
    assert (await page.evaluate("gateway.request('system', 'getStatus')"))["status"] == "ok"
    assert (await page.evaluate("gateway.publish('kept', 'mine')"))["offset"] == 1
    await eventually(lambda: page.evaluate("received.includes('mine')"))
    assert (await page.evaluate("gateway.history('kept')"))["offset"] == 1
    refused = "gateway.command('kept', 'none').catch(error => error.code)"
    assert await page.evaluate(refused) == 5001
    await page.evaluate("gateway.close()")
    assert await page.evaluate("gateway.state") == "closed"


async def test_when_websockets_come_through_again_the_page_has_one(
    cluster: Start, haproxy: Balancers, browser: Browser, rules: Path, proxy: Callable[..., Proxy]
) -> None:
    (node,) = nodes = cluster(1, topics=rules)
    way = proxy(haproxy(nodes.nodes), NO_UPGRADE)
    page = (await Visitor.open(browser, way, "/mine", html=PAGE)).page
    await subscribed(page)
    back_end = Api(node)
    await eventually(lambda: transports(back_end, ["sse"]))
    seen: set[str] = set()

    async def comes_by_websocket() -> bool:
        """It tries one way after the other: if one met the proxy while that was away, it may come by events again.

        The stream that was cut stays until the node has spoken into it twice.
        """
        rows = await back_end.clients()
        by_events = {row["id"] for row in rows if row["transport"] == "sse"} - seen
        if by_events:
            seen.update(by_events)
            way.restart()  # another network, as far as the page can see
        return any(row["transport"] == "websocket" for row in rows)

    await eventually(comes_by_websocket, LONG)
    await eventually(lambda: page.evaluate("subscription === 'recovered'"), LONG)
    await back_end.close()
