"""Runs samples: shell and Python as programs, JavaScript and HTML as pages in Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
from playwright.async_api import Browser, BrowserContext, Page, Route, WebSocket

from tests.browser.visitor import Visitor
from tests.docs.place import USER, Place
from tests.docs.samples import Sample
from tests.kit.node import API_KEY, token
from tests.kit.process import ROOT, free_port
from tests.kit.waiting import eventually

SECONDS: Final = 60.0  # the longest a sample runs
CURLRC: Final = "fail\nnoproxy = *\n"  # curl fails where the API refuses
SHELL: Final = """
set -euo pipefail
redis-cli() {{ command redis-cli -p {port} "$@"; }}
"""
# make up, down and status of a stack in this folder, without the step that installs packages.
STACK: Final = """
make() { python -m stack "$1" ${2+"${2#NODES=}"}; }
"""
# A sample may await at its top level, as in a notebook.
PYTHON: Final = """
import ast, asyncio, inspect, sys
code = compile(open(sys.argv[1]).read(), sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
scope = {"__name__": "__main__"}
result = eval(code, scope)
if inspect.iscoroutine(result):
    asyncio.run(result)
"""
# What pages of the documentation take from the application around them.
AROUND: Final = """
globalThis.show = globalThis.reload = (text) => document.body.append(String(text));
globalThis.getToken = () => fetch("/token").then((answer) => answer.text());
"""
PAGE: Final = """<!doctype html><title>sample</title><body><script type="module">
{code}
</script></body>"""


async def run_program(sample: Sample, place: Place, folder: Path) -> None:
    """Run a shell or Python sample; it must succeed, or print what ends it."""
    text = place.localized(sample.text)
    (folder / ".curlrc").write_text(CURLRC)
    for name in ("deploy", ".venv"):
        (folder / name).symlink_to(ROOT / name)  # as in a clone
    environment = place.environment() | {"PYTHONUNBUFFERED": "1", "CURL_HOME": str(folder)}
    if sample.marker == "in a stack":
        environment |= stack_environment(folder)
        text = STACK + text
    if sample.language == "sh":
        command = ["bash", "-c", SHELL.format(port=place.redis.port) + text]
    else:
        (folder / "sample.py").write_text(text)
        command = [sys.executable, "-c", PYTHON, "sample.py"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    printed = b""
    try:
        async with asyncio.timeout(SECONDS):
            while sample.end is None or sample.end.encode() not in printed:
                part = await process.stdout.read(1 << 16)
                if not part:
                    break
                printed += part
            else:
                return
            code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if sample.marker == "in a stack":  # also after a failure
            down = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "stack", "down", cwd=folder, env=environment, stdout=asyncio.subprocess.DEVNULL
            )
            await down.wait()
    assert sample.end is None, f"it ended, and never printed {sample.end}:\n{printed.decode()}"
    assert code == 0, printed.decode()


def stack_environment(folder: Path) -> dict[str, str]:
    """The variables of a local stack whose state is in `folder`."""
    public, internal = free_port(), free_port()
    return {
        "STACK": "local", "STACK_DIR": str(folder / ".run"), "LB_PORT": str(public), "LB_ADMIN_PORT": str(internal),
        "NODE_PORT": str(free_port()), "GATEWAY_URL": f"http://127.0.0.1:{internal}",
    }  # fmt: skip


async def run_page(sample: Sample, place: Place, browser: Browser) -> None:
    """Open a page with the sample: it subscribes, receives a message on each of its topics, and has no fault."""
    async with await browser.new_context() as context:
        await _run_page(sample, place, context)


async def _run_page(sample: Sample, place: Place, context: BrowserContext) -> None:
    text = place.localized(sample.text)
    page = text if sample.language == "html" else PAGE.format(code=text)
    received: list[Any] = []

    def on_socket(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: received.append(orjson.loads(frame)))

    async def give_token(route: Route) -> None:
        await route.fulfill(body=token(USER), content_type="text/plain")

    await context.add_init_script(AROUND)
    for path in ("/token", "/gateway-token", "/token.txt"):
        await context.route(place.front.url + path, give_token)
    await context.route(f"{place.front.url}/sample", lambda route: route.fulfill(body=page, content_type="text/html"))
    opened = await context.new_page()
    visitor = Visitor(opened)
    opened.on("websocket", on_socket)
    await opened.goto(f"{place.front.url}/sample")

    def of(**fields: object) -> list[Any]:
        return [message for message in received if fields.items() <= message.items()]

    async def hears(what: str, **fields: object) -> None:
        await eventually(lambda: bool(visitor.faults or of(**fields)), SECONDS, f"the page {what}")

    if "EventSource" in text:
        await eventually(lambda: _shows_what_is_published(place, opened), SECONDS, "the page shows a message")
    else:
        await hears("is connected", action="welcome")
    if "SUBSCRIBE" in text or ".subscribe(" in text:
        await hears("has subscribed", operation="subscribe", status="success")
        topics = {topic for message in of(operation="subscribe") for topic in message["topics"]}
        await _publish(place, topics)
        for topic in topics:
            await hears("has a message", type="DATA", topic=topic)
    await opened.evaluate("() => 0")  # what the page does with the message has happened
    assert not visitor.faults, "\n".join(visitor.faults)


async def _publish(place: Place, topics: Iterable[str]) -> None:
    messages = [{"topic": topic, "data": {"text": "hello"}} for topic in topics]
    async with httpx.AsyncClient(base_url=place.node.url, trust_env=False) as api:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        (await api.post("/api/publish", json={"messages": messages}, headers=headers)).raise_for_status()


async def _shows_what_is_published(place: Place, page: Page) -> bool:
    await _publish(place, ["contest"])
    return "hello" in await page.inner_text("body")
