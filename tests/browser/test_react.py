"""examples/react, and the samples of react-and-vue.md, in Chromium with the real React and Vue."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, WebSocket, expect

from tests.docs.samples import SAMPLES
from tests.kit import npm
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import token
from tests.kit.process import ROOT, program
from tests.kit.waiting import eventually

EXAMPLE = ROOT / "examples" / "react"
SHOWN_MS = 30_000
RULES = """
[[topic]]
pattern = "room:*"
presence = true
history = 100
"""
SAMPLE_PAGE = """
import { createElement, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Gateway } from "websocket-gateway-client";
import { useRoom } from "./useRoom.js";

const gateway = new Gateway("/ws");
gateway.connect();
const Page = () => createElement("section", { "data-state": "" }, createElement("pre", null, useRoom(gateway).text));
createRoot(document.getElementById("app")).render(createElement(StrictMode, null, createElement(Page)));
"""
VUE_PAGE = """
import { createApp, h } from "vue";
import { Gateway } from "websocket-gateway-client";
import { useTopic } from "./useTopicVue.js";

const gateway = new Gateway("/ws");
gateway.connect();
createApp({
  setup() {
    const { messages, members, state } = useTopic(gateway, "room:42");
    return () => h("section", { "data-state": state.value }, [
      h("p", `${members.value} here`), ...messages.value.map(({ data }) => h("li", data.text)),
    ]);
  },
}).mount("#app");
"""


def sample(part: str) -> str:
    """The sample of the page that contains `part`."""
    [found] = [one for one in SAMPLES if one.page.endswith("react-and-vue.md") and part in one.text]
    return found.text


@pytest.fixture
def bundle(folder: Path) -> Callable[[str], str]:
    """`bundle("main.jsx")`: the script of a page of the example's folder, with all that it imports."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    (folder / "useRoom.js").write_text(sample("useRoom"))
    (folder / "useTopicVue.js").write_text(sample('from "vue"'))
    (folder / "sample.js").write_text(SAMPLE_PAGE)
    (folder / "vue.js").write_text(VUE_PAGE)

    def script(name: str) -> str:
        return npm.bundled(folder, folder / "app.js", name).read_text()

    return script


async def opened(browser: Browser, front: LoadBalancer, script: str, user: str | None = None) -> tuple[Page, list[Any]]:
    """A page with the script, and the messages that it sends."""
    context = await browser.new_context()
    page = await context.new_page()
    sent: list[Any] = []

    def on_socket(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.append(json.loads(frame)))

    page.on("websocket", on_socket)
    answer = {"body": token(user), "content_type": "text/plain"} if user else {"status": 401}
    await page.route("**/gateway-token", lambda route: route.fulfill(**answer))
    html = (EXAMPLE / "index.html").read_text()
    await page.route("**/app", lambda route: route.fulfill(body=html, content_type="text/html"))
    await page.route("**/app.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    await page.goto(f"{front.url}/app")
    return page, sent


@pytest.fixture
def rules(folder: Path) -> Path:
    """The rules of the room."""
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


async def test_two_users_write_and_survive_the_loss_of_their_node(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], browser: Browser, rules: Path,
    bundle: Callable[[str], str], api: Callable[[Front], Api],
) -> None:  # fmt: skip
    nodes = cluster(2, topics=rules)
    front, script = haproxy(nodes.nodes), bundle("main.jsx")
    ann, sent = await opened(browser, front, script, "ann")
    bob, _ = await opened(browser, front, script, "bob")
    for page in (ann, bob):
        await expect(page.locator("p").first).to_have_text("2 here", timeout=SHOWN_MS)
    assert [message["topics"] for message in sent if message["type"] == "SUBSCRIBE"] == [["room:42"]]  # in StrictMode

    await ann.get_by_label("Message").fill("hello from ann")
    await ann.get_by_role("button", name="Send").click()
    for page in (ann, bob):
        await expect(page.locator("li")).to_have_text(["hello from ann"], timeout=SHOWN_MS)

    listed = (await api(nodes[0]).get("/api/clients?user=ann"))["clients"]
    [home] = [node for node in nodes if listed[0]["node"].startswith(node.name)]
    [other] = [node for node in nodes if node is not home]
    home.process.kill()
    await api(other).publish("room:42", {"text": "while ann was away"})
    for page in (ann, bob):
        await expect(page.locator("li")).to_have_text(["hello from ann", "while ann was away"], timeout=SHOWN_MS)
        await expect(page.get_by_role("alert")).to_have_count(0)


async def test_an_anonymous_user_reads_and_is_told_why_a_message_was_not_sent(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], browser: Browser, rules: Path,
    bundle: Callable[[str], str],
) -> None:  # fmt: skip
    page, _ = await opened(browser, haproxy(cluster(1, topics=rules).nodes), bundle("main.jsx"))
    await expect(page.locator("section")).to_have_attribute("data-state", "subscribed", timeout=SHOWN_MS)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("output")).to_contain_text("Authentication required", timeout=SHOWN_MS)


@pytest.mark.parametrize("name", ["sample.js", "vue.js"])
async def test_the_samples_of_the_page_show_messages(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], browser: Browser, rules: Path,
    bundle: Callable[[str], str], api: Callable[[Front], Api], name: str,
) -> None:  # fmt: skip
    [node] = cluster(1, topics=rules)
    page, sent = await opened(browser, haproxy([node]), bundle(name))

    async def shown() -> bool:
        await api(node).publish("room:42", {"text": "hello"})
        return "hello" in await page.inner_text("section")

    await eventually(shown, 30, "the page shows the message")
    assert sum(message["type"] == "SUBSCRIBE" for message in sent) == 1


def test_typescript_accepts_a_program_with_the_types_of_the_package(folder: Path) -> None:
    packages = npm.installed("react", *npm.REACT)
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "websocket-gateway-client").symlink_to(npm.CLIENT)
    (folder / "page.ts").write_text(
        """
        import { Gateway, Refused, type Message } from "websocket-gateway-client";

        const gateway = new Gateway("/ws", { getToken: async () => null });
        const subscription = gateway.subscribe<{ text: string }>("room:42", {
          onData: ({ data, offset }: Message<{ text: string }>) => console.log(data.text.length, offset),
          onGap: ({ reason }) => console.log(reason.length),
          onState: (state, error) => { if (state === "ended" && error instanceof Refused) console.log(error.code); },
        });
        for await (const message of gateway.topic<number>("price")) message.data.toFixed();
        await gateway.publish("room:42", { text: "hello" });
        // @ts-expect-error  a topic is a text
        gateway.subscribe(42);
        // @ts-expect-error  there is no such event
        gateway.subscribe("room:42", { onMessage: () => {} });
        subscription.close();
        """
    )
    command = [
        program("node"), str(packages / "node_modules" / "typescript" / "bin" / "tsc"), "--noEmit", "--strict",
        "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "page.ts",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
