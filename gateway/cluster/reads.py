"""Reads that several callers ask for in one turn of the event loop, sent to Redis in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.cluster.answers import Command, Refused, Unavailable

MAX_COMMANDS: Final = 100  # in one round trip: what Redis and the node spend on one stays within milliseconds


class _Batch:
    __slots__ = ("answers", "commands", "sending", "server")

    def __init__(self, server: str | None, answers: asyncio.Future[list[Any]]) -> None:
        self.server = server
        self.sending: asyncio.Future[Any] | None = None
        self.commands: dict[Command, int] = {}  # each command, and its place among the answers
        self.answers = answers


class Reads:
    """Collects commands that change nothing. The same command, asked for twice in a turn, is sent once.

    `ask_each` sends commands and answers them; a command that Redis refuses is answered with a `Refused`. `place` names
    the server that a command is for: commands for different servers share no round trip, so that one that is away
    affects its own commands only.
    """

    def __init__(
        self, ask_each: Callable[[list[Command]], Awaitable[list[Any]]], place: Callable[[Command], str | None]
    ) -> None:
        self._ask_each = ask_each
        self._place = place
        self._batches: dict[str | None, _Batch] = {}  # by server: to be sent when this turn is over

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
        asked = [self._add(command) for command in commands]
        for batch, leads, _ in asked:
            if leads:
                batch.sending = asyncio.gather(self._send(batch), return_exceptions=True)
        answers = {id(batch): await asyncio.shield(batch.answers) for batch, _, _ in asked}
        return [answers[id(batch)][place] for batch, _, place in asked]

    def _add(self, command: Command) -> tuple[_Batch, bool, int]:
        """Put a command into a batch: which, whether it is new, and the command's place in it."""
        server = self._place(command)
        batch = self._batches.get(server)
        new = batch is None or (len(batch.commands) >= MAX_COMMANDS and command not in batch.commands)
        if batch is None or new:
            batch = self._batches[server] = _Batch(server, asyncio.get_running_loop().create_future())
        return batch, new, batch.commands.setdefault(command, len(batch.commands))

    async def _send(self, batch: _Batch) -> None:
        """Send a batch when the turn is over."""
        try:
            await asyncio.sleep(0)
            if self._batches.get(batch.server) is batch:
                del self._batches[batch.server]
            batch.answers.set_result(await self._ask_each(list(batch.commands)))
        except Unavailable as error:
            batch.answers.set_exception(error)
        finally:
            if self._batches.get(batch.server) is batch:
                del self._batches[batch.server]
            if not batch.answers.done():  # cancelled, or there is a fault of ours
                batch.answers.set_exception(Unavailable("the read was given up"))
            batch.answers.exception()  # its callers may have given up
