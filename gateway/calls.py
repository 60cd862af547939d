"""What a client asks of the back end: REQUESTs by way of the cache, COMMANDs as they are.

A slow back end holds up no more than it must. A client's next frames go on, a ping or a SUBSCRIBE, while its calls are
under way. Its commands reach the back end one after the other, in its order; a request waits for the commands
before it, so that it sees what they did. When `MAX_CALLS` are under way, the client's next frame waits.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from gateway.backend import Answer, Backend, BackendAway, BackendError
from gateway.cluster.cache import MAX_KEY_LENGTH, Cache, Timed
from gateway.cluster.memory import RedisMemory
from gateway.core import replies
from gateway.core.effects import FetchFromBackend, ForwardCommand
from gateway.core.protocol import Code, ProtocolError, RequestId
from gateway.logs import logger
from gateway.outbox import Outbox
from gateway.transport.connection import Connection

MAX_CALLS: Final = 8  # of one client
COMMANDS: Final = "/commands"  # where the back end takes them
LOAD_MARGIN_SECONDS: Final = 1.0  # more than the back end has: its own deadline is to end a call, not the cache's

_HOLD: Final = "calls"
_CODES: Final = {403: Code.NOT_ALLOWED, 429: Code.TOO_MANY_REQUESTS}


class _Lane:
    """The calls of one client that are under way."""

    __slots__ = ("commands", "count")

    def __init__(self) -> None:
        self.count = 0
        self.commands: asyncio.Event | None = None  # set when all commands so far are done


class Calls:
    """Calls `backend` for clients; `spawn` runs a coroutine under the node's eye."""

    def __init__(
        self, backend: Backend, cache: Cache, outbox: Outbox, node_id: str, memory: RedisMemory,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._backend = backend
        self._cache = cache
        self._outbox = outbox
        self._node_id = node_id
        self._memory = memory
        self._spawn = spawn
        self._lanes: dict[Connection, _Lane] = {}
        self._log = logger()

    def fetch(self, connection: Connection, effect: FetchFromBackend) -> None:
        """Answer a REQUEST, from the cache or by the back end."""
        lane = self._begin(connection)
        request_id = effect.request.request_id
        work = self._run(connection, lane, lambda: self._answer(effect), request_id, lane.commands, None)
        self._spawn(work, "client's request")

    def forward(self, connection: Connection, effect: ForwardCommand) -> None:
        """Have the back end carry out a COMMAND, and acknowledge with what it says."""
        lane = self._begin(connection)
        before, lane.commands = lane.commands, asyncio.Event()
        request_id = effect.command.request_id
        work = self._run(
            connection, lane, lambda: self._carry_out(connection, effect), request_id, before, lane.commands
        )
        self._spawn(work, "client's command")

    def _begin(self, connection: Connection) -> _Lane:
        lane = self._lanes.setdefault(connection, _Lane())
        lane.count += 1
        if lane.count >= MAX_CALLS:
            connection.hold(_HOLD)
        return lane

    async def _run(
        self, connection: Connection, lane: _Lane, call: Callable[[], Awaitable[bytes]], request_id: RequestId,
        before: asyncio.Event | None, done: asyncio.Event | None,
    ) -> None:  # fmt: skip
        try:
            if before is not None:
                await before.wait()  # each call has its deadline, and there are few
            self._outbox.reply(connection, await call())
        except ProtocolError as error:
            self._outbox.refuse(connection, error)
        except BackendAway:
            message = "The back end is away, try again"
            self._outbox.refuse(connection, ProtocolError(Code.UNAVAILABLE, message, request_id))
        except BackendError:
            message = "The back end did not answer as it should; what was asked may have been done"
            reason = "outcome_unknown" if done is not None else None  # of a command
            self._outbox.refuse(connection, ProtocolError(Code.UNAVAILABLE, message, request_id, reason))
        except Exception:
            self._outbox.fail(connection, request_id)
        finally:
            if done is not None:
                done.set()
            lane.count -= 1
            if not lane.count:
                del self._lanes[connection]
            connection.release(_HOLD)

    async def _carry_out(self, connection: Connection, effect: ForwardCommand) -> bytes:
        command, identity = effect.command, effect.identity
        document = {
            "topic": command.topic,
            "action": command.action,
            "data": command.data,
            "requestId": command.request_id,
            "user": identity.user,
            "role": identity.role,
            "client": {"id": connection.client_id, "ip": connection.facts.ip},
            "node": self._node_id,
        }
        answer = await self._backend.post(COMMANDS, document)
        if not answer.good:
            raise self._refusal(answer, command.request_id, f"No back end carries out {command.action}")
        return replies.commanded(command, answer.content, self._outbox.time())

    async def _answer(self, effect: FetchFromBackend) -> bytes:
        request = effect.request

        async def load() -> Timed:
            answer = await self._backend.get(effect.target)
            held = effect.seconds if answer.good else 0  # a refusal holds only if the back end says so
            seconds = held if answer.max_age is None else answer.max_age
            if self._memory.full:  # clients choose what is asked, so they could fill Redis with answers
                seconds = 0
            # The cache gives values back as Python objects: JSON that those cannot hold is kept as a string.
            exact = {} if answer.exact is None else {"exact": answer.exact}
            return Timed({"status": answer.status, "body": answer.body, **exact}, seconds)

        try:
            found = await self._cache.get_or_set(
                cache_key(effect.target), load, stale_seconds=effect.stale_seconds,
                load_seconds=self._backend.timeout_seconds + LOAD_MARGIN_SECONDS,
            )  # fmt: skip
        except TimeoutError:
            raise BackendError("the answer could not be loaded in time") from None
        answer = Answer(found["status"], found["body"], None, found.get("exact"))
        if not answer.good:
            raise self._refusal(answer, request.request_id, f"No back end answers {request.action}")
        return replies.answer(request, answer.content, self._outbox.time())

    def _refusal(self, answer: Answer, request_id: RequestId, unknown: str) -> ProtocolError:
        if 400 <= answer.status < 500 and answer.status != 401:
            code = _CODES.get(answer.status, Code.DATA_REFUSED)
            return ProtocolError(code, answer.message or f"The back end refused it ({answer.status})", request_id)
        if answer.status == 501:
            return ProtocolError(Code.NOT_IMPLEMENTED, answer.message or unknown, request_id)
        # 401, or a redirection: it is the gateway that is at fault.
        self._log.warning("back end does not serve the gateway", status=answer.status)
        return ProtocolError(Code.INTERNAL, "The back end does not serve this gateway", request_id)


def cache_key(target: str) -> str:
    """The key of the answer at `target`: `source:` and the target itself; of a long one its beginning and a hash."""
    key = f"source:{target}"
    if len(key) <= MAX_KEY_LENGTH:
        return key
    digest = hashlib.sha256(target.encode()).hexdigest()
    return f"{key[: MAX_KEY_LENGTH - len(digest) - 1]}#{digest}"
