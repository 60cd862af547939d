"""A person with a browser profile of their own, and a page open in it."""

from __future__ import annotations

from typing import Any, Protocol

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize


class Place(Protocol):
    """Where a page is: a load balancer, or a proxy before one."""

    url: str


MS = 20_000  # the longest a test waits for a page, in playwright's unit
WIDE: ViewportSize = {"width": 1280, "height": 800}


class Visitor:
    """Someone at a page; `faults` are script errors, refusals of the content security policy and failed loads."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.context: BrowserContext = page.context
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._on_console)

    @classmethod
    async def open(
        cls, browser: Browser, front: Place, path: str = "/", *, html: str = "", **context: Any
    ) -> Visitor:  # fmt: skip
        """A new visitor at `path`; `html` is what they find there, where the cluster has no page of its own."""
        profile = await browser.new_context(**{"viewport": WIDE, **context})
        page = await profile.new_page()
        if html:
            await page.route(front.url + path, lambda route: route.fulfill(body=html, content_type="text/html"))
        visitor = cls(page)
        answer = await page.goto(front.url + path)
        assert answer is not None
        assert answer.ok
        return visitor

    def failed_loads(self, status: int) -> int:
        """Take the browser's own lines on answers of this status from the faults; how many there were."""
        mine = [fault for fault in self.faults if f"a status of {status}" in fault]
        self.faults[:] = [fault for fault in self.faults if fault not in mine]
        return len(mine)

    def _on_console(self, message: ConsoleMessage) -> None:
        # Chromium itself complains of a socket that could not be opened: that is no fault of the page.
        if message.type in ("error", "warning") and "WebSocket connection to" not in message.text:
            self.faults.append(message.text)
