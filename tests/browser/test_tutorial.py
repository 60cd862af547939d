"""The chat of docs/tutorial in Chromium: two users on two nodes, one of which is killed. Its pages show its code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from gateway.dev import DevCluster
from tests.docs.samples import SAMPLES, Sample
from tests.kit import npm
from tests.kit.process import ROOT, Process, clean_environment, free_port

EXAMPLE = ROOT / "examples" / "tutorial"
PAGES = [sample for sample in SAMPLES if sample.page.startswith("docs/tutorial/") and sample.runner]
SHOWN_MS = 30_000
BACKEND_SECRET = "the back end and the nodes share this secret"


@pytest.fixture
def chat(folder: Path) -> Iterator[tuple[str, DevCluster]]:
    """The address of the chat, and the gateway of two nodes behind it."""
    port = free_port()
    url = f"http://localhost:{port}"
    settings = {
        "GATEWAY_OPEN": "0", "GATEWAY_TOPICS": str(EXAMPLE / "topics.toml"), "GATEWAY_ORIGINS": url,
        "GATEWAY_BACKEND_URL": f"http://127.0.0.1:{port}", "GATEWAY_BACKEND_SECRET": BACKEND_SECRET,
    }  # fmt: skip
    with DevCluster(2, data=folder / "dev", settings=settings) as gateway:
        environment = clean_environment() | {
            "GATEWAY_JWT_SECRET": gateway.jwt_secret, "GATEWAY_BACKEND_SECRET": BACKEND_SECRET,
            "REDIS_URL": gateway.redis_url, "SCRIPT": str(npm.bundled(EXAMPLE, folder / "app.js")),
            "GATEWAY_SOCKETS": " ".join(f"ws://localhost:{each}/ws" for each in gateway.ports),
        }  # fmt: skip
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLE), "chat:app", "--port", str(port)]
        back_end = Process("back end", command, folder / "back_end.log", environment)
        try:
            back_end.spawn()
            back_end.until_listens(port)
            yield url, gateway
        finally:
            back_end.close()


async def entered(browser: Browser, url: str, name: str, node: int) -> Page:
    """A page on which `name` has logged in, first connected to this node."""
    page = await (await browser.new_context()).new_page()
    await page.goto(f"{url}/?node={node}")
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.locator("section")).to_have_attribute("data-state", "subscribed", timeout=SHOWN_MS)
    return page


async def said(page: Page, text: str) -> None:
    """Write a message in the page."""
    await page.get_by_label("Message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def test_two_users_chat_while_a_node_is_killed(chat: tuple[str, DevCluster], browser: Browser) -> None:
    url, gateway = chat
    ann, bob = await entered(browser, url, "ann", 0), await entered(browser, url, "bob", 1)
    for page in (ann, bob):
        await expect(page.locator("p").first).to_have_text("2 here", timeout=SHOWN_MS)
    await said(ann, "hello")
    for page in (ann, bob):
        await expect(page.locator("li")).to_have_text(["ann: hello"], timeout=SHOWN_MS)

    os.kill(gateway.pid("node1"), signal.SIGKILL)
    await said(bob, "still there?")
    for page in (ann, bob):
        await expect(page.locator("li")).to_have_text(["ann: hello", "bob: still there?"], timeout=SHOWN_MS)
        await expect(page.get_by_role("alert")).to_have_count(0)


async def test_strangers_neither_read_nor_write(chat: tuple[str, DevCluster]) -> None:
    url, _ = chat
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        message = {"text": "hello"}
        assert (await client.get("/gateway-token")).status_code == 401
        assert (await client.post("/rooms/lobby/messages", json=message)).status_code == 401
        assert (await client.post("/permissions", json={"topics": ["room:lobby"], "user": "ann"})).status_code == 401
        assert (await client.post("/login", json={"name": "eve"})).status_code == 200
        assert (await client.post("/rooms/lobby/messages", json=message)).status_code == 403


@pytest.mark.parametrize("sample", PAGES, ids=lambda sample: f"{sample.page}:{sample.line}")
def test_the_pages_show_the_code_of_the_example(sample: Sample) -> None:
    code = [file.read_text() for file in EXAMPLE.iterdir() if file.is_file()]
    assert any(sample.text.strip() in text for text in code), "the code differs from examples/tutorial"
