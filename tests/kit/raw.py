"""A socket without a library: it sends frames as a test builds them, valid or broken."""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from websockets.speedups import apply_mask

from tests.kit.client import SECONDS, Front

MASK = b"\x11\x22\x33\x44"


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A client's frame, or what a bad client might send for one."""
    size = len(payload)
    head = bytes(((0x80 if final else 0) | reserved | opcode,))
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes((bit | size,))
    elif size < 1 << 16:
        head += bytes((bit | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((bit | 127,)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + apply_mask(payload, MASK)


def text(message: Any) -> bytes:
    """A text frame that holds `message` as JSON."""
    return frame(1, orjson.dumps(message))


async def exchange(port: int, *requests: bytes, source: str = "127.0.0.1") -> bytes:
    """All that is answered to the last of `requests`, which are sent one after the other on one connection.

    It ends when the other side ends the connection, or its one answer is whole.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    answer = b""
    try:
        async with asyncio.timeout(SECONDS):
            for request in requests:
                writer.write(request)
                answer = b""
                while data := await reader.read(1 << 16):
                    answer += data
                    head, found, body = answer.partition(b"\r\n\r\n")
                    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                    if found and length and len(body) >= int(length[1]) and b"close" not in head.lower():
                        break
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer


class RawSocket:
    """One connection after its upgrade. It answers nothing by itself, and reads only when the test calls for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        self.writer = writer
        self.answer = answer  # the head of the handshake's answer
        self._reader = reader

    @classmethod
    async def open(
        cls, front: Front, *, target: bytes = b"/ws", read_bytes: int = 1 << 16, extensions: bytes = b""
    ) -> Self:  # fmt: skip
        """Connect and ask for the upgrade of `target`; at most about `read_bytes` are read ahead."""
        host = urlsplit(front.ws).netloc
        reader, writer = await asyncio.open_connection(*host.split(":"), limit=read_bytes)
        writer.write(
            b"GET " + target + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\n"
            + (b"Sec-WebSocket-Extensions: " + extensions + b"\r\n" if extensions else b"") + b"\r\n"
        )  # fmt: skip
        async with asyncio.timeout(SECONDS):
            return cls(reader, writer, await reader.readuntil(b"\r\n\r\n"))

    @property
    def status(self) -> int:
        """The status of the handshake's answer."""
        return int(self.answer.split(b" ", 2)[1])

    def write(self, *frames: bytes) -> None:
        """Send them in one write; to who is gone nothing can be sent, and asyncio would say so each time."""
        if not self.writer.is_closing():
            self.writer.write(b"".join(frames))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload, inflated if it was compressed.

        Raises:
            asyncio.IncompleteReadError: The other side has closed the connection.
        """
        async with asyncio.timeout(SECONDS):
            head = await self._reader.readexactly(2)
            size = head[1] & 0x7F
            if size >= 126:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
            payload = await self._reader.readexactly(size)
            if head[0] & 0x40:
                payload = zlib.decompress(payload + b"\x00\x00\xff\xff\x03\x00", wbits=-15)
            return head[0] & 0x0F, payload

    async def message(self) -> Any:
        """The next message, as JSON."""
        opcode, payload = await self.frame()
        assert opcode == 1, f"a frame of opcode {opcode} instead of text: {payload!r}"
        return orjson.loads(payload)

    async def close_code(self) -> int:
        """The code of the close frame; frames before it are skipped."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")

    async def ended(self) -> bool:
        """Wait until the other side has ended the connection, throwing away what it still sends."""
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                while await self._reader.read(1 << 16):
                    pass
        return True

    async def close(self) -> None:
        """Cut the connection."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
