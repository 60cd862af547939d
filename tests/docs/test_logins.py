"""The back ends of docs/how-to/log-in-users.md: their tokens log in at a node, and strangers get none."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from gateway.client import Gateway
from tests.contrib.running import running
from tests.docs.place import Place
from tests.docs.samples import SAMPLES
from tests.kit import npm
from tests.kit.node import JWT_SECRET
from tests.kit.process import Process, clean_environment, free_port, program

DJANGO = """
import types
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x", INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()
from django.contrib.auth.models import AnonymousUser
from django.test import RequestFactory
from login import gateway_token
request = RequestFactory().get("/gateway-token")
request.user = AnonymousUser()
assert gateway_token(request).status_code == 401
request.user = types.SimpleNamespace(is_authenticated=True, pk="ann")
print(gateway_token(request).content.decode())
"""


def code(part: str) -> str:
    """The sample of the page that contains `part`."""
    [sample] = [one for one in SAMPLES if one.page.endswith("log-in-users.md") and part in one.text]
    return sample.text


async def logs_in(place: Place, token: str) -> bool:
    """Whether a node takes the token as that of the user ann, whose topic no other user may subscribe to."""
    async with Gateway(place.front.ws, token=token) as gateway:
        await gateway.subscribe("user:ann")
        return True


async def test_fastapi(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_JWT_SECRET", JWT_SECRET)
    scope: dict[str, object] = {}
    exec(compile(code("from fastapi"), "sample", "exec"), scope)
    async with running(scope["app"]) as client:
        assert (await client.get("/gateway-token")).status_code == 401
        client.cookies.set("user", "ann")
        token = (await client.get("/gateway-token")).text
    assert await logs_in(place, token)


async def test_django(place: Place, folder: Path) -> None:
    (folder / "login.py").write_text(code("from django"))
    (folder / "main.py").write_text(DJANGO)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "main.py", cwd=folder, env=place.environment(), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert await logs_in(place, printed.decode().strip())


async def test_express(place: Place, folder: Path) -> None:
    packages, port = npm.installed("express", "express@5", "jsonwebtoken@9"), free_port()
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "server.mjs").write_text(code("express()"))
    environment = clean_environment() | {"PORT": str(port), "GATEWAY_JWT_SECRET": JWT_SECRET}
    server = Process("express", [program("node"), str(folder / "server.mjs")], folder / "express.log", environment)
    try:
        server.spawn()
        server.until_listens(port)
        url = f"http://127.0.0.1:{port}/gateway-token"
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(url)).status_code == 401
            token = (await client.get(url, headers={"X-User": "ann"})).text
        assert await logs_in(place, token)
    finally:
        server.close()
