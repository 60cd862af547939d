"""Fetches the keys of the key server (JWKS) and keeps them fresh. If the server fails, the last keys stay."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final

import httpx
import orjson

from gateway.auth import key_set
from gateway.auth.key_set import InvalidKey, KeySet
from gateway.core import revocations
from gateway.logging import logger
from gateway.metrics import Metrics

FETCH_SECONDS: Final = 5.0  # deadline of one fetch
FLOOR_SECONDS: Final = 5.0  # the least time between two fetches, so that tokens with invented kids cannot cause more
MAX_WAITERS: Final = 1000  # tokens that wait for the next fetch; further ones get a temporary error
FIRST_RETRY_SECONDS: Final = 1.0  # doubled after each further failure, up to RETRY_CAP_SECONDS
RETRY_CAP_SECONDS: Final = 60.0
MAX_BYTES: Final = 1 << 20


class JwksClient:
    """Keeps the keys in `token_keys` equal to the JWKS document at `url`, while `run` runs.

    `transport` replaces the network in tests.
    """

    def __init__(
        self, url: str, token_keys: KeySet, metrics: Metrics, *, refresh_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._url = url
        self._shown = url.partition("?")[0]  # for the log, without the query, which may hold a secret
        self._token_keys = token_keys
        self._metrics = metrics
        self._refresh_seconds = refresh_seconds
        self._transport = transport
        self._log = logger()
        self._wanted = asyncio.Event()
        self._waiters: list[tuple[str, asyncio.Future[bool]]] = []
        self._absent: frozenset[str] = frozenset()  # kids that the last fetch looked for and did not find
        self._asked = -FLOOR_SECONDS  # loop time at which the last fetch began
        self._failures = 0
        self.reason: str | None = "keys: not yet fetched"  # why the keys cannot be used; None: they can

    async def refresh(self, kid: str) -> bool:
        """Fetch the keys again, because a token names the unknown key `kid`.

        Returns True after a successful fetch, or at once if a fetch within the last `FLOOR_SECONDS` already looked for
        `kid`. Returns False if the fetch fails or too many tokens wait; the key may exist in that case.
        """
        loop, name = asyncio.get_running_loop(), revocations.name_of(kid)
        if name in self._absent and loop.time() < self._asked + FLOOR_SECONDS:
            return True
        if len(self._waiters) >= MAX_WAITERS:
            return False
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.append((name, waiter))
        self._wanted.set()
        try:
            async with asyncio.timeout(FLOOR_SECONDS + 2 * FETCH_SECONDS):
                return await waiter
        except TimeoutError:
            return False

    async def run(self) -> None:
        """Fetch the keys at regular times, forever."""
        loop = asyncio.get_running_loop()
        # An explicit transport ignores HTTP_PROXY. httpx does not follow redirects, which could lead to foreign keys.
        transport = self._transport or httpx.AsyncHTTPTransport()
        async with httpx.AsyncClient(transport=transport, timeout=FETCH_SECONDS) as http:
            while True:
                self._asked = loop.time()
                self._wanted.clear()
                before, self._waiters = self._waiters, []
                fetched = await self._fetch(http)
                self._resolve_waiters(before, fetched)
                # Wait for the next regular fetch. If a token waits, only for the end of FLOOR_SECONDS.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._wanted.wait()
                        await asyncio.sleep(self._asked + FLOOR_SECONDS - loop.time())

    def _resolve_waiters(self, before: list[tuple[str, asyncio.Future[bool]]], fetched: bool) -> None:
        """Resolve the waiting calls of `refresh`.

        Calls that came during the fetch may need a key that is newer than its result. They wait for the next fetch.
        """
        known = self._token_keys.names()
        if fetched:
            self._absent = frozenset(name for name, _ in before) - known
        during, self._waiters = self._waiters, []
        for name, waiter in during:
            if fetched and name not in known:
                self._waiters.append((name, waiter))
            elif not waiter.done():
                waiter.set_result(fetched)
        for _, waiter in before:
            if not waiter.done():
                waiter.set_result(fetched)

    def _pause(self) -> float:
        if not self._failures:
            return self._refresh_seconds * random.uniform(0.8, 1.0)  # so that nodes that started together fetch apart
        return float(min(RETRY_CAP_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 16))) * random.uniform(
            0.5, 1
        )

    async def _fetch(self, http: httpx.AsyncClient) -> bool:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = key_set.from_jwks(await self._read(http))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:  # KeyFault is a ValueError
            self._failures += 1
            self._metrics.key_fetches.labels("failed").inc()
            if self._failures == 1:
                self._log.warning("key server failed", url=self._shown, reason=_reason(error))
            if self.reason is not None:
                self.reason = f"keys: {_reason(error)}"
            return False
        self._failures = 0
        self._metrics.key_fetches.labels("ok").inc()
        self._token_keys.replace_served(keys)
        if self.reason is not None:
            self._log.info("keys fetched", url=self._shown, keys=len(keys))
            self.reason = None
        return True

    async def _read(self, http: httpx.AsyncClient) -> object:
        received = bytearray()
        async with http.stream("GET", self._url, headers={"Accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise InvalidKey(f"it answers {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                received += chunk
                if len(received) > MAX_BYTES:
                    raise InvalidKey(f"its document is larger than {MAX_BYTES} bytes")
        return orjson.loads(received)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__
