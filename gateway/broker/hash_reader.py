"""Reads hashes of Redis in pages, so that neither a long hash nor a large value blocks Redis or the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from gateway.broker.client import CommandRefused, Impaired, RedisClient, WrongType
from gateway.broker.rows import MAX_TEXT_BYTES, RowKind

PAGE_FIELDS: Final = 1000
MAX_PAGES: Final = 200  # of one hash: 200,000 fields, twice what a full node has; the rest is left out


class HashReader:
    """Reader of hashes of one kind. The script leaves out values over `most_bytes`."""

    def __init__(self, redis: RedisClient, kind: RowKind, most_bytes: int) -> None:
        self._redis = redis
        self._kind: RowKind = kind
        self._most_bytes = most_bytes
        self._page_hash = redis.script("page_hash")

    async def read(self, keys: Sequence[str]) -> list[dict[bytes, bytes]]:
        """Fields and values of each hash. One round trip reads a page of each. A key of another type has no fields.

        A field that changes during the read may be missing; every other field is there.

        Raises:
            Unavailable: Redis did not answer in time, or rejected a command for another reason than a key's type.
        """
        found: list[dict[bytes, bytes]] = [{} for _ in keys]
        async for at, flat in self.pages(keys):
            found[at].update(zip(flat[::2], flat[1::2], strict=True))
        return found

    async def pages(self, keys: Sequence[str]) -> AsyncIterator[tuple[int, list[bytes]]]:
        """Read page by page: the index of the hash in `keys`, and field, value, field, value, ...

        A page has about `PAGE_FIELDS` fields. HSCAN may return a field twice.

        Raises:
            Unavailable: As `read`.
        """
        cursors: dict[int, bytes | int] = dict.fromkeys(range(len(keys)), 0)
        for _ in range(MAX_PAGES):
            if not cursors:
                break
            answers = await self._redis.read_batch.execute_each(
                [
                    self._page_hash([keys[at]], [cursor, PAGE_FIELDS, MAX_TEXT_BYTES, self._most_bytes])
                    for at, cursor in cursors.items()
                ]
            )
            following: dict[int, bytes | int] = {}
            for at, answer in zip(cursors, answers, strict=True):
                if isinstance(answer, WrongType):
                    self._redis.rows.skip(self._kind, keys[at], answer)
                    continue
                if isinstance(answer, Impaired):
                    continue  # no server has the slot of this hash; the others can be read
                if isinstance(answer, CommandRefused):
                    raise answer
                cursor, left_out, flat = answer
                if left_out:
                    self._redis.rows.skip(self._kind, keys[at], "a field or a value is too long", left_out)
                if cursor != b"0":
                    following[at] = cursor
                yield at, flat
            cursors = following
        for at in cursors:
            self._redis.rows.skip(self._kind, keys[at], f"more than {MAX_PAGES * PAGE_FIELDS} fields")
