"""Runs random cases with both clients against a model of the server (tests/model)."""

from __future__ import annotations

import atexit
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from random import Random

from tests.model import cases
from tests.model.browser_client import BrowserClient
from tests.model.play import failure
from tests.model.python_client import PythonClient


def case(random: Random) -> int:
    """Runs one case with each client; returns the number of steps."""
    made = cases.make(random)
    # The Python client has its own event loop, which cannot run inside this one.
    with ThreadPoolExecutor(1) as other:
        other.submit(_play_python, made).result()
    _play(_browser(), made)
    return len(made)


def _play_python(made: cases.Case) -> None:
    with PythonClient() as client:
        _play(client, made)


def _play(client: BrowserClient | PythonClient, made: cases.Case) -> None:
    found = failure(client, made)
    if found is not None:
        least = cases.shrink(made, lambda part: failure(client, part) is not None)
        raise AssertionError(f"{type(client).__name__}: {failure(client, least)}\n{json.dumps(least)}")


@cache
def _browser() -> BrowserClient:
    client = BrowserClient()
    atexit.register(client.close)
    return client
