"""The operators' console in a real browser, through the load balancer's internal side."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, ViewportSize, expect

from gateway.auth import api_keys
from tests.browser.conftest import Photograph
from tests.browser.visitor import MS, Visitor
from tests.conftest import Connect
from tests.kit.client import Api, Front, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, token
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

WIDE: ViewportSize = {"width": 1600, "height": 1000}
Open = Callable[..., Awaitable["Operator"]]


class Operator(Visitor):
    """A person before the console."""

    # ---- what they do

    async def sign_in(self, credential: str = API_KEY) -> None:
        """Sign in, by keyboard, and wait until it is done."""
        await self.try_to_sign_in(credential)
        await expect(self.page.locator("#sign-in")).to_be_hidden(timeout=MS)
        await expect(self.page.locator("#public")).to_be_hidden()

    async def try_to_sign_in(self, credential: str) -> None:
        """Give a credential, which need not be good."""
        await self.press("Sign in")
        await self.page.get_by_label("Admin token or API key").fill(credential)
        await self.page.keyboard.press("Enter")

    async def press(self, name: str) -> None:
        """Press the button of that name."""
        await self.page.get_by_role("button", name=name, exact=True).first.click()

    async def go(self, view: str) -> None:
        """Open a view by its link."""
        await self.page.get_by_role("link", name=view, exact=True).click()

    async def confirm(self, title: str, yes: str) -> None:
        """Be asked `title`, and say yes."""
        dialog = self.page.get_by_role("dialog", name=title)
        await expect(dialog).to_be_visible(timeout=MS)
        await dialog.get_by_role("button", name=yes, exact=True).click()

    async def open_topic(self, topic: str) -> None:
        """Open a topic by name, and wait until the console is subscribed to it."""
        await self.page.get_by_label("Filter, or open any topic").fill(topic)
        await self.press("Open")
        await expect(self.page.locator("#topic-state")).to_have_text("Live.", timeout=MS)

    async def find(self, by: str, text: str) -> None:
        """Look for clients."""
        await self.page.get_by_label("Find by what").select_option(by)
        await self.page.get_by_label("Find by", exact=True).fill(text)
        await self.press("Find")

    # ---- what they see

    async def is_told(self, text: str) -> None:
        """Wait for what came of it."""
        await expect(self.page.locator("#notice")).to_contain_text(text, timeout=MS)

    async def reads(self, text: str) -> None:
        """Wait until this stands there for the eye."""
        await expect(self.page.get_by_text(text).locator("visible=true").first).to_be_visible(timeout=MS)

    def node(self, name: str) -> Locator:
        """The row of a node."""
        named = self.page.locator("td.name").get_by_text(name, exact=True)
        return self.page.locator("#nodes tbody tr").filter(has=named)

    def facts(self, name: str) -> Locator:
        """What stands under a term of what is open."""
        return self.page.locator(".facts > div").filter(has=self.page.get_by_text(name, exact=True)).locator("dd")

    def messages(self) -> Locator:
        """The messages of the topic that is open, newest first."""
        return self.page.locator("#tail li pre")

    async def width(self) -> int:
        """How wide the page is, with what sticks out."""
        found: int = await self.page.evaluate("() => document.documentElement.scrollWidth")
        return found


@pytest.fixture
async def console(browser: Browser) -> AsyncIterator[Open]:
    """`await console(front, width=400, dark=True)`: its console, connected; at the end nothing must have gone wrong."""
    opened: list[Operator] = []

    async def open_console(
        front: LoadBalancer, path: str = "/console", viewport: ViewportSize = WIDE, dark: bool = False
    ) -> Operator:
        context = await browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
        operator = Operator(await context.new_page())
        opened.append(operator)
        answer = await operator.page.goto(front.admin + path)
        assert answer is not None
        assert answer.ok
        await expect(operator.page.locator("#link")).to_contain_text("Live", timeout=MS)
        return operator

    yield open_console
    assert [operator.faults for operator in opened] == [[] for _ in opened]


# ---- who one is


async def test_without_a_credential_it_shows_what_is_public_and_can_change_nothing(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api]
) -> None:
    operator = await console(front)
    await operator.reads("You see public data and cannot change anything.")
    await expect(operator.page.locator("#verdict")).to_have_text(re.compile(r"Node n\d is healthy"), timeout=MS)
    await expect(operator.page.locator("#servers tbody tr")).to_have_count(3, timeout=MS)
    await expect(operator.page.get_by_role("button", name="Rebalance…")).to_be_hidden()
    await expect(operator.page.locator("#nodes")).to_be_hidden()

    await operator.go("Topics")
    await operator.reads("Only administrators can list topics.")
    await operator.open_topic("contest-open")
    await api(front).publish("contest-open", {"seen": True})
    await expect(operator.messages().first).to_have_text('{"seen":true}', timeout=MS)
    await expect(operator.page.get_by_role("button", name="Publish", exact=True)).to_be_disabled()
    await operator.page.get_by_label("Filter, or open any topic").fill("admin")
    await operator.press("Open")
    await operator.reads("Not subscribed: Authentication required for topic admin")

    await operator.go("Clients")
    await operator.reads("Only administrators can list clients")
    await expect(operator.page.get_by_role("button", name="Find", exact=True)).to_be_disabled()


async def test_a_wrong_key_is_refused_in_words_and_a_good_one_is_kept_for_the_tab_alone(
    plain: Cluster, front: LoadBalancer, console: Open
) -> None:
    operator = await console(front)
    await operator.try_to_sign_in("wrong")
    await operator.reads("The gateway does not know this key.")
    assert operator.failed_loads(401) == 1
    await operator.page.get_by_label("Admin token or API key").fill("käse")
    await operator.page.keyboard.press("Enter")
    await operator.reads("neither a token nor a key")
    await operator.press("Cancel")
    await expect(operator.page.locator("#public")).to_be_visible()

    await operator.sign_in()
    await operator.page.reload()
    await expect(operator.node("n1")).to_have_count(1, timeout=MS)
    assert await operator.page.evaluate("() => localStorage.length") == 0
    assert await operator.page.evaluate("() => document.cookie") == ""
    other = await operator.page.context.new_page()
    await other.goto(front.admin + "/console")
    await expect(other.locator("#public")).to_be_visible(timeout=MS)

    await operator.press("API key · Sign out")
    await expect(operator.page.locator("#public")).to_be_visible()
    await expect(operator.node("n1")).to_have_count(0, timeout=MS)
    assert await operator.page.evaluate("() => sessionStorage.length") == 0


async def test_a_rejected_key_signs_the_operator_out_with_a_notice(
    plain: Cluster, front: LoadBalancer, console: Open
) -> None:
    operator = await console(front)
    await operator.page.evaluate("() => sessionStorage.setItem('gateway-console-credential', 'of yesterday')")
    await operator.page.goto(front.admin + "/console#clients")
    await operator.page.reload()
    await operator.is_told("You are signed out: the gateway no longer accepts your token or key.")
    await expect(operator.page.locator("#public")).to_be_visible()
    operator.failed_loads(401)  # none, if the node closed the socket first
    await operator.press("Dismiss")
    await expect(operator.page.locator("#notice")).to_be_hidden()


async def test_an_admins_token_may_read_all_topics_and_act(
    plain: Cluster, front: LoadBalancer, console: Open, api: Callable[[Front], Api]
) -> None:
    operator = await console(front)
    await operator.sign_in(token("root", "admin"))
    await expect(operator.page.get_by_role("button", name="Admin token · Sign out")).to_be_visible()
    await expect(operator.node("n1")).to_have_count(1, timeout=MS)
    await operator.page.goto(front.admin + "/console#topics/admin")
    await expect(operator.page.locator("#topic-state")).to_have_text("Live.", timeout=MS)
    await operator.page.get_by_label("Message JSON").fill('{"from": "root"}')
    await operator.press("Publish")
    await expect(operator.messages().first).to_have_text('{"from":"root"}', timeout=MS)


async def test_the_token_of_a_user_is_refused_in_words(plain: Cluster, front: LoadBalancer, console: Open) -> None:
    operator = await console(front)
    await operator.try_to_sign_in(token("ann"))
    await operator.reads("The token is valid, but not an administrator's")
    await operator.page.get_by_label("Admin token or API key").fill(token("root", "admin", seconds=-60))
    await operator.page.keyboard.press("Enter")
    await operator.reads("The token has expired")
    assert (operator.failed_loads(403), operator.failed_loads(401)) == (1, 1)


async def test_actions_outside_a_keys_scopes_are_disabled_with_the_reason(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], console: Open, connect: Connect, folder: Path
) -> None:
    scopes = {"eye": ["read"], "desk": ["read", "publish:contest*", "admin"]}
    made = {name: api_keys.new(name, of) for name, of in scopes.items()}
    (folder / "keys.toml").write_text("".join(table for _, table in made.values()))
    nodes = cluster(1, api_keys=folder / "keys.toml")
    front = haproxy(nodes.nodes)
    client = await connect(nodes[0], user="ann")
    await client.subscribe("contest")
    operator = await console(front)
    await operator.sign_in(made["eye"][0])

    async def check(named: str, why: str) -> None:
        button = operator.page.get_by_role("button", name=named, exact=True)
        await (expect(button).to_be_disabled if why else expect(button).to_be_enabled)(timeout=MS)
        await expect(button).to_have_attribute("title", why)

    async def looks(publish: str, admin: str) -> None:
        await operator.go("Overview")
        await expect(operator.page.locator("#verdict")).to_have_text("The only node is ready", timeout=MS)  # live
        await check("Rebalance…", admin)
        await check("Drain n1", admin)
        await operator.go("Topics")
        await check("Publish", publish)
        await operator.page.goto(f"{front.admin}/console#clients?id={client.id}")
        await check("Find", "")
        for named in ("Unsubscribe…", "Disconnect…", "Disconnect all of the user…"):
            await check(named, admin)
        await operator.go("Cache")
        await check("Look up", "")
        await check("Delete…", admin)

    limits = operator.page.locator("#limits")
    lacks = "The key eye lacks the scope "
    for _ in range(2):  # after a reload, too
        await expect(limits).to_have_text(
            "The key eye lacks the scopes publish and admin: actions that need them are disabled.", timeout=MS
        )
        await looks(f"{lacks}publish", f"{lacks}admin")
        await operator.page.reload()
    await operator.press("API key · Sign out")
    await expect(limits).to_be_hidden()
    await operator.sign_in(made["desk"][0])
    await expect(limits).to_have_text("The key desk may publish only on contest*.")
    await looks("", "")


# ---- overview


async def test_the_overview_shows_every_node_live_with_charts_and_the_load_balancers_view(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api]
) -> None:
    subscribers = [await connect(front, source=new_source()) for _ in range(6)]
    for subscriber in subscribers:
        await subscriber.subscribe("ticks")
    operator = await console(front)
    await operator.sign_in()
    await expect(operator.page.locator("#verdict")).to_have_text("All 3 nodes are ready", timeout=MS)
    for name in ("n1", "n2", "n3"):
        await expect(operator.node(name).locator(".state")).to_have_text("ready", timeout=MS)
        await expect(operator.page.locator("#servers").get_by_text(f"· {name}")).to_be_visible(timeout=MS)
    await expect(operator.page.locator("#servers-about")).to_have_text("3 of 3 up")

    delivered = operator.page.locator("#tiles > div").filter(has_text="Delivered").locator("b")
    before = await delivered.inner_text()
    await api(front).publish_all([{"topic": "ticks", "data": at} for at in range(1000)])
    await expect(delivered).not_to_have_text(before, timeout=MS)  # by itself

    plot = operator.page.locator("#rate svg")
    await expect(plot).to_have_attribute(
        "aria-label", re.compile(r"Messages delivered, all nodes: [\d,.]+/s now, at most "), timeout=MS
    )
    assert await plot.locator("path.line").get_attribute("d")
    await plot.focus()
    await operator.page.keyboard.press("Home")
    await expect(operator.page.locator("#rate figcaption small")).to_have_text("10 min ago")
    await operator.page.keyboard.press("End")
    await operator.page.keyboard.press("ArrowLeft")
    await expect(operator.page.locator("#rate figcaption small")).to_have_text("5 s ago")
    await operator.page.keyboard.press("Escape")
    await expect(operator.page.locator("#rate figcaption small")).to_have_text("now")


async def test_earlier_figures_are_shown_at_once(plain: Cluster, front: LoadBalancer, console: Open) -> None:
    operator = await console(front)
    await operator.sign_in()
    # More points than a node can have published since: it publishes one every 5 s.
    await expect(operator.node("n1")).to_have_count(1, timeout=MS)
    drawn = await operator.page.locator("#rate path.line").get_attribute("d")
    assert drawn is not None
    assert drawn.count("L") >= 1


async def test_rebalance_asks_first_and_shows_the_plan(plain: Cluster, front: LoadBalancer, console: Open) -> None:
    operator = await console(front)
    await operator.sign_in()
    await operator.press("Rebalance…")
    await operator.page.keyboard.press("Escape")
    await expect(operator.page.locator("#confirm")).to_be_hidden()
    await expect(operator.page.locator("#notice")).to_be_hidden()
    await operator.press("Rebalance…")
    await operator.page.get_by_label("Seconds").fill("1")
    await operator.confirm("Rebalance the clients?", "Rebalance")
    await operator.is_told("The clients are already spread evenly: no client moves.")


async def test_a_node_is_drained_and_seen_to_go_and_a_dead_one_is_seen_to_be_silent(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], console: Open, connect: Connect
) -> None:
    nodes = cluster(3, drain_seconds=6)
    front = haproxy(nodes.nodes)
    operator = await console(front)
    await operator.sign_in()
    serving = (await operator.page.locator("#link").inner_text()).removeprefix("Live · ")
    [leaver, victim] = [node for node in nodes if node.name != serving]
    await connect(leaver)
    await expect(operator.node(leaver.name)).to_have_count(1, timeout=MS)
    await operator.press(f"Drain {leaver.name}")
    await operator.confirm(f"Drain {leaver.name}?", f"Drain {leaver.name}")
    await operator.is_told(f"{leaver.name} starts to drain.")
    await expect(operator.page.locator("#verdict")).to_have_text(f"{leaver.name} is draining", timeout=MS)
    await expect(operator.node(leaver.name).locator(".state")).to_have_text("draining")
    assert leaver.process.exit_code() == 0
    await expect(operator.node(leaver.name).locator(".state")).to_have_text("left", timeout=40_000)
    await expect(operator.page.locator("#verdict")).to_have_text("All 2 nodes are ready")
    await expect(operator.page.locator("#servers-about")).to_have_text("2 of 3 up", timeout=MS)

    victim.kill()
    await expect(operator.page.locator("#verdict")).to_have_text(f"{victim.name} is silent", timeout=40_000)
    await expect(operator.node(victim.name).locator(".state")).to_contain_text("silent for")
    await expect(operator.page.locator("#servers-about")).to_have_text("1 of 3 up", timeout=MS)
    await expect(operator.page.get_by_role("button", name=f"Drain {victim.name}")).to_be_hidden()


async def test_the_page_reports_a_cluster_that_is_down_and_recovers_with_it(
    redis: Redis, cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], console: Open
) -> None:
    nodes = cluster(1)
    front = haproxy(nodes.nodes)
    operator = await console(front)
    await operator.sign_in()
    await expect(operator.node("n1")).to_have_count(1, timeout=MS)
    redis.stop()
    await operator.reads("Node n1 has lost Redis")
    redis.start()
    await expect(operator.page.locator("#trouble")).to_be_hidden(timeout=MS)

    nodes[0].kill()
    await operator.reads("No connection to the cluster")
    await expect(operator.page.locator("#link")).to_have_text("Not connected", timeout=MS)
    await expect(operator.page.locator("#servers tbody .state")).to_have_attribute("data-level", "bad", timeout=MS)
    await operator.go("Clients")
    await operator.reads("no node is ready")
    nodes[0].start()
    await expect(operator.page.locator("#link")).to_have_text("Live · n1", timeout=60_000)
    await expect(operator.page.locator("#trouble")).to_be_hidden(timeout=MS)
    await operator.go("Overview")
    await expect(operator.page.locator("#verdict")).to_have_text("The only node is ready", timeout=40_000)
    operator.faults.clear()  # the browser logs sockets and requests that reached no server


# ---- topics


async def test_a_topic_shows_its_subscribers_its_history_and_new_messages(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api]
) -> None:
    back_end = api(front)
    ann = await connect(plain[0], user="ann")
    await ann.subscribe("contest-chat:seen")
    await back_end.publish_all([{"topic": "contest-chat:seen", "data": {"n": at}} for at in range(3)])
    operator = await console(front)
    await operator.sign_in()
    await operator.go("Topics")
    await operator.page.get_by_label("Filter, or open any topic").fill("chat:seen")
    await operator.page.locator("#topic-list a").filter(has_text="contest-chat:seen").click()
    await expect(operator.page.locator("#topic-state")).to_have_text("Live.", timeout=MS)
    await expect(operator.messages()).to_have_text(['{"n":2}', '{"n":1}', '{"n":0}'], timeout=MS)
    await expect(operator.facts("History")).to_have_text("kept", timeout=MS)
    await expect(operator.facts("Present")).to_contain_text("ann", timeout=MS)
    await expect(operator.facts("Subscribers")).to_contain_text("n1: 1", timeout=MS)

    await back_end.publish("contest-chat:seen", "<b>live</b>")
    await expect(operator.messages().first).to_have_text('"<b>live</b>"', timeout=MS)
    await operator.press("Pause")
    await back_end.publish("contest-chat:seen", "held")
    await operator.press("Resume (1 new)")
    await expect(operator.messages().first).to_have_text('"held"')
    await expect(operator.messages()).to_have_count(5)

    await operator.go("Overview")  # it leaves the topic
    await eventually(lambda: count(back_end, "contest-chat:seen", 1))


async def count(api: Api, topic: str, subscribers: int) -> bool:
    return bool((await api.get(f"/api/topics/{topic}"))["subscribers"] == subscribers)


async def test_a_key_shows_a_topic_for_administrators_live(
    plain: Cluster, front: LoadBalancer, console: Open, api: Callable[[Front], Api]
) -> None:
    operator = await console(front)
    await operator.sign_in()
    await operator.page.goto(front.admin + "/console#topics/admin")
    await expect(operator.page.locator("#topic-state")).to_have_text("Live.", timeout=MS)
    await api(front).publish("admin", {"incident": 7})
    await expect(operator.messages().first).to_have_text('{"incident":7}', timeout=MS)


async def test_publishing_to_all_and_to_one_user(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect
) -> None:
    ann, bob = await connect(plain[0], user="ann"), await connect(plain[1], user="bob")
    await ann.subscribe("contest-said")
    operator = await console(front, "/console#topics/contest-said")
    await operator.sign_in()
    await operator.page.get_by_label("Message JSON").fill('{"price": 42}')
    await operator.press("Publish")
    await expect(operator.page.locator("#published")).to_contain_text("Published as number", timeout=MS)
    await ann.hear(type="DATA", topic="contest-said", data={"price": 42})
    await expect(operator.messages().first).to_have_text('{"price":42}', timeout=MS)

    await operator.page.get_by_label("Message JSON").fill("hello {")
    await operator.page.get_by_label("To", exact=True).select_option("user")
    await operator.page.get_by_label("Recipient").fill("bob")
    await operator.press("Publish")
    await expect(operator.page.locator("#published")).to_have_text(
        "Published as plain text, because it is not JSON.", timeout=MS
    )
    await bob.hear(type="DATA", topic="contest-said", data="hello {")
    assert ann.data("contest-said") == [{"price": 42}]
    await operator.page.get_by_label("To", exact=True).select_option("")
    await expect(operator.page.get_by_label("Recipient")).to_be_disabled()


# ---- clients


async def test_clients_are_found_by_user_address_topic_node_and_id(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api]
) -> None:
    source = new_source()
    ann = await connect(plain[0], user="ann-found", source=source)
    bob = await connect(plain[1], user="bob-found", role="admin")
    await ann.subscribe("found-here")
    await eventually(lambda: listed(api(front), topic="found-here"))
    await eventually(lambda: listed(api(front), user="bob-found"))
    operator = await console(front)
    await operator.sign_in()
    await operator.go("Clients")
    clients = operator.page.locator("#client-list td.name")
    for by, text, found in (
        ("user", "ann-found", ann), ("ip", source, ann), ("topic", "found-here", ann), ("id", bob.id, bob),
        ("user", "bob-found", bob),
    ):  # fmt: skip
        await operator.find(by, text)
        await expect(clients).to_have_text([found.id], timeout=MS)
    await operator.find("node", "n2")
    await expect(clients.get_by_text(bob.id, exact=True)).to_be_visible(timeout=MS)
    await operator.find("user", "unknown-user")
    await operator.reads("No connected client matches.")
    await operator.find("id", "n1.00000000.9")
    await operator.reads("No client 'n1.00000000.9' is connected")
    assert operator.failed_loads(404) == 1
    await operator.page.go_back()
    await operator.reads("No connected client matches.")


async def listed(api: Api, **parameters: str) -> bool:
    return bool(await api.clients(**parameters))


async def test_a_client_loses_a_topic_and_is_disconnected_alone_and_with_all_of_its_user(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api]
) -> None:
    one, two, three = [await connect(node, user="ann-sent-away") for node in plain]
    await one.subscribe("kept", "taken")
    await eventually(lambda: listed(api(front), user="ann-sent-away", topic="taken"))
    operator = await console(front, "/console#clients?user=ann-sent-away")
    await operator.sign_in()
    await operator.press(one.id)
    await operator.reads("Subscribed to 2 topics")
    await operator.page.locator("#client-topics li").filter(has_text="taken").get_by_role("button").click()
    await operator.confirm("Unsubscribe this client from taken?", "Unsubscribe")
    await operator.is_told(f"{one.id} is unsubscribed from taken.")
    await one.hear(type="SYSTEM", action="unsubscribed")
    await operator.reads("Subscribed to 1 topic")

    await operator.press("Disconnect…")
    await operator.press("Cancel")
    assert one.open
    await operator.press("Disconnect…")
    await operator.confirm("Disconnect this client?", "Disconnect")
    await operator.is_told(f"{one.id} is disconnected.")
    assert await one.closed() == 3503
    await operator.reads("No client is selected")

    await operator.press(two.id)
    await operator.press("Disconnect all of the user…")
    await operator.confirm("Disconnect ann-sent-away everywhere?", "Disconnect all")
    await operator.is_told("clients of ann-sent-away are disconnected.")
    assert [await client.closed() for client in (two, three)] == [3503, 3503]
    await operator.reads("No matching client is left.")


# ---- services


async def test_services_stand_in_a_graph_with_their_instances_and_change_by_themselves(
    plain: Cluster, front: LoadBalancer, console: Open, api: Callable[[Front], Api]
) -> None:
    back_end = api(front)

    async def report(name: str, status: str, *needs: str, **more: object) -> None:
        body = {"status": status, "leaseSeconds": 60, "dependsOn": needs, "running": True, **more}
        answer = await back_end.http.put(f"/api/services/{name}", json=body)
        assert answer.status_code == 200, answer.text

    await report("feed", "active")
    await report("prices", "active", "feed", "nowhere")
    await report("alerts", "active", "prices", instance="worker-1", stats={"operations": 41, "failures": 2, "p99Ms": 7})
    operator = await console(front)
    await operator.go("Services")
    await operator.reads("Only administrators can see services: sign in.")
    await operator.sign_in(token("root", "admin"))

    def node(name: str) -> Locator:
        return operator.page.get_by_role("link", name=name, exact=True)

    for name in ("feed: active", "prices: active", "nowhere: no reports", "gateway.bus: active"):
        await expect(node(name)).to_be_visible(timeout=MS)
    across = []
    for at in ("feed: active", "prices: active", "alerts: active"):
        box = await node(at).bounding_box()
        assert box is not None
        across.append(box["x"])
    assert across == sorted(set(across))  # what is needed stands left of who needs it

    await node("alerts: active").focus()
    await operator.page.keyboard.press("Enter")
    await expect(operator.facts("Depends on")).to_have_text("prices", timeout=MS)
    await expect(operator.page.locator("#instances tbody tr")).to_contain_text("worker-1")
    await expect(operator.page.locator("#instances tbody tr")).to_contain_text("41")
    await report("prices", "error", "feed", lastError="no answer from the exchange")
    await expect(node("prices: error")).to_be_visible(timeout=MS)  # the cluster publishes the change
    await node("prices: error").click()
    await expect(operator.facts("Required by")).to_have_text("alerts", timeout=MS)
    await expect(operator.facts("Last error")).to_have_text("no answer from the exchange")
    await operator.reads("prices in trouble")

    for name in ("prices", "alerts", "feed"):
        await operator.page.goto(f"{front.admin}/console#services/{name}")
        await expect(operator.page.locator("#service-title")).to_have_text(name, timeout=MS)
        await operator.press("Remove…")
        await operator.confirm(f"Remove {name}?", "Remove")
        await operator.is_told(f"{name} is removed.")
        await expect(operator.page.locator("#service")).to_be_hidden(timeout=MS)


# ---- the cache


async def test_the_cache_shows_what_it_does_and_an_entry_is_looked_up_and_deleted(
    plain: Cluster, front: LoadBalancer, console: Open, api: Callable[[Front], Api]
) -> None:
    back_end = api(front)
    for key in ("shown:1", "shown:2", "shown:3"):
        assert (await back_end.http.put(f"/api/cache/{key}", json={"value": {"of": key}})).status_code == 200
    operator = await console(front)
    await operator.go("Cache")
    await operator.reads("Only administrators can see the figures")
    await operator.sign_in()
    await expect(operator.page.locator("#cache-tiles dt").first).to_have_text("Reads", timeout=MS)

    await operator.page.get_by_label("Key or a prefix").fill("shown:1")
    await operator.press("Look up")
    await expect(operator.page.locator("#entry")).to_contain_text('"of": "shown:1"', timeout=MS)
    await operator.reads("Expires in")
    await expect(operator.page.locator("#cache-tiles b").first).not_to_have_text(
        "0", timeout=MS
    )  # it was asked for that
    await operator.press("Delete…")
    await operator.confirm("Delete shown:1?", "Delete")
    await operator.is_told("shown:1 is deleted.")
    await operator.press("Look up")
    await operator.reads("The cache has no value of 'shown:1'")
    assert operator.failed_loads(404) == 1

    await operator.page.get_by_label("Key or a prefix").fill("shown:")
    await operator.press("Delete by prefix…")
    await operator.confirm("Delete all keys that begin with shown:?", "Delete all")
    await operator.is_told("2 entries are deleted.")


# ---- for every eye and hand


async def test_all_of_it_can_be_reached_by_keyboard_alone(plain: Cluster, front: LoadBalancer, console: Open) -> None:
    operator = await console(front)
    page, press = operator.page, operator.page.keyboard.press
    await press("Tab")
    await expect(page.get_by_role("link", name="To the content")).to_be_focused()
    await press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.get_by_role("button", name="Sign in", exact=True).focus()
    await press("Enter")
    await expect(page.get_by_label("Admin token or API key")).to_be_focused()
    await page.keyboard.type(API_KEY)
    await press("Enter")
    await expect(page.locator("#sign-in")).to_be_hidden(timeout=MS)
    await expect(operator.node("n3")).to_have_count(1, timeout=MS)

    await page.get_by_role("link", name="Overview").focus()
    names = []
    for _ in range(30):
        await press("Tab")
        label = "it => it === document.body ? '' : it.getAttribute('aria-label') ?? it.textContent.trim()"
        names.append(str(await page.evaluate(f"() => ({label})(document.activeElement)")))
        outlined = "() => getComputedStyle(document.activeElement).outlineStyle"
        assert names[-1] == "" or await page.evaluate(outlined) != "none", f"no one sees that {names[-1]} has the focus"
    wanted = [
        "Topics",
        "Clients",
        "API key · Sign out",
        "Messages delivered",
        "p99 from publish",
        "Rebalance…",
        "Drain n1",
        "Drain n3",
    ]
    found = [next((at for at, name in enumerate(names) if name.startswith(want)), -1) for want in wanted]
    assert -1 not in found, names
    assert found == sorted(found), names

    await page.get_by_role("button", name="Drain n1").focus()
    await press("Enter")
    await expect(page.get_by_role("button", name="Cancel").locator("visible=true")).to_be_focused()  # not the deed
    await press("Enter")
    await expect(page.locator("#confirm")).to_be_hidden()
    await expect(page.get_by_role("button", name="Drain n1")).to_be_focused()
    await expect(page.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize("width", [320, 400, 768, 1600])
async def test_it_fits_a_window_of_any_width(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api], width: int
) -> None:
    long = "wide:" + "x" * 190
    client = await connect(plain[0], user="y" * 120)
    await client.subscribe(long)
    await api(front).publish("contest-wide", {"unbroken": "z" * 600})
    operator = await console(front, viewport={"width": width, "height": 850})
    assert await operator.width() == width
    await operator.sign_in()
    await expect(operator.node("n1")).to_have_count(1, timeout=MS)
    assert await operator.width() == width
    await operator.page.goto(front.admin + "/console#topics/contest-wide")
    await expect(operator.messages().first).to_be_visible(timeout=MS)
    await expect(operator.page.locator("#topic-list").get_by_text(long)).to_be_visible(timeout=MS)
    assert await operator.width() == width
    await operator.page.goto(f"{front.admin}/console#clients?user={'y' * 120}")
    await operator.press(client.id)
    await operator.reads("Subscribed to 1 topic")
    assert await operator.width() == width


async def test_it_is_dark_where_the_system_is(plain: Cluster, front: LoadBalancer, console: Open) -> None:
    brightness = (
        "() => getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    light, dark = await console(front), await console(front, dark=True)
    assert min(await light.page.evaluate(brightness)) > 200
    assert max(await dark.page.evaluate(brightness)) < 60


async def test_no_other_page_can_frame_it_and_it_loads_nothing_from_elsewhere(
    plain: Cluster, front: LoadBalancer, console: Open
) -> None:
    operator = await console(front)
    loaded: list[str] = []
    operator.page.on("request", lambda request: loaded.append(request.url))
    await operator.page.reload()
    await expect(operator.page.locator("#link")).to_contain_text("Live", timeout=MS)
    assert loaded
    assert all(url.startswith((front.admin, front.admin.replace("http", "ws"))) for url in loaded)
    policy = (await operator.page.request.get(front.admin + "/console")).headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


# ---- pictures


@pytest.mark.parametrize(
    "dark", [pytest.param(False, marks=pytest.mark.picture, id="light"), pytest.param(True, id="dark")]
)
async def test_pictures_of_it_are_taken(
    plain: Cluster, front: LoadBalancer, console: Open, connect: Connect, api: Callable[[Front], Api],
    photograph: Photograph, dark: bool,
) -> None:  # fmt: skip
    for at in range(12):
        client = await connect(front, user=f"user{at}", source=new_source())
        await client.subscribe("contest", "contest-chat", f"token:price:{at % 4}")
    operator = await console(front, viewport={"width": 1280, "height": 900}, dark=dark)
    await operator.sign_in()
    back_end = api(front)
    for at in range(600 if "PICTURES" in os.environ else 40):  # two minutes look better than a few seconds
        wave = 12 + round(8 * math.sin(at / 30) + 3 * math.sin(at / 7))
        await back_end.publish_all([{"topic": "contest", "data": {"leader": f"user{at % 12}"}}] * wave)
        await asyncio.sleep(0.2)  # the load's pace, no wait for anything
    await expect(operator.page.locator("#verdict")).to_have_text("All 3 nodes are ready", timeout=MS)
    await photograph(operator.page, "console-dark" if dark else "console")
