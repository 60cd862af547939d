"""Lua scripts on the Redis in memory, with Redis' conversions of values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import orjson
from lupa import lua51

from tests.simulation.redis_data import RedisError, Status

Args = Sequence[bytes]


class Lua:
    """Runs scripts as Redis does: `redis.call` inside, its conversions of values outside."""

    def __init__(self) -> None:
        self._runtime = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False)
        self._call: Callable[[Args], Any] = lambda _: None
        bind = self._runtime.eval(
            b"function(run) redis = { call = function(...) return run(false, ...) end, "
            b"pcall = function(...) return run(true, ...) end, "
            b"error_reply = function(text) return { err = text } end, "
            b"status_reply = function(text) return { ok = text } end, "
            b"sha1hex = function(text) return run(nil, text) end, log = function() end, LOG_WARNING = 3 } end"
        )
        bind(self._from_script)
        json = self._runtime.eval(b"function(decode, encode) cjson = { decode = decode, encode = encode } end")
        json(self._decode, self._encode)
        self._is_table = self._runtime.eval(b"function(value) return type(value) == 'table' end")

    def compile(self, source: bytes) -> Any:
        """The script as a function of KEYS and ARGV."""
        return self._runtime.execute(b"return function(KEYS, ARGV) " + source + b"\nend")

    def run(self, function: Any, keys: Args, arguments: Args, call: Callable[[Args], Any]) -> Any:
        """The script's reply; `call` runs a command.

        Raises:
            RedisError: The script failed, or a command in it.
        """
        before, self._call = self._call, call
        try:
            return self._reply(function(self._table(keys), self._table(arguments)))
        except lua51.LuaError as error:
            raise RedisError(f"ERR {error}") from error
        finally:
            self._call = before

    def _from_script(self, protected: bool | None, *arguments: Any) -> Any:
        if protected is None:
            return hashlib.sha1(arguments[0], usedforsecurity=False).hexdigest().encode()
        command = [argument if isinstance(argument, bytes) else _lua_number(argument) for argument in arguments]
        try:
            return self._value(self._call(command))
        except RedisError as error:
            if protected:
                return self._runtime.table_from({b"err": str(error).encode()})
            raise

    def _decode(self, text: bytes) -> Any:
        try:
            return self._from_json(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise RedisError(f"ERR {error}") from error

    def _from_json(self, value: Any) -> Any:
        match value:
            case str():
                return value.encode()
            case list():
                return self._table([self._from_json(item) for item in value])
            case dict():
                return self._runtime.table_from({key.encode(): self._from_json(item) for key, item in value.items()})
        return value

    def _encode(self, value: Any) -> bytes:
        if isinstance(value, bytes):
            return orjson.dumps(value.decode())
        return orjson.dumps(value)

    def _table(self, items: Sequence[Any]) -> Any:
        return self._runtime.table_from(list(items))

    def _value(self, reply: Any) -> Any:
        """A reply of Redis as Lua sees it."""
        if reply is None:
            return False
        if isinstance(reply, Status):
            return self._runtime.table_from({b"ok": reply.encode()})
        if isinstance(reply, list):
            return self._table([self._value(item) for item in reply])
        return reply

    def _reply(self, value: Any) -> Any:
        """What a script returns, as a reply of Redis."""
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, int | float):
            return int(value)
        if isinstance(value, bytes):
            return value
        if value[b"err"] is not None:
            raise RedisError(value[b"err"].decode())
        if value[b"ok"] is not None:
            return Status(value[b"ok"].decode())
        items = []
        for at in range(1, len(value) + 1):
            if value[at] is None:
                break
            items.append(self._reply(value[at]))
        return items


def _lua_number(value: Any) -> bytes:
    """A number given to `redis.call`, as Redis writes it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RedisError("ERR Lua redis lib command arguments must be strings or integers")
    return b"%d" % value if value == int(value) and abs(value) < 1e17 else f"{value:.17g}".encode()


@cache
def _lua() -> Lua:
    """One interpreter serves all servers: scripts keep nothing between calls."""
    return Lua()


@cache
def _compiled(source: bytes) -> Any:
    return _lua().compile(source)


def run_script(source: bytes, keys: Args, arguments: Args, call: Callable[[Args], Any]) -> Any:
    """The reply of a script; `call` runs a command.

    Raises:
        RedisError: The script failed, or a command in it.
    """
    return _lua().run(_compiled(source), keys, arguments, call)
