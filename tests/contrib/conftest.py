"""A running gateway for the tests of the integrations, started with the fixture for other projects."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.dev import DevCluster
from gateway.testing import live_gateway as live_gateway

RULES = """
[[topic]]
pattern = "kept*"
history = 1000
"""
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def live_gateway_settings(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Topics that begin with "kept" have history."""
    file: Path = tmp_path_factory.mktemp("rules") / "topics.toml"
    file.write_text(RULES)
    return {"GATEWAY_TOPICS": str(file)}


@pytest.fixture
def topic() -> str:
    """A topic with history that no other test uses."""
    return f"kept-{next(_numbers)}"


@pytest.fixture
def kept(live_gateway: DevCluster) -> Callable[[str], list[Any]]:
    """`kept(topic)`: the messages of a topic."""

    def messages(topic: str) -> list[Any]:
        request = urllib.request.Request(
            f"{live_gateway.url}/api/topics/{topic}/history",
            headers={"Authorization": f"Bearer {live_gateway.api_key}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: list[Any] = json.load(answer)["messages"]
        return found

    return messages
