"""The key server: whose JWKS document is kept in memory, renewed in time, and kept when the server is away."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final

import httpx
import orjson

from gateway.auth import keyring
from gateway.auth.keyring import KeyFault, Keyring
from gateway.core import revocations
from gateway.logs import logger
from gateway.metrics import Metrics

FETCH_SECONDS: Final = 5.0  # deadline of one fetch
FLOOR_SECONDS: Final = 5.0  # at least, between two fetches: tokens with made-up key names must not cost more
MAX_WAITERS: Final = 1000  # tokens that wait for the next fetch; further ones get a temporary error
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
        self._shown = url.partition("?")[0]  # a query may hold a secret
        self._ring = ring
        self._metrics = metrics
        self._refresh_seconds = refresh_seconds
        self._transport = transport
        self._log = logger()
        self._wanted = asyncio.Event()
        self._waiters: list[tuple[str, asyncio.Future[bool]]] = []
        self._absent: frozenset[str] = frozenset()  # names that the last fetch was made for, and that it did not bring
        self._asked = -FLOOR_SECONDS  # loop time at which the last fetch began
        self._failures = 0
        self.reason: str | None = "keys: not yet fetched"  # why no token can be verified with them; None: it can

    async def refresh(self, kid: str) -> bool:
        """Wait until the keys were fetched once more, for the sake of the key `kid`.

        Returns at once if the last fetch was made for it and is younger than `FLOOR_SECONDS`. False: they could not be
        fetched, or too many tokens wait already. The caller must not conclude that there is no such key.
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
        """Fetch the keys in time, for ever."""
        loop = asyncio.get_running_loop()
        # Given explicitly, it is not overruled by HTTP_PROXY; a redirect would lead to keys of somebody else.
        transport = self._transport or httpx.AsyncHTTPTransport()
        async with httpx.AsyncClient(transport=transport, timeout=FETCH_SECONDS) as http:
            while True:
                self._asked = loop.time()
                self._wanted.clear()
                before, self._waiters = self._waiters, []
                fetched = await self._fetch(http)
                self._answer(before, fetched)
                # Until the next regular fetch, or the first permitted one if a token waits.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._wanted.wait()
                        await asyncio.sleep(self._asked + FLOOR_SECONDS - loop.time())

    def _answer(self, before: list[tuple[str, asyncio.Future[bool]]], fetched: bool) -> None:
        """Tell the tokens that waited. One that came amid the fetch may have a younger key: it waits for the next."""
        known = self._ring.names()
        if fetched:
            self._absent = frozenset(name for name, _ in before) - known
        amid, self._waiters = self._waiters, []
        for name, waiter in amid:
            if fetched and name not in known:
                self._waiters.append((name, waiter))
            elif not waiter.done():
                waiter.set_result(fetched)
        for _, waiter in before:
            if not waiter.done():
                waiter.set_result(fetched)

    def _pause(self) -> float:
        if not self._failures:
            return self._refresh_seconds * random.uniform(0.8, 1.0)  # nodes that started together do not ask together
        return float(min(RETRY_CAP_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 16))) * random.uniform(
            0.5, 1
        )

    async def _fetch(self, http: httpx.AsyncClient) -> bool:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = keyring.from_jwks(await self._read(http))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:  # KeyFault is a ValueError
            self._failures += 1
            self._metrics.key_fetches.labels("failed").inc()
            if self._failures == 1:
                self._log.warning("key server failed, its last keys stay", url=self._shown, reason=_reason(error))
            if self.reason is not None:
                self.reason = f"keys: {_reason(error)}"
            return False
        self._failures = 0
        self._metrics.key_fetches.labels("ok").inc()
        self._ring.serve(keys)
        if self.reason is not None:
            self._log.info("keys fetched", url=self._shown, keys=len(keys))
            self.reason = None
        return True

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
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__
