"""Batches of reads: those that callers request in one turn of the event loop share one round trip to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.broker.errors import CommandRefused, RedisCommand, Unavailable

MAX_COMMANDS: Final = 100  # per round trip, so that Redis and the node spend at most milliseconds on one


class _ReadRequest:
    __slots__ = ("answers", "commands", "sending", "server")

    def __init__(self, server: str | None, answers: asyncio.Future[list[Any]]) -> None:
        self.server = server
        self.sending: asyncio.Future[Any] | None = None
        self.commands: dict[RedisCommand, int] = {}  # each command and the index of its answer
        self.answers = answers


class ReadBatch:
    """Collects read commands. A command that is requested twice in a turn is sent once.

    `execute_each` sends commands and returns their answers, with a `CommandRefused` for a command that Redis rejects.
    `server_of` returns the server of a command: commands for different servers do not share a round trip, so that a
    server that is down affects its own commands only.
    """

    def __init__(
        self,
        ask_each: Callable[[list[RedisCommand]], Awaitable[list[Any]]],
        server_of: Callable[[RedisCommand], str | None],
    ) -> None:
        self._ask_each = ask_each
        self._server_of = server_of
        self._batches: dict[str | None, _ReadRequest] = {}  # by server: batches to send at the end of this turn

    async def execute(self, *command: Any) -> Any:
        """Send one command; return its answer.

        Raises:
            Unavailable: Redis is unreachable or slow, or rejected the command.
        """
        [answer] = await self.execute_each([command])
        if isinstance(answer, CommandRefused):
            raise answer
        return answer

    async def execute_each(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send several commands; return their answers, with a `CommandRefused` for each that Redis rejected.

        Raises:
            Unavailable: Redis is unreachable or slow.
        """
        asked = [self._add(command) for command in commands]
        for batch, is_new, _ in asked:
            if is_new:
                batch.sending = asyncio.gather(self._send(batch), return_exceptions=True)
        answers = {id(batch): await asyncio.shield(batch.answers) for batch, _, _ in asked}
        return [answers[id(batch)][server_of] for batch, _, server_of in asked]

    def _add(self, command: RedisCommand) -> tuple[_ReadRequest, bool, int]:
        """Add a command to a batch; return the batch, whether it is new, and the index of the command in it."""
        server = self._server_of(command)
        batch = self._batches.get(server)
        new = batch is None or (len(batch.commands) >= MAX_COMMANDS and command not in batch.commands)
        if batch is None or new:
            batch = self._batches[server] = _ReadRequest(server, asyncio.get_running_loop().create_future())
        return batch, new, batch.commands.setdefault(command, len(batch.commands))

    async def _send(self, batch: _ReadRequest) -> None:
        """Send a batch at the end of the turn."""
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
            if not batch.answers.done():  # cancelled, or an unexpected error
                batch.answers.set_exception(Unavailable("the read was cancelled"))
            batch.answers.exception()  # mark as retrieved: its callers may be gone
