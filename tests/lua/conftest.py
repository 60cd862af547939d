"""One redis-server for all tests of the Lua steps; each test begins with an empty one and a namespace of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.broker.keys import Keys
from tests.kit.redis import Redis
from tests.lua.steps import Steps


@pytest.fixture(scope="session")
def stepping() -> Iterator[Steps]:
    """The session's own server; tests take it as `steps`."""
    with tempfile.TemporaryDirectory(prefix="gateway-test-") as folder, Redis(Path(folder)) as server:
        steps = Steps(server.url)
        yield steps
        steps.close()


@pytest.fixture
def steps(stepping: Steps) -> Steps:
    """Lua steps on an empty Redis."""
    stepping.begin()
    return stepping


@pytest.fixture
def keys(steps: Steps) -> Keys:
    """Names of the test's own namespace."""
    return steps.keys
