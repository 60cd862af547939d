"""The start page in a real browser, through the real load balancer: two clients on two nodes, and their errors."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Locator, expect

from gateway.http.pages import STATIC
from tests.browser.conftest import Photograph
from tests.browser.visitor import MS, Visitor
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, token
from tests.kit.process import ROOT, clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

TOPIC = "contest-chat-demo"

Start = Callable[..., Cluster]
Balancers = Callable[..., LoadBalancer]
ApiOf = Callable[[Front], Api]


class Pane:
    """One of the two clients."""

    def __init__(self, visitor: Visitor, name: str) -> None:
        self.name = name
        self.region = visitor.page.get_by_role("region", name=f"Client {name}", exact=True)
        self.state = self.region.get_by_role("status").first
        self.feed = self.region.get_by_role("list", name=f"What client {name} has received")

    async def node(self) -> str:
        """The node that it says serves it."""
        return await self.region.locator(".node").inner_text()

    async def is_connected(self) -> None:
        """Wait until it says so."""
        await expect(self.state).to_contain_text("Connected to node", timeout=MS)

    async def says(self, text: str) -> None:
        """Send something, by keyboard alone."""
        await self.region.get_by_label(f"Message of client {self.name}").fill(text)
        await self.region.get_by_label(f"Message of client {self.name}").press("Enter")

    def rows(self, text: str) -> Locator:
        """Messages and notes of exactly this text."""
        return self.feed.get_by_text(text, exact=True)

    async def hears(self, text: str) -> None:
        """Wait until this was received; then it was so once."""
        await expect(self.rows(text)).to_have_count(1, timeout=MS)

    async def reads(self, text: str) -> None:
        """Wait until this stands in it for the eye."""
        await expect(self.region.get_by_text(text).first).to_be_visible(timeout=MS)

    async def does(self, button: str) -> None:
        """Press a button."""
        await self.region.get_by_role("button", name=button, exact=True).click()


async def come(browser: Browser, front: LoadBalancer, path: str = "/", **context: Any) -> tuple[Visitor, Pane, Pane]:
    """A visitor whose two clients are connected."""
    visitor = await Visitor.open(browser, front, path, **context)
    a, b = Pane(visitor, "A"), Pane(visitor, "B")
    await a.is_connected()
    await b.is_connected()
    return visitor, a, b


async def log_in(visitor: Visitor, jwt: str) -> None:
    """Give the page a token."""
    await visitor.page.locator("#login").evaluate("it => it.open = true")
    await visitor.page.get_by_label("A JWT of this cluster").fill(jwt)
    await visitor.page.get_by_role("button", name="Log in", exact=True).click()


async def join(visitor: Visitor, topic: str) -> None:
    """Have both clients listen to another topic."""
    await visitor.page.get_by_label("Topic", exact=True).fill(topic)
    await visitor.page.get_by_role("button", name="Join", exact=True).click()


async def publish_by_command_line(front: LoadBalancer, topic: str, data: str) -> None:
    """``gateway publish``, as a person would type it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "publish", topic, data, "--url", front.api_url,
        env=clean_environment() | {"GATEWAY_API_KEY": API_KEY}, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed.decode()


@pytest.mark.picture
async def test_two_clients_of_one_page_talk_across_two_nodes(
    cluster: Start, haproxy: Balancers, browser: Browser, photograph: Photograph
) -> None:
    nodes = cluster(3, open=1)
    visitor, a, b = await come(browser, haproxy(nodes.nodes))
    home, other = await a.node(), await b.node()
    assert {home, other} < {node.name for node in nodes}
    assert home != other
    await expect(visitor.page.get_by_role("list", name="Path of a message").get_by_role("listitem")).to_have_text(
        ["client A", home, "Redis", other, "client B"]
    )
    await a.says("Hello from one node")
    await b.says("and from another: <b>hello</b>")
    for pane in (a, b):
        await pane.hears("Hello from one node")
        await pane.hears("and from another: <b>hello</b>")

    await a.does("Send numbers")
    await b.hears("3")
    await b.does("Cut for 3 seconds")
    await b.reads(f"The connection to {other} is lost.")
    await b.reads("No message was missed:")
    await b.is_connected()
    await a.does("Stop numbers")
    await a.says("the end")
    await b.hears("the end")
    for number in range(1, 10):
        await b.hears(str(number))
    await expect(b.region).to_contain_text("0 missing · 0 duplicated")
    await visitor.page.set_viewport_size({"width": 1280, "height": 1010})
    await visitor.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    await photograph(visitor.page, "demo")
    assert visitor.faults == []


