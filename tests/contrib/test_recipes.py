"""The recipes of web-frameworks.md and log-in-users.md in docs/how-to/, run unchanged with the real frameworks."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.dev import DevCluster
from tests.contrib.running import running
from tests.kit.process import ROOT

Kept = Callable[[str], list[Any]]
PAGE = (ROOT / "docs" / "how-to" / "web-frameworks.md").read_text()


@pytest.fixture
def recipe(live_gateway: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """`recipe("Flask", orders="kept-1")`: the module that the section shows, with one topic in place of another."""
    monkeypatch.setenv("REDIS_URL", live_gateway.redis_url)
    monkeypatch.setenv("BROKER_URL", "memory://")

    def load(section: str, **topics: str) -> ModuleType:
        found = re.search(rf"^## {section}\n.*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        assert found is not None
        code = found[1]
        for old, new in topics.items():
            code, count = re.subn(rf'(f?"){old}(?=[":])', rf"\g<1>{new}", code)
            assert count == 1
        file = tmp_path / f"{section.lower()}_recipe.py"
        file.write_text(code)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_flask(recipe: Callable[..., ModuleType], topic: str, kept: Kept) -> None:
    module = recipe("Flask", orders=topic)
    assert module.app.test_client().post("/orders/7").json == {"id": 7}
    module.gateway.close()
    assert [message["data"] for message in kept(topic)] == [{"id": 7}]


def test_celery(recipe: Callable[..., ModuleType], topic: str, kept: Kept) -> None:
    module = recipe("Celery", progress=topic)
    module.app.conf.task_always_eager = True
    module.convert.delay("j1").get()
    module.gateway.close()
    assert [message["data"]["percent"] for message in kept(f"{topic}:j1")] == list(range(0, 101, 10))


async def test_fastapi(recipe: Callable[..., ModuleType], topic: str, kept: Kept) -> None:
    module = recipe("FastAPI", orders=topic)
    async with running(module.app) as client:
        assert (await client.post("/orders", json={"id": 7})).status_code == 200
    assert [message["data"] for message in kept(topic)] == [{"id": 7}]
