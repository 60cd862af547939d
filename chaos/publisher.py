"""Numbered messages at a steady rate: each number is published once, and the next only when the last one was.

On topics with history a number is tried until it is taken, under an idempotency key, so what may have been published
is not published again. On the others nobody can know: a number whose answer was not 200 is `unsure`.
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
from tests.cluster import API_KEY

TRY_SECONDS = 3.0  # longer than a node waits for Redis
RETRY_SECONDS = (0.05, 0.3)


class Publisher:
    """Publishes over HAProxy's internal side, whichever node answers; over another's when one fails."""

    def __init__(self, urls: Iterable[str], plan: Plan, rng: random.Random) -> None:
        self.published: dict[str, int] = dict.fromkeys(plan.topics(), 0)
        self.unsure: dict[str, set[int]] = {topic: set() for topic in self.published}
        self.retries = 0
        self._plan = plan
        self._run = f"{rng.getrandbits(64):x}"
        self._rng = rng
        self._going = asyncio.Event()
        self._busy = {topic: asyncio.Lock() for topic in self.published}  # held while a number is on its way
        self._turns = itertools.cycle(urls)
        self._url = next(self._turns)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {API_KEY}"}, timeout=TRY_SECONDS, trust_env=False
        )

    @classmethod
    @asynccontextmanager
    async def running(cls, urls: Iterable[str], plan: Plan, rng: random.Random) -> AsyncIterator[Self]:
        """A publisher at work, paused at first."""
        publisher = cls(urls, plan, rng)
        async with publisher._http, asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(publisher._speak(topic)) for topic in publisher.published]
            try:
                yield publisher
            finally:
                for worker in workers:
                    worker.cancel()

    @property
    def topics(self) -> Iterable[str]:
        """All it publishes on."""
        return self.published

    def go(self) -> None:
        """Publish at the plan's rate."""
        self._going.set()

    async def pause(self) -> None:
        """Stop; returns when nothing is on its way any more."""
        self._going.clear()
        for lock in self._busy.values():
            async with lock:
                pass

    async def close_phase(self) -> None:
        """One more number on each topic, so that a lost tail shows; on those without history until one is taken."""
        for topic, lock in self._busy.items():
            async with lock:
                while not await self._next(topic):  # noqa: ASYNC110  each try has its own deadline
                    await asyncio.sleep(self._rng.uniform(*RETRY_SECONDS))

    async def clients(self) -> dict[str, str] | None:
        """Ids of all clients that the cluster lists, and their addresses; None if it cannot say."""
        answer = await self._ask("GET", "/api/clients?limit=10000")
        if answer is None or answer.status_code != 200:
            return None
        return {client["id"]: client["ip"] for client in answer.json()["clients"]}

    async def _speak(self, topic: str) -> None:
        rate = self._plan.rate(topic)
        loop = asyncio.get_running_loop()
        due = loop.time() + self._rng.uniform(0, 1 / rate)  # not all topics at the same moment
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
        """Publish the topic's next number. False: nobody knows whether it was."""
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
            raise RuntimeError(f"publish was answered {answer.status_code}: {answer.text[:200]}")
        return answer.status_code == 200

    async def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> httpx.Response | None:
        """The answer, None if there was none. Unless it is good, the next question goes to the next load balancer."""
        url = self._url
        try:
            answer = await self._http.request(method, url + path, json=body)
        except httpx.HTTPError:
            answer = None
        if (answer is None or answer.status_code != 200) and url == self._url:  # nobody else has turned yet
            self._url = next(self._turns)
        return answer
