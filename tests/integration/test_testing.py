"""gateway.testing: the fixture as another project uses it, and as docs/how-to/test-your-application.md shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.kit.process import ROOT, clean_environment

CONFTEST = """
import pytest

pytest_plugins = ["gateway.testing"]

@pytest.fixture(scope="session")
def live_gateway_settings():
    return {"GATEWAY_OPEN": "0", "GATEWAY_DEFAULT_SUBSCRIBE": "user"}
"""

TESTS = """
import asyncio

import pytest

from gateway import tokens
from gateway.client import Gateway, Refused

def test_a_client_with_a_token_subscribes(live_gateway):
    async def subscribe(**login):
        async with Gateway(live_gateway.ws_url, **login) as gateway:
            await gateway.subscribe("orders")

    asyncio.run(subscribe(token=tokens.issue(live_gateway.jwt_secret, "ann")))
    with pytest.raises(Refused):
        asyncio.run(subscribe())

def test_the_gateway_is_the_same_in_the_next_test(live_gateway):
    assert live_gateway.redis_url.startswith("unix://")
"""


def _run_tests(folder: Path) -> str:
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder, check=False, capture_output=True, text=True, env=clean_environment() | {"TMPDIR": str(folder)},
    )  # fmt: skip
    assert not [name for name in os.listdir(folder) if name.startswith("gateway-dev")]
    return done.stdout + done.stderr


def test_a_projects_own_tests_get_a_running_gateway_with_their_settings(folder: Path) -> None:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_orders.py").write_text(TESTS)
    printed = _run_tests(folder)
    assert "2 passed" in printed, printed


def test_the_page_shows_a_test_that_passes(folder: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "test-your-application.md").read_text()
    conftest, test = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_sample.py").write_text(test)
    printed = _run_tests(folder)
    assert "1 passed" in printed, printed