async def test_a_cut_connection_comes_back_to_its_node_by_the_cookie(
    plain: Cluster, front: LoadBalancer, browser: Browser
) -> None:
    visitor, a, _ = await come(browser, front)
    cookies = [cookie for cookie in await visitor.context.cookies() if cookie.get("name") == "GW"]
    assert [cookie.get("httpOnly") for cookie in cookies] == [True]
    home = await a.node()
    for _ in range(2):
        await a.does("Cut for 3 seconds")
        await a.does("Try now")
        await a.is_connected()
        assert await a.node() == home
    await a.reads(f"to the same node, by its cookie: {home}.")
    await visitor.page.reload()
    await a.is_connected()
    assert await a.node() == home
    assert visitor.faults == []


async def test_a_page_receives_a_publish_of_the_cli_once(plain: Cluster, front: LoadBalancer, browser: Browser) -> None:
    visitor, a, b = await come(browser, front, "/#contest")
    await publish_by_command_line(front, "contest", '{"leader": "alice"}')
    for pane in (a, b):
        await pane.hears('{"leader":"alice"}')
    assert visitor.faults == []


async def test_an_anonymous_visitor_is_asked_to_log_in_before_publishing(
    plain: Cluster, front: LoadBalancer, browser: Browser
) -> None:
    visitor, a, b = await come(browser, front, "/#contest-chat-closed")
    await a.says("too early")
    await a.reads("Only a user may publish on contest-chat-closed: log in with a token below.")
    await log_in(visitor, "rubbish")
    for pane in (a, b):
        await pane.reads("This token is not valid on this cluster.")
        await expect(pane.region.get_by_role("button", name="Connect again")).to_be_visible()
    await log_in(visitor, token("ann", seconds=-5))
    await a.reads("This token has expired: get a new one.")
    await log_in(visitor, token("ann"))
    await expect(visitor.page.get_by_text("Logged in.")).to_be_visible(timeout=MS)
    await b.is_connected()
    await a.says("now")
    for pane in (a, b):
        await pane.hears("now")
        await expect(pane.rows("too early")).to_have_count(0)
    assert visitor.faults == []


async def test_a_rejected_topic_is_reported_and_another_can_be_joined(
    plain: Cluster, front: LoadBalancer, browser: Browser
) -> None:
    visitor, a, b = await come(browser, front, "/#portfolio")
    for pane in (a, b):
        await pane.reads("Only a user may subscribe to portfolio: log in with a token below.")
    await join(visitor, "no topic!")
    await expect(visitor.page.get_by_text("A topic has 1 to 200 visible ASCII characters")).to_be_visible(timeout=MS)
    await join(visitor, "contest")
    await a.is_connected()
    await b.is_connected()
    await expect(visitor.page.locator("#joined")).to_have_text("")
    assert visitor.page.url.endswith("/#contest")
    await publish_by_command_line(front, "contest", '"hello"')
    await b.hears("hello")
    assert visitor.faults == []


async def test_a_page_closed_by_the_operator_reconnects_only_by_hand(
    plain: Cluster, front: LoadBalancer, browser: Browser, api: ApiOf
) -> None:
    visitor, a, b = await come(browser, front)
    client_id = await a.region.locator("[data-is=client]").inner_text()
    await eventually(lambda: knows(api(front), client_id))
    await api(front).delete(f"/api/clients/{client_id}")
    await a.reads("it asks this client not to reconnect.")
    await b.is_connected()
    await a.does("Connect again")
    await a.is_connected()
    assert visitor.faults == []


async def knows(api: Api, client_id: str) -> bool:
    return client_id in [client["id"] for client in await api.clients()]


