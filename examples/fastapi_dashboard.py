"""A dashboard in FastAPI: a task of the application publishes a figure each second.

GATEWAY_ORIGINS=http://127.0.0.1:8000 gateway dev           prints the Redis URL
REDIS_URL=unix:///tmp/… uvicorn --app-dir examples fastapi_dashboard:app --port 8000
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from gateway.contrib.fastapi import GatewayPublisher, publisher_lifespan

GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
PAGE = """<!doctype html><title>Dashboard</title>
<p>Load: <output id=load>-</output> <p>Note: <output id=note>-</output>
<script type=module>
  import { Gateway } from "%(gateway)s/gateway.js";
  const gateway = new Gateway("%(gateway)s/ws".replace("http", "ws"));
  gateway.subscribe("dashboard", { onData: ({ data }) => {
    for (const [name, value] of Object.entries(data)) document.getElementById(name).textContent = value;
  } });
  await gateway.connect();
  document.body.dataset.ready = "yes";
</script>"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with publisher_lifespan(os.environ["REDIS_URL"])(app) as state, asyncio.TaskGroup() as tasks:
        measuring = tasks.create_task(measure(state["gateway_publisher"]))
        yield dict(state)
        measuring.cancel()


async def measure(gateway: GatewayPublisher) -> None:
    while True:
        await gateway.publish("dashboard", {"load": round(os.getloadavg()[0], 2)})
        await asyncio.sleep(1)


app = FastAPI(lifespan=lifespan)


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE % {"gateway": GATEWAY_URL}


@app.post("/note/{text}")
async def note(text: str, gateway: GatewayPublisher) -> None:
    await gateway.publish("dashboard", {"note": text})
