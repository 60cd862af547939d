"""A browser, and the folder of its screenshots."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.kit.process import program

CHROMIUM_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-features=LocalNetworkAccessChecks",  # a page that a test hands out itself counts as the internet's
]  # fmt: skip
# `make pictures` sets it to docs/images; otherwise a test's pictures are left where the tree is not made dirty.
PICTURES = Path(os.environ.get("PICTURES") or "test-artefacts")

Photograph = Callable[[Page, str], Awaitable[None]]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program("chromium"), args=CHROMIUM_ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest.fixture
def photograph() -> Photograph:
    """`await photograph(page, "demo")`: keep what the window shows as demo.png."""

    PICTURES.mkdir(parents=True, exist_ok=True)

    async def take(page: Page, name: str) -> None:
        await page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")

    return take
