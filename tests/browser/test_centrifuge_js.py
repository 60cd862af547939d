"""The npm package `centrifuge` in Chromium: the page of the example at HAProxy and two nodes, one of which dies."""

from __future__ import annotations

import asyncio
import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY
from tests.kit.process import ROOT, clean_environment
from tests.kit.waiting import eventually

EXAMPLE = ROOT / "examples" / "centrifugo"
SECONDS = 30.0


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def site(folder: Path) -> Iterator[str]:
    """The address of the example's page, beside the package."""
    npm = shutil.which("npm")
    assert npm, "npm is not installed, and the test needs it"
    files = folder / "site"
    files.mkdir()
    shutil.copy(EXAMPLE / "index.html", files)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefer-offline", "centrifuge@5"]
    subprocess.run(command, cwd=files, check=True, capture_output=True, timeout=120)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(files)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(front: LoadBalancer, text: str) -> str:
    """Run the example's publisher; what it prints."""
    command = [sys.executable, str(EXAMPLE / "publish.py"), f"{front.api_url}/api", API_KEY, text]
    env = clean_environment()
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS, env=env).stdout


@pytest.mark.parametrize("transport", ["websocket", "http_stream", "sse"])
async def test_a_page_receives_everything_while_a_node_dies(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], site: str, browser: Browser, transport: str
) -> None:
    nodes = cluster(2, centrifugo=1, topics=EXAMPLE / "rules.toml", origins=site, open=1)
    front = haproxy(nodes.nodes, LB_ORIGINS=site)
    page = await browser.new_page()
    await page.goto(f"{site}/?gateway={front.url}&transport={transport}")
    await expect(page.locator("#state")).to_have_text("connected", timeout=SECONDS * 1000)
    await expect(page.locator("#transport")).to_have_text(transport)
    await expect(page.locator("#clients")).to_have_text("1", timeout=SECONDS * 1000)
    await page.fill("#text", "from the page")
    await page.click("button")
    await expect(page.locator("li")).to_contain_text("from the page (from ", timeout=SECONDS * 1000)
    assert "'one'" in await asyncio.to_thread(publish, front, "one")
    await expect(page.locator("li")).to_have_count(2, timeout=SECONDS * 1000)
    victim, other = sorted(nodes, key=lambda node: node.metric("gateway_connections"), reverse=True)
    victim.kill()
    await eventually(lambda: front.down(victim), SECONDS)
    assert "'two'" in await asyncio.to_thread(publish, front, "two")
    await expect(page.locator("li")).to_have_count(3, timeout=SECONDS * 1000)
    await expect(page.locator("#state")).to_have_text("connected", timeout=SECONDS * 1000)
    assert [(await one.text_content() or "").partition(" (")[0] for one in await page.locator("li").all()] == [
        "from the page", "one", "two"
    ]  # fmt: skip
    await eventually(lambda: other.metric("gateway_connections") == 1, SECONDS)
