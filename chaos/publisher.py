"""Publishes numbered messages at a steady rate: each number once, and the next only after the last one.

On topics with history the publisher retries with an idempotency key until the publish is acknowledged, so no message
is published twice. On other topics a number without an answer 200 is `unsure`: it may have been published.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Self

import httpx

from chaos.plan import Plan, keeps
from tests.kit.node import API_KEY

TRY_SECONDS = 3.0  # longer than a node's deadline for Redis
RETRY_SECONDS = (0.05, 0.3)


class Publisher:
    """Publishes through HAProxy's internal port, on any node; through the next load balancer if one fails."""

    def __init__(self, urls: Iterable[str], plan: Plan, rng: random.Random) -> None:
        self.published: dict[str, int] = dict.fromkeys(plan.topics(), 0)
        self.unsure: dict[str, set[int]] = {topic: set() for topic in self.published}
        self.retries = 0
        self._plan = plan
        self._run = f"{rng.getrandbits(64):x}"
        self._rng = rng
        self._going = asyncio.Event()
        self._busy = {topic: asyncio.Lock() for topic in self.published}  # held while a publish is running
        self._turns = itertools.cycle(urls)
        self._url = next(self._turns)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {API_KEY}"}, timeout=TRY_SECONDS, trust_env=False
        )

    @classmethod
    @asynccontextmanager
    async def running(cls, urls: Iterable[str], plan: Plan, rng: random.Random) -> AsyncIterator[Self]:
        """A publisher, paused at first."""
        publisher = cls(urls, plan, rng)
        async with publisher._http, asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(publisher._publish_all(topic)) for topic in publisher.published]
            try:
                yield publisher
            finally:
                for worker in workers:
                    worker.cancel()

    @property
    def topics(self) -> Iterable[str]:
        """All its topics."""
        return self.published

    def go(self) -> None:
        """Starts publishing at the plan's rate."""
        self._going.set()

    async def pause(self) -> None:
        """Stops; returns when no publish is running."""
        self._going.clear()
        for lock in self._busy.values():
            async with lock:
                pass

    async def close_phase(self) -> None:
        """Publishes one more number on each topic, so that a lost tail shows; on plain topics until one succeeds."""
        for topic, lock in self._busy.items():
            async with lock:
                while not await self._next(topic):  # noqa: ASYNC110  each try has its own deadline
                    await asyncio.sleep(self._rng.uniform(*RETRY_SECONDS))

    async def clients(self) -> dict[str, str] | None:
        """Ids and addresses of all clients that the cluster lists; None if it cannot answer."""
        answer = await self._ask("GET", "/api/clients?limit=10000")
        if answer is None or answer.status_code != 200:
            return None
        return {client["id"]: client["ip"] for client in answer.json()["clients"]}

    async def _publish_all(self, topic: str) -> None:
        rate = self._plan.rate(topic)
        loop = asyncio.get_running_loop()
        due = loop.time() + self._rng.uniform(0, 1 / rate)  # spread the topics
        while True:
            if not self._going.is_set():
                await self._going.wait()
                due = loop.time()
            await asyncio.sleep(max(0.0, due - loop.time()))
            async with self._busy[topic]:
                if self._going.is_set():
                    await self._next(topic)
            due += 1 / rate

    async def _next(self, topic: str) -> bool:
        """Publishes the topic's next number. False if the result is unknown."""
        number = self.published[topic] + 1
        message = {"topic": topic, "data": number}
        if keeps(topic):
            message["idempotencyKey"] = f"{self._run}:{topic}:{number}"
            while not await self._post(message):
                self.retries += 1
                await asyncio.sleep(self._rng.uniform(*RETRY_SECONDS))
            self.published[topic] = number
            return True
        taken = await self._post(message)
        self.published[topic] = number
        if not taken:
            self.unsure[topic].add(number)
        return taken

    async def _post(self, message: dict[str, object]) -> bool:
        answer = await self._ask("POST", "/api/publish", message)
        if answer is None:
            return False
        if answer.status_code not in (200, 502, 503, 504):
            raise RuntimeError(f"publish got status {answer.status_code}: {answer.text[:200]}")
        return answer.status_code == 200

    async def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> httpx.Response | None:
        """The response, or None. After a failure the next request uses the next load balancer."""
        url = self._url
        try:
            answer = await self._http.request(method, url + path, json=body)
        except httpx.HTTPError:
            answer = None
        if (answer is None or answer.status_code != 200) and url == self._url:  # no other task has switched yet
            self._url = next(self._turns)
        return answer
