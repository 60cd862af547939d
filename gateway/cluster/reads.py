"""Reads that several callers ask for in one turn of the event loop, sent to Redis in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.cluster.answers import Command, Refused, Unavailable

MAX_COMMANDS: Final = 100  # in one round trip: what Redis and the node spend on one stays within milliseconds


class _Batch:
    __slots__ = ("answers", "commands")

    def __init__(self, answers: asyncio.Future[list[Any]]) -> None:
        self.commands: dict[Command, int] = {}  # each command, and its place among the answers
        self.answers = answers


class Reads:
    """Collects commands that change nothing. The same command, asked for twice in a turn, is sent once.

    `ask_each` sends commands and answers them; a command that Redis refuses is answered with a `Refused`.
    """

    def __init__(self, ask_each: Callable[[list[Command]], Awaitable[list[Any]]]) -> None:
        self._ask_each = ask_each
        self._batch: _Batch | None = None  # to be sent when this turn is over

    async def ask(self, *command: Any) -> Any:
        """The answer to one command.

        Raises:
            Unavailable: Redis is away or slow, or refused it.
        """
        [answer] = await self.ask_each([command])
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def ask_each(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to several commands; a `Refused` stands for one that Redis refused.

        Raises:
            Unavailable: Redis is away or slow.
        """
        if len(commands) > MAX_COMMANDS:
            return [answer for at in range(0, len(commands), MAX_COMMANDS)
                    for answer in await self.ask_each(commands[at : at + MAX_COMMANDS])]  # fmt: skip
        batch = self._batch
        leads = batch is None or len(batch.commands) + len(commands) > MAX_COMMANDS
        if batch is None or leads:
            batch = self._batch = _Batch(asyncio.get_running_loop().create_future())
        places = [batch.commands.setdefault(command, len(batch.commands)) for command in commands]
        if leads:
            await self._send(batch)
        answers = await asyncio.shield(batch.answers)
        return [answers[place] for place in places]

    async def _send(self, batch: _Batch) -> None:
        """Send a batch when the turn is over. The caller that began it does so for all others."""
        try:
            await asyncio.sleep(0)
            if self._batch is batch:
                self._batch = None
            batch.answers.set_result(await self._ask_each(list(batch.commands)))
        except Unavailable as error:
            batch.answers.set_exception(error)
        finally:
            if self._batch is batch:
                self._batch = None
            if not batch.answers.done():  # the caller is cancelled, or there is a fault of ours
                batch.answers.set_exception(Unavailable("the read was given up"))
            batch.answers.exception()  # without a second caller nothing else looks at it
