"""The start page in a real browser, through the real load balancer."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable

import pytest
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, ViewportSize, async_playwright, expect

from tests.client import Api, Front
from tests.cluster import API_KEY, ROOT, Balancer, Cluster, Redis, token
from tests.deadlines import eventually
from tests.processes import clean_environment

MS = 20_000  # the longest a test waits for the page, in playwright's unit
CHROMIUM_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
]  # fmt: skip
WIDE: ViewportSize = {"width": 1280, "height": 800}

# Keeps what the page said of its connection: some of it stands for a moment only.
RECORD_STATES = """
addEventListener("DOMContentLoaded", () => {
  const state = document.getElementById("state");
  window.states = [state.textContent];
  new MutationObserver(() => window.states.push(state.textContent)).observe(state, {childList: true});
});
"""


class Visitor:
    """A person with a browser profile of their own, and the page open in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []  # script errors, refusals of the content security policy, failed loads
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._on_console)

    @classmethod
    async def open(cls, browser: Browser, front: Balancer, path: str = "/", viewport: ViewportSize = WIDE) -> Visitor:
        """A new visitor, whose page is connected."""
        context = await browser.new_context(viewport=viewport)
        visitor = cls(await context.new_page())
        await visitor.page.add_init_script(RECORD_STATES)
        answer = await visitor.page.goto(front.url + path)
        assert answer is not None
        assert answer.ok
        await visitor.is_connected()
        return visitor

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    # ---- what they do

    async def subscribe(self, topic: str) -> None:
        """Subscribe, and wait until the cluster has confirmed it."""
        await self.page.get_by_label("Subscribe to").fill(topic)
        await self.page.get_by_role("button", name="Subscribe", exact=True).click()
        await expect(self.confirmed(topic)).to_be_visible(timeout=MS)

    async def unsubscribe(self, topic: str) -> None:
        """Unsubscribe."""
        await self.page.get_by_role("button", name=f"Unsubscribe from {topic}", exact=True).click()

    async def publish(self, topic: str, message: str) -> None:
        """Have the page publish, by keyboard alone."""
        await self.page.get_by_label("Topic", exact=True).fill(topic)
        await self.page.get_by_label("Message JSON").fill(message)
        await self.page.keyboard.press("Enter")

    async def log_in(self, jwt: str) -> None:
        """Give the page a token."""
        await self.page.get_by_label("Token a JWT").fill(jwt)
        await self.page.get_by_role("button", name="Log in", exact=True).click()

    # ---- what they see

    def confirmed(self, topic: str) -> Locator:
        """A topic that the page shows as subscribed."""
        return self.page.locator("#topics li:not(.pending)").get_by_text(topic, exact=True)

    def rows(self, topic: str, text: str) -> Locator:
        """Messages on a topic with exactly this data."""
        topics, data = self.page.get_by_text(topic, exact=True), self.page.get_by_text(text, exact=True)
        return self.page.locator("#feed li").filter(has=topics).filter(has=data)

    async def hears(self, topic: str, text: str) -> None:
        """Wait until this was received; then it was so once."""
        await expect(self.rows(topic, text)).to_have_count(1, timeout=MS)

    async def reads(self, text: str) -> None:
        """Wait until this stands on the page for the eye."""
        await expect(self.page.locator("main, #link").get_by_text(text).first).to_be_visible(timeout=MS)

    async def is_connected(self) -> None:
        """Wait until the page says so."""
        await expect(self.page.get_by_text("Connected to node")).to_be_visible(timeout=MS)

    async def node(self) -> str:
        """The name of the node that serves them."""
        return await self.page.locator("#node").inner_text()

    async def client_id(self) -> str:
        """Their client id."""
        return await self.page.locator("#client").inner_text()

    async def states(self) -> list[str]:
        """All that the page has said of its connection."""
        said: list[str] = await self.page.evaluate("() => window.states")
        return said


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed, and the tests need it"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program, args=CHROMIUM_ARGUMENTS)
        yield chromium
        await chromium.close()


async def publish_by_command_line(front: Balancer, topic: str, data: str) -> None:
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


async def test_the_page_shows_its_node_and_hears_what_the_command_line_publishes_once(
    plain: Cluster, front: Balancer, browser: Browser
) -> None:
    visitor = await Visitor.open(browser, front)
    node = await visitor.node()
    assert node in {node.name for node in plain}
    await expect(visitor.page.get_by_role("status").first).to_have_text(f"Connected to node {node}")
    await expect(visitor.page).to_have_title(f"{node} · WebSocket gateway")

    await visitor.subscribe("contest")
    await publish_by_command_line(front, "contest", '{"leader": "alice"}')
    await visitor.hears("contest", '{"leader":"alice"}')
    await publish_by_command_line(front, "contest", '"the end"')
    await visitor.hears("contest", "the end")
    await visitor.hears("contest", '{"leader":"alice"}')
    assert visitor.faults == []


