"""Calls of clients to the back end: REQUESTs are answered through the cache, COMMANDs are forwarded.

A slow back end delays only what depends on it. While calls of a client are in progress, the node handles its other
frames, such as a ping or a SUBSCRIBE. The commands of a client reach the back end one after the other; a request waits
for the commands before it, so that it sees their effect. With `MAX_CALLS` in progress, the client's next frame waits.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from gateway.backend import Backend, BackendError, BackendResponse, BackendUnreachable
from gateway.broker.memory import RedisMemory
from gateway.cache.cache import MAX_KEY_LENGTH, Cache, WithTtl
from gateway.core import events
from gateway.core.effects import FetchFromBackend, ForwardCommand
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.json_text import RequestId
from gateway.delivery.sender import Sender
from gateway.logging import logger
from gateway.transports.connection import Connection

MAX_CALLS: Final = 8  # calls of one client in progress
COMMANDS: Final = "/commands"  # path of the back end for commands
LOAD_MARGIN_SECONDS: Final = (
    1.0  # added to the back end's deadline, so that it ends a call before the cache's deadline does
)

_HOLD: Final = "calls"
_REASONS: Final = {403: ErrorReason.NOT_ALLOWED, 429: ErrorReason.TOO_MANY_REQUESTS}


class _ClientCalls:
    """The calls of one client that are in progress."""

    __slots__ = ("commands", "count")

    def __init__(self) -> None:
        self.count = 0
        self.commands: asyncio.Event | None = None  # set when all commands so far are finished


class BackendCalls:
    """Calls `backend` for clients; `spawn` runs a coroutine as a task of the node."""

    def __init__(
        self, backend: Backend, cache: Cache, sender: Sender, node_id: str, memory: RedisMemory,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._backend = backend
        self._cache = cache
        self._sender = sender
        self._node_id = node_id
        self._memory = memory
        self._spawn = spawn
        self._lanes: dict[Connection, _ClientCalls] = {}
        self._log = logger()

    def fetch(self, connection: Connection, effect: FetchFromBackend) -> None:
        """Answer a REQUEST from the cache or from the back end."""
        client_calls = self._begin(connection)
        request_id = effect.request.request_id
        work = self._run(
            connection, client_calls, lambda: self._answer(effect), request_id, client_calls.commands, None
        )
        self._spawn(work, "client's request")

    def forward(self, connection: Connection, effect: ForwardCommand) -> None:
        """Forward a COMMAND to the back end, and acknowledge it with the answer."""
        client_calls = self._begin(connection)
        before, client_calls.commands = client_calls.commands, asyncio.Event()
        request_id = effect.command.request_id
        work = self._run(
            connection,
            client_calls,
            lambda: self._execute(connection, effect),
            request_id,
            before,
            client_calls.commands,
        )
        self._spawn(work, "client's command")

    def _begin(self, connection: Connection) -> _ClientCalls:
        client_calls = self._lanes.setdefault(connection, _ClientCalls())
        client_calls.count += 1
        if client_calls.count >= MAX_CALLS:
            connection.hold(_HOLD)
        return client_calls

    async def _run(
        self,
        connection: Connection,
        client_calls: _ClientCalls,
        call: Callable[[], Awaitable[events.Event]],
        request_id: RequestId,
        before: asyncio.Event | None,
        done: asyncio.Event | None,
    ) -> None:
        try:
            if before is not None:
                await before.wait()  # bounded: each call has a deadline, and there are few
            self._sender.reply(connection, await call())
        except ProtocolError as error:
            self._sender.send_error(connection, error)
        except BackendUnreachable:
            message = "The back end cannot be reached; try again"
            self._sender.send_error(connection, ProtocolError(ErrorReason.UNAVAILABLE, message, request_id))
        except BackendError:
            message = "The back end gave no valid answer; the command or request may have been executed"
            detail = "outcome_unknown" if done is not None else None  # only for a command
            self._sender.send_error(connection, ProtocolError(ErrorReason.UNAVAILABLE, message, request_id, detail))
        except Exception:
            self._sender.send_internal_error(connection, request_id)
        finally:
            if done is not None:
                done.set()
            client_calls.count -= 1
            if not client_calls.count:
                del self._lanes[connection]
            connection.release(_HOLD)

    async def _execute(self, connection: Connection, effect: ForwardCommand) -> events.CommandDone:
        command, identity = effect.command, effect.identity
        document = {
            "topic": command.topic,
            "action": command.action,
            "data": command.data,
            "requestId": command.request_id,
            "user": identity.user,
            "role": identity.role,
            "client": {"id": connection.client_id, "ip": connection.info.ip},
            "node": self._node_id,
        }
        answer = await self._backend.post(COMMANDS, document)
        if not answer.is_success:
            raise self._refusal(answer, command.request_id, f"The back end does not implement {command.action}")
        return events.CommandDone(command, answer.content)

    async def _answer(self, effect: FetchFromBackend) -> events.Answer:
        request = effect.request

        async def load() -> WithTtl:
            answer = await self._backend.get(effect.target)
            held = effect.seconds if answer.is_success else 0  # an error is cached only if the back end sets a max-age
            seconds = held if answer.max_age is None else answer.max_age
            if self._memory.full:  # clients choose the requests, so they could fill Redis with answers
                seconds = 0
            # The cache returns Python objects: JSON that they cannot represent is stored as a string.
            exact = {} if answer.exact is None else {"exact": answer.exact}
            return WithTtl({"status": answer.status, "body": answer.body, **exact}, seconds)

        try:
            found = await self._cache.get_or_set(
                cache_key(effect.target), load, stale_seconds=effect.stale_seconds,
                load_seconds=self._backend.timeout_seconds + LOAD_MARGIN_SECONDS,
            )  # fmt: skip
        except TimeoutError:
            raise BackendError("the answer was not loaded in time") from None
        answer = BackendResponse(found["status"], found["body"], None, found.get("exact"))
        if not answer.is_success:
            raise self._refusal(answer, request.request_id, f"The back end does not implement {request.action}")
        return events.Answer(request, answer.content)

    def _refusal(self, answer: BackendResponse, request_id: RequestId, unimplemented: str) -> ProtocolError:
        if 400 <= answer.status < 500 and answer.status != 401:
            reason = _REASONS.get(answer.status, ErrorReason.DATA_REFUSED)
            return ProtocolError(
                reason, answer.message or f"The back end rejected the call ({answer.status})", request_id
            )
        if answer.status == 501:
            return ProtocolError(ErrorReason.NOT_IMPLEMENTED, answer.message or unimplemented, request_id)
        # 401 or a redirect: the gateway is not configured correctly.
        self._log.warning("back end rejected the gateway", status=answer.status)
        return ProtocolError(ErrorReason.INTERNAL, "The back end does not accept this gateway", request_id)


def cache_key(target: str) -> str:
    """The cache key of `target`: `source:` and the target; a long target is cut and gets a hash."""
    key = f"source:{target}"
    if len(key) <= MAX_KEY_LENGTH:
        return key
    digest = hashlib.sha256(target.encode()).hexdigest()
    return f"{key[: MAX_KEY_LENGTH - len(digest) - 1]}#{digest}"
