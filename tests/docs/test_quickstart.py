"""docs/start/quickstart.md, step by step in Chromium: only the ports differ, and the package is installed already."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.docs.place import Place
from tests.docs.samples import SAMPLES, Sample
from tests.kit.process import Process, clean_environment, free_port
from tests.kit.waiting import until

PAGE = "docs/start/quickstart.md"
STEPS = [sample for sample in SAMPLES if sample.page == PAGE]
SHOWN_MS = 20_000


@pytest.fixture
def ports() -> dict[str, str]:
    """Free ports for those of the page: the node's and the page's own."""
    return {"localhost:8080": f"localhost:{free_port()}", "localhost:8000": f"localhost:{free_port()}"}


def the_step(part: str) -> Sample:
    """The one sample that contains `part`."""
    [step] = [sample for sample in STEPS if part in sample.text]
    return step


@pytest.mark.asyncio(loop_scope="session")
async def test_the_page_receives_a_message(place: Place, folder: Path, ports: dict[str, str], browser: Browser) -> None:
    node_port, page_port = (address.partition(":")[2] for address in ports.values())

    def text(part: str) -> str:
        found = the_step(part).text
        for old, new in ports.items():
            found = found.replace(old, new)
        found = found.replace("gateway dev", f"exec gateway dev --port {node_port}")
        found = found.replace("python3 -m http.server 8000", f"exec python3 -m http.server {page_port}")
        return found.replace('export PATH="$PWD/.venv/bin:$PATH"\n', "")

    environment = clean_environment() | {"PATH": place.environment()["PATH"], "TMPDIR": str(folder)}

    @contextmanager
    def terminal(name: str, part: str) -> Iterator[Process]:
        script = folder / f"{name}.sh"
        script.write_text(f"set -eu\ncd {folder}\n{text(part)}")
        process = Process(name, ["bash", str(script)], folder / f"{name}.log", environment)
        try:
            process.spawn()
            yield process
            process.terminate()
            process.exit_code()
        finally:
            process.close()

    def enter(part: str) -> None:
        command = ["bash", "-ec", text(part)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()

    enter("mkdir my-page")
    (folder / "my-page" / "rules.toml").write_text(text("[[topic]]"))
    (folder / "my-page" / "index.html").write_text(text("<!doctype html>"))
    with terminal("node", "GATEWAY_OPEN=0") as node:
        until(lambda: any("Ctrl-C stops it" in line for line in node.log()), 60, "gateway dev runs")
        with terminal("page", "gateway token issue ann") as server:
            server.until_listens(int(page_port))
            page = await browser.new_page()
            await page.goto(f"http://{ports['localhost:8000']}/")
            await expect(page.locator("#out")).to_contain_text("subscribed", timeout=SHOWN_MS)
            enter("gateway publish")
            await expect(page.locator("#out")).to_contain_text("Hello Ann", timeout=SHOWN_MS)
            await page.close()


def test_each_step_is_run_in_the_order_of_the_page() -> None:
    words = [
        "git clone",
        "mkdir my-page",
        "[[topic]]",
        "<!doctype html>",
        "gateway dev",
        "token issue",
        "gateway publish",
    ]
    assert [next(word for word in words if word in step.text) for step in STEPS] == words
    assert re.search(r"`my-page/index\.html`", Path(PAGE).read_text())
