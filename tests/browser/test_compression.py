"""Shared compression with Chromium, which always offers it and compresses every message it sends."""

from __future__ import annotations

from collections.abc import Callable

from playwright.async_api import Browser

from tests.browser.visitor import Visitor
from tests.kit.client import Api
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import Node
from tests.kit.waiting import eventually

PAGE = """<!doctype html>
<title>Prices</title>
<script>
  window.received = [];
  window.socket = new WebSocket(`ws://${location.host}/ws`);
  socket.onopen = () => socket.send(JSON.stringify({ type: "SUBSCRIBE", topics: ["prices"], requestId: "1" }));
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "ACKNOWLEDGMENT") window.ready = true;
    if (message.type === "DATA") received.push(message.data);
  };
</script>
"""


async def test_chromium_reads_what_is_compressed_for_all(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], browser: Browser, api: Callable[[Node], Api]
) -> None:
    (node,) = cluster(1, compression=1)
    page = (await Visitor.open(browser, haproxy([node]), "/mine", html=PAGE)).page
    await eventually(lambda: page.evaluate("window.ready"), what="the page hears its topic")
    assert "permessage-deflate" in await page.evaluate("socket.extensions")
    prices = [{"symbol": f"TOKEN{at}", "price": at * 1.07, "note": "höher ↑"} for at in range(200)]
    wanted = [prices, "small", *range(20), prices[::-1], {"last": True}]
    await api(node).publish_all([{"topic": "prices", "data": data} for data in wanted])
    await eventually(lambda: page.evaluate("received.at(-1)?.last"), what="the page has received the last message")
    assert await page.evaluate("received") == wanted
    sent = node.metric("gateway_deflate_out_bytes_total")
    assert 0 < 3 * sent < node.metric("gateway_deflate_in_bytes_total")
