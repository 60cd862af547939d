"""The place where samples run, once for all of them; and Chromium."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.conftest import CHROMIUM_ARGUMENTS
from tests.docs.place import Place, running
from tests.kit.process import program


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """A node behind HAProxy for all samples of this process."""
    with tempfile.TemporaryDirectory(prefix="gateway-docs-") as folder, running(Path(folder)) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all samples of this process; their tests run in the session's event loop."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=program("chromium"), args=CHROMIUM_ARGUMENTS)
        yield chromium
        await chromium.close()
