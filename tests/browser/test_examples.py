"""The examples for Django, FastAPI and Celery in Chromium, started by the commands in their first lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, expect

from gateway.dev import DevCluster
from tests.kit.process import ROOT, Process, clean_environment, free_port
from tests.kit.waiting import until

EXAMPLES = ROOT / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(folder: Path) -> Iterator[Run]:
    """`run([command, …], …)`: starts the commands and a gateway for them; the address of the page that they serve."""
    port = free_port()
    with ExitStack() as stack:

        def start(*commands: Sequence[str]) -> str:
            url = f"http://127.0.0.1:{port}"
            gateway = stack.enter_context(DevCluster(data=folder / "dev", settings={"GATEWAY_ORIGINS": url}))
            env = clean_environment() | {
                "GATEWAY_URL": gateway.url, "REDIS_URL": gateway.redis_url, "DATABASE": str(folder / "chat.sqlite3"),
                "BROKER_URL": gateway.redis_url.replace("unix:", "redis+socket:"), "C_FORCE_ROOT": "1",
            }  # fmt: skip
            for at, command in enumerate(commands):
                words = [word.replace("PORT", str(port)) for word in command]
                process = Process(f"example{at}", [sys.executable, *words], folder / f"example{at}.log", env)
                stack.callback(process.close)
                stack.callback(process.terminate)
                process.spawn()
            until(lambda: _answers(url), 60, "the example serves its page")
            return url

        yield start


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_django_chat_shows_messages_from_another_window(run: Run, browser: Browser) -> None:
    url = run([str(EXAMPLES / "django_chat.py"), "runserver", "--noreload", "PORT"])
    ann, bob = await browser.new_page(), await browser.new_page()
    for page in (ann, bob):
        await page.goto(url)
        await expect(page.locator("body[data-ready]")).to_be_attached(timeout=20_000)
    await ann.fill("#text", "hello from ann")
    await ann.click("button")
    for page in (ann, bob):
        await expect(page.locator("li")).to_have_text("hello from ann", timeout=20_000)


async def test_a_fastapi_dashboard_shows_figures_and_notes(run: Run, browser: Browser) -> None:
    url = run(["-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_dashboard:app", "--port", "PORT"])
    page = await browser.new_page()
    await page.goto(url)
    await expect(page.locator("body[data-ready]")).to_be_attached(timeout=20_000)
    await expect(page.locator("#load")).not_to_have_text("-", timeout=20_000)
    assert (await page.request.post(f"{url}/note/hello")).ok
    await expect(page.locator("#note")).to_have_text("hello", timeout=20_000)


async def test_a_celery_task_moves_a_progress_bar(run: Run, browser: Browser) -> None:
    worker = [
        "-m",
        "celery",
        "--workdir",
        str(EXAMPLES),
        "--app",
        "celery_progress:work",
        "worker",
        "--concurrency",
        "1",
    ]
    url = run(worker, ["-m", "flask", "--app", str(EXAMPLES / "celery_progress"), "run", "--port", "PORT"])
    page = await browser.new_page()
    await page.goto(url)
    await expect(page.locator("body[data-ready]")).to_be_attached(timeout=20_000)
    await page.click("button")
    await expect(page.locator("progress")).to_have_js_property("value", 100, timeout=40_000)
