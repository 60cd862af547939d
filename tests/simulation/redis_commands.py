"""The commands that the gateway uses, on the Redis in memory. Each gives the reply or raises `RedisError`."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any, Final

from tests.simulation.redis_data import Dataset, Hash, RedisError, SortedSet, Status, Stream, stream_id

Args = Sequence[bytes]

OK: Final = Status("OK")
NOT_INTEGER: Final = "ERR value is not an integer or out of range"


def _int(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise RedisError(NOT_INTEGER) from None


def _float(text: bytes) -> float:
    try:
        value = float(text)
    except ValueError:
        raise RedisError("ERR value is not a valid float") from None
    if math.isnan(value):
        raise RedisError("ERR value is not a valid float")
    return value


def _number(value: float) -> bytes:
    if math.isinf(value):
        return b"inf" if value > 0 else b"-inf"
    return b"%d" % int(value) if value == int(value) and abs(value) < 1e17 else f"{value:.17g}".encode()


def _bound(text: bytes) -> tuple[float, bool]:
    """A bound of a score range, and whether it is exclusive."""
    exclusive = text.startswith(b"(")
    try:
        return float(text[1:] if exclusive else text), exclusive
    except ValueError:
        raise RedisError("ERR min or max is not a float") from None


def _in_range(score: float, low: tuple[float, bool], high: tuple[float, bool]) -> bool:
    above = score > low[0] if low[1] else score >= low[0]
    return above and (score < high[0] if high[1] else score <= high[0])


def _ranked(members: Sequence[tuple[float, bytes]], start: int, stop: int) -> Sequence[tuple[float, bytes]]:
    count = len(members)
    start, stop = (at + count if at < 0 else at for at in (start, stop))
    return members[max(start, 0) : stop + 1]


def _flat(members: Sequence[tuple[float, bytes]], scores: bool) -> list[bytes]:
    return [part for score, member in members for part in ((member, _number(score)) if scores else (member,))]


class Commands:
    """One function a command: `name(arguments)` gives the reply or raises `RedisError`."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.unknown: set[str] = set()  # commands that were asked for and are not here

    def run(self, command: Args) -> Any:
        """The reply to one command."""
        name = command[0].decode().upper()
        function = getattr(self, f"do_{name.lower()}", None)
        if function is None:
            self.unknown.add(name)
            raise RedisError(f"ERR unknown command '{name}'")
        return function(command[1:])

    # strings and keys

    def do_get(self, args: Args) -> bytes | None:
        value: bytes | None = self.data.get(args[0], bytes)
        return value

    def do_set(self, args: Args) -> Status | None:
        key, value, *options = args
        words = [option.upper() for option in options]
        exists = self.data.kind(key) != "none"
        if (b"NX" in words and exists) or (b"XX" in words and not exists):
            return None
        kept = self.data.ttl_ms(key) if b"KEEPTTL" in words else -1
        self.data.put(key, bytes(value))
        for word, unit in ((b"PX", 1), (b"EX", 1000)):
            if word in words:
                self.data.expire_at(key, self.data.now_ms() + unit * _int(options[words.index(word) + 1]))
        if kept >= 0:
            self.data.expire_at(key, self.data.now_ms() + kept)
        return OK

    def do_incrby(self, args: Args) -> int:
        found = self.data.get(args[0], bytes)
        value = (0 if found is None else _int(found)) + _int(args[1])
        ttl = self.data.ttl_ms(args[0])
        self.data.put(args[0], b"%d" % value)
        if ttl >= 0:
            self.data.expire_at(args[0], self.data.now_ms() + ttl)
        return value

    def do_incr(self, args: Args) -> int:
        return self.do_incrby([args[0], b"1"])

    def do_del(self, args: Args) -> int:
        return sum(map(self.data.drop, args))

    do_unlink = do_del

    def do_exists(self, args: Args) -> int:
        return sum(self.data.kind(key) != "none" for key in args)

    def do_type(self, args: Args) -> Status:
        return self.data.kind(args[0])

    def do_pexpire(self, args: Args) -> int:
        ms = self.data.now_ms() + _int(args[1])
        option = args[2].upper() if len(args) > 2 else b""
        left = self.data.ttl_ms(args[0])
        if (option == b"GT" and (left == -1 or left >= _int(args[1]))) or (option == b"NX" and left != -1):
            return 0
        return self.data.expire_at(args[0], ms)

    def do_expire(self, args: Args) -> int:
        return self.do_pexpire([args[0], b"%d" % (1000 * _int(args[1])), *args[2:]])

    def do_expireat(self, args: Args) -> int:
        return self.data.expire_at(args[0], 1000 * _int(args[1]))

    def do_pexpireat(self, args: Args) -> int:
        return self.data.expire_at(args[0], _int(args[1]))

    def do_pttl(self, args: Args) -> int:
        return self.data.ttl_ms(args[0])

    def do_ttl(self, args: Args) -> int:
        ms = self.data.ttl_ms(args[0])
        return ms if ms < 0 else round(ms / 1000)

    def do_time(self, _args: Args) -> list[bytes]:
        now = self.data.now_us()
        return [b"%d" % (now // 1_000_000), b"%d" % (now % 1_000_000)]

    def do_flushall(self, _args: Args) -> Status:
        self.data.restore(({}, {}))
        return OK

    def do_dbsize(self, _args: Args) -> int:
        return len(self.data.keys())

    def do_scan(self, args: Args) -> list[Any]:
        words = [word.upper() for word in args]
        keys = self.data.keys()
        if b"MATCH" in words:
            prefix = args[words.index(b"MATCH") + 1].rstrip(b"*")
            keys = [key for key in keys if key.startswith(prefix)]
        return [b"0", keys]

    # hashes

    def do_hget(self, args: Args) -> bytes | None:
        return (self.data.get(args[0], Hash) or {}).get(args[1])

    def do_hmget(self, args: Args) -> list[bytes | None]:
        found = self.data.get(args[0], Hash) or {}
        return [found.get(field) for field in args[1:]]

    def do_hgetall(self, args: Args) -> list[bytes]:
        return [part for pair in (self.data.get(args[0], Hash) or {}).items() for part in pair]

    def do_hscan(self, args: Args) -> list[Any]:
        return [b"0", self.do_hgetall(args[:1])]

    def do_hkeys(self, args: Args) -> list[bytes]:
        return list(self.data.get(args[0], Hash) or ())

    def do_hrandfield(self, args: Args) -> list[bytes]:
        return self.do_hkeys(args)[: _int(args[1])]

    def do_hvals(self, args: Args) -> list[bytes]:
        return list((self.data.get(args[0], Hash) or {}).values())

    def do_hlen(self, args: Args) -> int:
        return len(self.data.get(args[0], Hash) or ())

    def do_hexists(self, args: Args) -> int:
        return int(args[1] in (self.data.get(args[0], Hash) or ()))

    def do_hstrlen(self, args: Args) -> int:
        return len((self.data.get(args[0], Hash) or {}).get(args[1], b""))

    def do_getrange(self, args: Args) -> bytes:
        value: bytes = self.data.get(args[0], bytes) or b""
        start, stop = (max(0, at + len(value)) if at < 0 else at for at in (_int(args[1]), _int(args[2])))
        return value[start : stop + 1]

    def do_strlen(self, args: Args) -> int:
        return len(self.data.get(args[0], bytes) or b"")

    def do_hset(self, args: Args) -> int:
        if len(args) < 3 or len(args) % 2 == 0:
            raise RedisError("ERR wrong number of arguments for 'hset' command")
        value = self.data.make(args[0], Hash)
        before = len(value)
        value.update(zip(args[1::2], args[2::2], strict=True))
        return len(value) - before

    def do_hsetnx(self, args: Args) -> int:
        if self.do_hexists(args):
            return 0
        return self.do_hset(args)

    def do_hdel(self, args: Args) -> int:
        value = self.data.get(args[0], Hash)
        if value is None:
            return 0
        gone = sum(value.pop(field, None) is not None for field in args[1:])
        self.data.prune(args[0])
        return gone

    def do_hincrby(self, args: Args) -> int:
        found, more = self.data.get(args[0], Hash) or {}, _int(args[2])
        try:
            total = int(found.get(args[1], b"0")) + more
        except ValueError:
            raise RedisError("ERR hash value is not an integer") from None
        self.data.make(args[0], Hash)[args[1]] = b"%d" % total
        return total

    # sorted sets

    def do_zadd(self, args: Args) -> int:
        key, *rest = args
        options = set()
        while rest and rest[0].upper() in (b"GT", b"LT", b"NX", b"XX", b"CH"):
            options.add(rest.pop(0).upper())
        if not rest or len(rest) % 2:
            raise RedisError("ERR syntax error")
        pairs = [(_float(score), member) for score, member in zip(rest[::2], rest[1::2], strict=True)]
        value = self.data.make(key, SortedSet)
        added = changed = 0
        for score, member in pairs:
            old = value.get(member)
            if old is None:
                if b"XX" in options:
                    continue
                added += 1
            elif b"NX" in options or (b"GT" in options and score <= old) or (b"LT" in options and score >= old):
                continue
            changed += old != score
            value[member] = score
        self.data.prune(key)
        return changed if b"CH" in options else added

    def do_zrem(self, args: Args) -> int:
        value = self.data.get(args[0], SortedSet)
        if value is None:
            return 0
        gone = sum(value.pop(member, None) is not None for member in args[1:])
        self.data.prune(args[0])
        return gone

    def do_zcard(self, args: Args) -> int:
        return len(self.data.get(args[0], SortedSet) or ())

    def do_zscore(self, args: Args) -> bytes | None:
        score = (self.data.get(args[0], SortedSet) or {}).get(args[1])
        return None if score is None else _number(score)

    def do_zmscore(self, args: Args) -> list[bytes | None]:
        return [self.do_zscore([args[0], member]) for member in args[1:]]

    def _ordered(self, key: bytes) -> list[tuple[float, bytes]]:
        value: SortedSet | None = self.data.get(key, SortedSet)
        return [] if value is None else value.ordered()

    def do_zrange(self, args: Args) -> list[bytes]:
        words = [word.upper() for word in args[3:]]
        if b"BYSCORE" in words:
            return self.do_zrangebyscore([*args[:3], *(word for word in args[3:] if word.upper() != b"BYSCORE")])
        return _flat(_ranked(self._ordered(args[0]), _int(args[1]), _int(args[2])), b"WITHSCORES" in words)

    def do_zrevrange(self, args: Args) -> list[bytes]:
        members = self._ordered(args[0])[::-1]
        scores = b"WITHSCORES" in [word.upper() for word in args[3:]]
        return _flat(_ranked(members, _int(args[1]), _int(args[2])), scores)

    def do_zrangebyscore(self, args: Args) -> list[bytes]:
        low, high = _bound(args[1]), _bound(args[2])
        found = [pair for pair in self._ordered(args[0]) if _in_range(pair[0], low, high)]
        return self._limited(found, args[3:])

    def do_zrevrangebyscore(self, args: Args) -> list[bytes]:
        low, high = _bound(args[2]), _bound(args[1])
        found = [pair for pair in self._ordered(args[0])[::-1] if _in_range(pair[0], low, high)]
        return self._limited(found, args[3:])

    @staticmethod
    def _limited(found: list[tuple[float, bytes]], options: Args) -> list[bytes]:
        words = [word.upper() for word in options]
        if b"LIMIT" in words:
            at = words.index(b"LIMIT")
            skip, count = _int(options[at + 1]), _int(options[at + 2])
            found = found[skip:] if count < 0 else found[skip : skip + count]
        return _flat(found, b"WITHSCORES" in words)

    def do_zcount(self, args: Args) -> int:
        low, high = _bound(args[1]), _bound(args[2])
        return sum(_in_range(score, low, high) for score, _ in self._ordered(args[0]))

    def do_zremrangebyscore(self, args: Args) -> int:
        found = self.do_zrangebyscore(args)
        return self.do_zrem([args[0], *found]) if found else 0

    # streams

    def do_xadd(self, args: Args) -> bytes:
        key, *rest = args
        keep: int | None = None
        if rest[0].upper() == b"MAXLEN":
            rest.pop(0)
            if rest[0] in (b"~", b"="):
                rest.pop(0)
            keep = _int(rest.pop(0))
        given, *fields = rest
        found: Stream | None = self.data.get(key, Stream)
        identity = stream_id(given, 0)
        if identity <= (found.last if found is not None else (0, 0)):
            raise RedisError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
        value: Stream = self.data.make(key, Stream)
        value.ids.append(identity)
        value.entries.append(list(fields))
        value.last = identity
        if keep is not None:
            self._trim(value, keep)
        return b"%d-%d" % identity

    @staticmethod
    def _trim(value: Stream, keep: int) -> int:
        gone = max(0, len(value.ids) - keep)
        del value.ids[:gone], value.entries[:gone]
        return gone

    def do_xtrim(self, args: Args) -> int:
        value: Stream | None = self.data.get(args[0], Stream)
        if value is None:
            return 0
        rest = [arg for arg in args[1:] if arg not in (b"~", b"=")]
        if rest[0].upper() == b"MAXLEN":
            return self._trim(value, _int(rest[1]))
        return self._trim(value, len(value.ids) - bisect.bisect_left(value.ids, stream_id(rest[1], 0)))

    def do_xlen(self, args: Args) -> int:
        value: Stream | None = self.data.get(args[0], Stream)
        return 0 if value is None else len(value.ids)

    def do_xdel(self, args: Args) -> int:
        value: Stream | None = self.data.get(args[0], Stream)
        gone = 0
        for identity in (stream_id(text, 0) for text in args[1:]):
            if value is not None and identity in value.ids:
                at = value.ids.index(identity)
                del value.ids[at], value.entries[at]
                gone += 1
        return gone

    def do_xrange(self, args: Args) -> list[Any]:
        return self._entries(args[0], args[1], args[2], args[3:], backwards=False)

    def do_xrevrange(self, args: Args) -> list[Any]:
        return self._entries(args[0], args[2], args[1], args[3:], backwards=True)

    def _entries(self, key: bytes, first: bytes, last: bytes, options: Args, *, backwards: bool) -> list[Any]:
        value: Stream | None = self.data.get(key, Stream)
        if value is None:
            return []
        low, high = value.span(first, last)
        found = [[b"%d-%d" % value.ids[at], value.entries[at]] for at in range(low, high)]
        if backwards:
            found.reverse()
        return found[: _int(options[1])] if options else found
