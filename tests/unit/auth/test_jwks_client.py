"""The key server: made-up key names cost few fetches, and never refuse the token of a key that is new."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from gateway.auth import jwks_client
from gateway.auth.jwks_client import FLOOR_SECONDS, MAX_WAITERS, JwksClient
from gateway.auth.key_set import KeySet
from gateway.metrics import Metrics
from tests.unit.auth.test_key_set import P256, jwk
from tests.unit.virtual_time import in_virtual_time


class Server:
    """A key server of the test's, and the node's view of it."""

    def __init__(self) -> None:
        self.kids = ["k1"]
        self.up = True
        self.seconds = 0.1  # for an answer
        self.fetches: list[float] = []
        self.answered = asyncio.Event()
        self.token_keys = KeySet(has_server=True)
        self.view = JwksClient(
            "https://id.example/jwks?key=hunter2", self.token_keys, Metrics(), refresh_seconds=300,
            transport=httpx.MockTransport(self._answer),
        )  # fmt: skip

    async def _answer(self, _request: httpx.Request) -> httpx.Response:
        self.fetches.append(asyncio.get_running_loop().time())
        body = {"keys": [jwk(P256, kid=kid) for kid in self.kids]}
        await asyncio.sleep(self.seconds)
        self.answered.set()
        return httpx.Response(200 if self.up else 503, json=body)

    def knows(self, kid: str) -> bool:
        """Whether a token that names the key would be verified."""
        return kid in self.token_keys.names()


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    """Run the view, after its first fetch."""
    task = asyncio.get_running_loop().create_task(server.view.run())
    try:
        await asyncio.sleep(1)
        assert server.view.reason is None
        yield server
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@in_virtual_time
async def test_a_new_key_is_waited_for_though_made_up_names_take_every_fetch() -> None:
    async with running(Server()) as server:
        now = asyncio.get_running_loop().time

        async def flood() -> None:
            for number in range(10_000):
                asyncio.get_running_loop().create_task(server.view.refresh(f"made-up-{number}"))
                await asyncio.sleep(0.01)

        flooding = asyncio.get_running_loop().create_task(flood())
        for rotation in range(5):
            await asyncio.sleep(1.7 * FLOOR_SECONDS)  # at any moment between two fetches
            kid = f"new-{rotation}"
            server.kids.append(kid)
            asked = now()
            assert await server.view.refresh(kid), "it is no wrong token"
            assert server.knows(kid)
            assert now() - asked <= FLOOR_SECONDS + 3 * server.seconds
        flooding.cancel()
        gaps = [later - before for before, later in zip(server.fetches, server.fetches[1:], strict=False)]
        assert min(gaps) >= FLOOR_SECONDS - 0.001, "the rate of fetches is bounded"


@in_virtual_time
async def test_a_name_that_the_last_fetch_did_not_bring_is_answered_at_once() -> None:
    async with running(Server()) as server:
        assert await server.view.refresh("made-up")
        began, fetches = asyncio.get_running_loop().time(), len(server.fetches)
        for _ in range(20):
            assert await server.view.refresh("made-up")
        assert asyncio.get_running_loop().time() == began and len(server.fetches) == fetches
        await asyncio.sleep(FLOOR_SECONDS)
        server.kids.append("made-up")
        assert await server.view.refresh("made-up") and server.knows("made-up"), "it may come to exist"


@in_virtual_time
async def test_tokens_over_the_waiting_limit_get_a_temporary_error() -> None:
    async with running(Server()) as server:
        asking = [asyncio.get_running_loop().create_task(server.view.refresh(f"k{n}")) for n in range(MAX_WAITERS + 5)]
        answers = await asyncio.gather(*asking)
        assert answers.count(True) == MAX_WAITERS and answers[MAX_WAITERS:] == [False] * 5
        assert len(server.fetches) == 2
        assert await server.view.refresh("k1"), "after the fetch there is room again"


@in_virtual_time
async def test_while_the_server_is_away_nothing_is_concluded() -> None:
    async with running(Server()) as server:
        server.up = False
        assert not await server.view.refresh("k2")
        server.up, server.kids = True, ["k1", "k2"]
        await server.view.refresh("k2")
        assert server.knows("k2")


@in_virtual_time
async def test_a_token_that_comes_amid_a_fetch_is_judged_by_the_next() -> None:
    async with running(Server()) as server:
        server.seconds = 2.0
        first = asyncio.get_running_loop().create_task(server.view.refresh("made-up"))
        await asyncio.sleep(FLOOR_SECONDS + 0.5)
        assert len(server.fetches) == 2, "under way, and without the key that is made now"
        server.kids.append("k2")
        assert await server.view.refresh("k2") and server.knows("k2")
        assert await first and len(server.fetches) == 3


@in_virtual_time
async def test_a_server_that_is_away_is_asked_less_and_less_often_up_to_a_limit() -> None:
    async with running(Server()) as server:
        server.up, server.seconds = False, 0.0
        await asyncio.sleep(3600)
        pauses = [later - earlier for earlier, later in itertools.pairwise(server.fetches)][1:]
        for failures, pause in enumerate(pauses):
            longest = min(jwks_client.RETRY_CAP_SECONDS, jwks_client.FIRST_RETRY_SECONDS * 2**failures)
            assert longest / 2 <= pause <= longest
        assert len(pauses) > 10
        server.up = True
        fetched = len(server.fetches) + 1
        while len(server.fetches) < fetched:  # noqa: ASYNC110  the time is virtual
            await asyncio.sleep(1)
        await asyncio.sleep(0.79 * 300)
        assert len(server.fetches) == fetched
        await asyncio.sleep(0.22 * 300)
        assert len(server.fetches) == fetched + 1
