"""Login with a token: fetched at each connection, and again before the current one expires."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gateway.client.conversation import Conversation, Lost
from gateway.client.events import Closed, Refused, words
from gateway.client.pace import refresh_seconds

REFRESH_AGAIN_SECONDS: Final = 5.0  # after a token could not be replaced

GetToken = Callable[[], str | Awaitable[str | None] | None]


class Tokens:
    """Logs in with the tokens of `get_token`. `answer`: seconds for both the token and the server's answer to AUTH.

    After `tries` refusals in a row, each of a token that was fetched again, the client ends.
    """

    def __init__(self, get_token: GetToken, answer: float, tries: int) -> None:
        self._get_token = get_token
        self._answer = answer
        self._tries = tries
        self._refusals = 0

    async def log_in(self, talk: Conversation) -> bool:
        """Log in with a token. False: there is none, so the client continues as an anonymous one.

        Raises:
            Closed: The server has refused too many tokens.
            Lost, Disconnected: No token now, or the server refused it; the next connection fetches another.
        """
        try:
            async with asyncio.timeout(self._answer):
                token = await self._token()
                if token is None:
                    return False
                await talk.log_in(token)
        except TimeoutError:
            raise Lost(f"no token, or no answer to AUTH, within {self._answer:g} s") from None
        except Refused as refusal:
            self._refusals += not refusal.temporary
            if self._refusals >= self._tries:
                raise Closed(refusal.code, str(refusal)) from None
            raise Lost(f"the token was refused: {refusal}") from None
        self._refusals = 0
        return True

    async def renew(self, talk: Conversation) -> None:
        """Replace the token before it expires. Until then the old one holds, so a failure is retried.

        Raises:
            Disconnected: The socket is lost.
        """
        await talk.logged_in.wait()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(refresh_seconds(talk.token, time.time())):
                    await talk.expiring.wait()
            talk.expiring.clear()
            with suppress(Refused, Lost, TimeoutError):
                async with asyncio.timeout(self._answer):
                    fresh = await self._token()
                    if fresh is not None and fresh != talk.token:  # else there is nothing to send
                        await talk.log_in(fresh)
                        continue
            await asyncio.sleep(REFRESH_AGAIN_SECONDS)

    async def _token(self) -> str | None:
        """A token, or None.

        Raises:
            Lost: `get_token` failed; the next connection calls it again.
        """
        try:
            token = self._get_token()
            if inspect.isawaitable(token):
                # Other code may wait for the same future, so a timeout here must not cancel it.
                token = await (asyncio.shield(token) if asyncio.isfuture(token) else token)
            if token is not None and not isinstance(token, str):
                raise TypeError(f"it is of type {type(token).__name__}, not str")
        except Exception as error:
            raise Lost(f"no token: {words(error)}") from error
        return token or None