async def test_when_its_node_is_killed_it_moves_to_another_and_has_missed_nothing(
    cluster: Start, haproxy: Balancers, browser: Browser
) -> None:
    nodes = cluster(2, open=1)
    visitor, a, b = await come(browser, haproxy(nodes.nodes))
    home, other = await a.node(), await b.node()
    await b.does("Send numbers")
    await a.hears("3")
    next(node for node in nodes if node.name == home).kill()
    await a.reads(f"to another node: {other}.")
    await a.reads("No message was missed:")
    await b.does("Stop numbers")
    await b.says("the end")
    await a.hears("the end")
    await expect(a.region).to_contain_text("0 missing · 0 duplicated")
    assert visitor.faults == []


async def test_the_page_reports_a_cluster_that_is_down_and_recovers_with_it(
    cluster: Start, haproxy: Balancers, browser: Browser, redis: Redis
) -> None:
    [node] = cluster(1, open=1)
    front = haproxy([node])
    visitor, a, b = await come(browser, front)
    node.kill()
    for pane in (a, b):
        await expect(pane.state).to_contain_text("Not connected", timeout=MS)
        await expect(pane.region.get_by_role("button", name="Try now")).to_be_visible(timeout=MS)
    await a.says("into the void")
    await a.reads("Waiting for the connection…")
    await a.reads("No answer: the message may or may not have been published.")
    node.start()
    for pane in (a, b):
        await pane.is_connected()
    redis.stop()
    await a.reads("The node has lost Redis")
    redis.start()
    await a.reads("Redis is back")
    visitor.failed_loads(503)  # without a socket the client requests events, which also reach no node
    assert visitor.faults == []


async def test_where_there_is_one_node_both_clients_are_on_it(
    cluster: Start, haproxy: Balancers, browser: Browser
) -> None:
    [node] = cluster(1, open=1)
    for front in (haproxy([node]), node):
        visitor, a, b = await come(browser, front)  # type: ignore[arg-type]
        assert [await a.node(), await b.node()] == [node.name, node.name]
        assert visitor.faults == []


@pytest.mark.parametrize("width", [320, 400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_a_window_of_any_width(
    plain: Cluster, front: LoadBalancer, browser: Browser, api: ApiOf, width: int, scheme: str
) -> None:
    long = "ticker:price:" + "x" * 180
    visitor, a, _ = await come(
        browser, front, f"/#{long}", viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    await eventually(lambda: subscribers(api(front), long))
    await api(front).publish(long, {"unbroken": "y" * 500})
    await a.hears('{"unbroken":"' + "y" * 500 + '"}')
    assert await visitor.page.evaluate("() => document.documentElement.scrollWidth") == width
    assert visitor.faults == []


async def subscribers(api: Api, topic: str) -> bool:
    return bool((await api.get(f"/api/topics/{topic}"))["subscribers"] == 2)


async def test_everything_can_be_reached_by_keyboard(plain: Cluster, front: LoadBalancer, browser: Browser) -> None:
    visitor, _, _ = await come(browser, front)
    wanted = await visitor.page.locator("a, button:visible, input:visible, summary, pre, .feed").count()
    reached = set()
    for _ in range(wanted + 5):
        await visitor.page.keyboard.press("Tab")
        reached.add(
            await visitor.page.evaluate("() => [...document.querySelectorAll('*')].indexOf(document.activeElement)")
        )
    assert len(reached) >= wanted - 2  # Playwright counts content of a closed <details> as invisible
    assert visitor.faults == []


def test_the_page_links_to_pages_of_the_documentation_that_exist() -> None:
    links = re.findall(
        r'href="https://github\.com/[\w-]+/[\w-]+/blob/main/([^"]+)"', (STATIC / "index.html").read_text()
    )
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize("path", ["/gateway.js", "/gateway.classic.js", "/gateway.d.ts"])
def test_what_the_page_links_to_is_there(plain: Cluster, front: LoadBalancer, path: str) -> None:
    answer = httpx.get(front.url + path, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/plain")
    again = httpx.get(front.url + path, headers={"If-None-Match": answer.headers["etag"]}, trust_env=False)
    assert again.status_code == 304
