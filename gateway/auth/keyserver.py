"""The key server: whose JWKS document is kept in memory, renewed in time, and kept when the server is away."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import httpx
import orjson

from gateway.auth import keyring
from gateway.auth.keyring import KeyFault, Keyring
from gateway.logs import logger
from gateway.metrics import Metrics

FETCH_SECONDS: Final = 5.0  # deadline of one fetch
FLOOR_SECONDS: Final = 10.0  # between two: tokens with made-up key names must not drive us at the server
FIRST_RETRY_SECONDS: Final = 1.0  # after a failure, doubled with each up to RETRY_CAP_SECONDS
RETRY_CAP_SECONDS: Final = 60.0
MAX_BYTES: Final = 1 << 20


class KeyServer:
    """Keeps `ring` as the document at `url` says. `run` must run; `transport` replaces the network in tests."""

    def __init__(
        self, url: str, ring: Keyring, metrics: Metrics, *, refresh_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._url = url
        self._ring = ring
        self._metrics = metrics
        self._refresh_seconds = refresh_seconds
        self._transport = transport
        self._log = logger()
        self._wanted = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._asked = -FLOOR_SECONDS  # loop time of the last fetch
        self._failures = 0
        self.reason: str | None = "keys: not yet fetched"  # why no token can be verified with them; None: it can

    async def refresh(self) -> None:
        """Have the keys asked for again, and wait for that; at once, if it was done just now."""
        if asyncio.get_running_loop().time() - self._asked < FLOOR_SECONDS and not self._waiters:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wanted.set()
        await waiter

    async def run(self) -> None:
        """Ask in time, for ever."""
        loop = asyncio.get_running_loop()
        # Given explicitly, it is not overruled by HTTP_PROXY; a redirect would lead to keys of somebody else.
        transport = self._transport or httpx.AsyncHTTPTransport()
        async with httpx.AsyncClient(transport=transport, timeout=FETCH_SECONDS) as http:
            while True:
                self._asked = loop.time()
                await self._fetch(http)
                waiters, self._waiters = self._waiters, []
                self._wanted.clear()
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                try:
                    async with asyncio.timeout(self._pause()):
                        await self._wanted.wait()
                except TimeoutError:
                    pass

    def _pause(self) -> float:
        if not self._failures:
            return self._refresh_seconds * random.uniform(0.8, 1.0)  # nodes that started together do not ask together
        return float(min(RETRY_CAP_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 16))) * random.uniform(
            0.5, 1
        )

    async def _fetch(self, http: httpx.AsyncClient) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = keyring.from_jwks(await self._read(http))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:  # KeyFault is a ValueError
            self._failures += 1
            self._metrics.key_fetches.labels("failed").inc()
            if self._failures == 1:
                self._log.warning("key server failed, its last keys stay", url=self._url, reason=_reason(error))
            if self.reason is not None:
                self.reason = f"keys: {_reason(error)}"
            return
        self._failures = 0
        self._metrics.key_fetches.labels("ok").inc()
        self._ring.serve(keys)
        if self.reason is not None:
            self._log.info("keys fetched", url=self._url, keys=len(keys))
            self.reason = None

    async def _read(self, http: httpx.AsyncClient) -> object:
        received = bytearray()
        async with http.stream("GET", self._url, headers={"Accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise KeyFault(f"it answers {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                received += chunk
                if len(received) > MAX_BYTES:
                    raise KeyFault(f"its document is larger than {MAX_BYTES} bytes")
        return orjson.loads(received)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
