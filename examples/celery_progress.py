"""A progress bar for a Celery task: the worker publishes each step, a Flask page shows it.

GATEWAY_ORIGINS=http://127.0.0.1:8000 gateway dev           prints the Redis URL
export REDIS_URL=unix:///tmp/… BROKER_URL=redis+socket:///tmp/…
celery --workdir examples --app celery_progress:work worker &
flask --app examples/celery_progress run --port 8000
"""

import os
import time
import uuid

from celery import Celery
from flask import Flask

from gateway.sync_publisher import SyncPublisher

GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
work = Celery("celery_progress", broker=os.environ["BROKER_URL"])
gateway = SyncPublisher(os.environ["REDIS_URL"])  # each process of the worker connects for itself
app = Flask(__name__)
PAGE = """<!doctype html><title>Progress</title>
<button>Convert</button> <progress max=100 value=0></progress>
<script type=module>
  import { Gateway } from "%(gateway)s/gateway.js";
  const gateway = new Gateway("%(gateway)s/ws".replace("http", "ws"));
  const bar = document.querySelector("progress");
  document.querySelector("button").onclick = async () => {
    const job = crypto.randomUUID();
    await gateway.subscribe(`progress:${job}`, { onData: ({ data }) => { bar.value = data.percent; } }).ready;
    await fetch(`/convert/${job}`, { method: "POST" });
  };
  await gateway.connect();
  document.body.dataset.ready = "yes";
</script>"""


@work.task
def convert(job: str) -> None:
    for percent in range(0, 101, 20):
        gateway.publish(f"progress:{job}", {"percent": percent})
        time.sleep(0.1)  # the work


@app.get("/")
def page() -> str:
    return PAGE % {"gateway": GATEWAY_URL}


@app.post("/convert/<uuid:job>")
def start(job: uuid.UUID) -> dict[str, str]:
    convert.delay(str(job))
    return {"job": str(job)}
