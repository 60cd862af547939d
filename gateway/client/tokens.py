"""Logs in with a token: fetches one at each connection, and a new one before it expires."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gateway.client.backoff import refresh_seconds
from gateway.client.events import Closed, Refused, describe
from gateway.client.wire import ConnectionLost, Wire

REFRESH_RETRY_SECONDS: Final = 5.0  # after a failed replacement of a token

GetToken = Callable[[], str | Awaitable[str | None] | None]


class Tokens:
    """Logs in with the tokens that `get_token` returns.

    Args:
        get_token: Returns a token, directly or as an awaitable; None: stay anonymous.
        answer: Seconds for the token and the server's reply to AUTH together.
        tries: After so many refused tokens in a row the client ends.
    """

    def __init__(self, get_token: GetToken, answer: float, tries: int) -> None:
        self._get_token = get_token
        self._answer = answer
        self._tries = tries
        self._refusals = 0

    async def log_in(self, wire: Wire) -> bool:
        """Log in with a token. False if there is no token, so that the client stays anonymous.

        Raises:
            Closed: The server has refused too many tokens.
            Lost, Disconnected: There is no token now, or the server refused it. The next connection fetches another.
        """
        try:
            async with asyncio.timeout(self._answer):
                token = await self._token()
                if token is None:
                    return False
                await wire.log_in(token)
        except TimeoutError:
            raise ConnectionLost(f"no token, or no answer to AUTH, within {self._answer:g} s") from None
        except Refused as refusal:
            self._refusals += not refusal.temporary
            if self._refusals >= self._tries:
                raise Closed(refusal.code, str(refusal)) from None
            raise ConnectionLost(f"the token was refused: {refusal}") from None
        self._refusals = 0
        return True

    async def renew(self, wire: Wire) -> None:
        """Replace the token before it expires, forever. The old token stays valid until then, so failures are retried.

        Raises:
            Disconnected: The socket is lost.
        """
        await wire.logged_in.wait()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(refresh_seconds(wire.token, time.time())):
                    await wire.expiring.wait()
            wire.expiring.clear()
            with suppress(Refused, ConnectionLost, TimeoutError):
                async with asyncio.timeout(self._answer):
                    fresh = await self._token()
                    if fresh is not None and fresh != wire.token:  # otherwise there is nothing to send
                        await wire.log_in(fresh)
                        continue
            await asyncio.sleep(REFRESH_RETRY_SECONDS)

    async def _token(self) -> str | None:
        """A token, or None.

        Raises:
            ConnectionLost: `get_token` failed; the next connection calls it again.
        """
        try:
            token = self._get_token()
            if inspect.isawaitable(token):
                # Other code may wait for the same future, so a timeout here must not cancel it.
                token = await (asyncio.shield(token) if asyncio.isfuture(token) else token)
            if token is not None and not isinstance(token, str):
                raise TypeError(f"it is of type {type(token).__name__}, not str")
        except Exception as error:
            raise ConnectionLost(f"no token: {describe(error)}") from error
        return token or None
