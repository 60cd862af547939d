"""gateway.testing: the fixture as another project uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kit.process import clean_environment

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


def test_a_projects_own_tests_get_a_running_gateway_with_their_settings(folder: Path) -> None:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_orders.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder, check=False, capture_output=True, text=True, env=clean_environment() | {"TMPDIR": str(folder)},
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert not [name for name in os.listdir(folder) if name.startswith("gateway-dev")]