async def test_what_a_page_publishes_is_seen_on_another_node_once_it_has_logged_in(
    plain: Cluster, front: Balancer, browser: Browser
) -> None:
    ann, bob = await Visitor.open(browser, front), await Visitor.open(browser, front)
    assert await ann.node() != await bob.node()
    await ann.subscribe("chat")
    await bob.subscribe("chat")

    await ann.publish("chat", "too early")
    await ann.reads("Only a user may publish on chat: log in with a token.")
    await ann.log_in("rubbish")
    await ann.reads("This token is not valid here.")
    await ann.log_in(token("ann"))
    await ann.reads("Logged in.")
    await ann.publish("chat", '{"text": "<b>hello</b>"}')
    await ann.reads("Published on chat.")
    await ann.publish("chat", "plain, not {JSON")

    for visitor in (ann, bob):
        await visitor.hears("chat", "plain, not {JSON")
        await visitor.hears("chat", '{"text":"<b>hello</b>"}')
        await expect(visitor.rows("chat", "too early")).to_have_count(0)
        assert visitor.faults == []


async def test_a_page_no_longer_hears_what_it_has_left_and_a_reload_keeps_its_topics(
    plain: Cluster, front: Balancer, browser: Browser, api: Callable[[Front], Api]
) -> None:
    visitor = await Visitor.open(browser, front, "/#left,kept")
    await expect(visitor.confirmed("left")).to_be_visible(timeout=MS)
    await visitor.unsubscribe("left")
    await visitor.subscribe("new")  # frames are handled in order: by then it has left
    await api(front).publish("left", 1)
    await api(front).publish("new", 2)
    await visitor.hears("new", "2")
    await expect(visitor.page.locator("#feed li")).to_have_count(1)

    node = await visitor.node()
    await visitor.page.reload()
    await visitor.is_connected()
    assert await visitor.node() == node  # the load balancer's cookie
    await expect(visitor.confirmed("kept")).to_be_visible(timeout=MS)
    await expect(visitor.confirmed("new")).to_be_visible(timeout=MS)
    await expect(visitor.page.locator("#topics li")).to_have_count(2)
    assert visitor.faults == []


async def test_a_page_sent_away_by_the_operator_stays_away_until_a_person_connects_it(
    plain: Cluster, front: Balancer, browser: Browser, api: Callable[[Front], Api]
) -> None:
    visitor = await Visitor.open(browser, front)
    client_id = await visitor.client_id()
    await eventually(lambda: knows(api(front), client_id))
    await api(front).delete(f"/api/clients/{client_id}")
    await visitor.reads("Disconnected by the gateway")
    await visitor.page.get_by_role("button", name="Connect now").click()
    await visitor.is_connected()
    assert await visitor.client_id() != client_id
    assert visitor.faults == []


async def knows(api: Api, client_id: str) -> bool:
    return client_id in [client["id"] for client in await api.clients()]


async def test_when_its_node_is_killed_the_page_moves_to_another_and_goes_on_hearing(
    cluster: Callable[..., Cluster], haproxy: Callable[..., Balancer], browser: Browser, api: Callable[[Front], Api]
) -> None:
    nodes = cluster(2)
    front = haproxy(nodes.nodes)
    visitor = await Visitor.open(browser, front)
    await visitor.subscribe("contest")
    before = await visitor.node()
    next(node for node in nodes if node.name == before).kill()

    after = next(node.name for node in nodes if node.name != before)
    await visitor.reads(f"Connected to node {after}")
    await visitor.reads("What was published meanwhile did not reach this page.")
    assert [said.split(".")[0] for said in await visitor.states()][-3:] == [
        "Not connected", "Connecting…", f"Connected to node {after}",
    ]  # fmt: skip
    await expect(visitor.confirmed("contest")).to_be_visible(timeout=MS)
    # The API through the balancer may meet the dead node first.
    await api(next(node for node in nodes if node.name == after)).publish("contest", "after")
    await visitor.hears("contest", "after")
    assert visitor.faults == []


async def test_a_page_says_that_messages_may_be_missing(
    redis: Redis, cluster: Callable[..., Cluster], haproxy: Callable[..., Balancer], browser: Browser
) -> None:
    visitor = await Visitor.open(browser, haproxy(cluster(1).nodes))
    await visitor.subscribe("news")
    assert redis.kill_pubsub()
    await visitor.reads("Messages on lobby, news may be missing")
    await visitor.is_connected()
    assert visitor.faults == []


@pytest.mark.parametrize("width", [320, 400, 1600])
async def test_the_page_fits_a_window_of_any_width(
    plain: Cluster, front: Balancer, browser: Browser, api: Callable[[Front], Api], width: int
) -> None:
    visitor = await Visitor.open(browser, front, viewport={"width": width, "height": 800})
    long = "ticker:price:" + "x" * 180
    await visitor.subscribe(long)
    await api(front).publish(long, {"unbroken": "y" * 500})
    await visitor.hears(long, '{"unbroken":"' + "y" * 500 + '"}')
    assert await visitor.page.evaluate("() => document.documentElement.scrollWidth") == width
    assert visitor.faults == []
