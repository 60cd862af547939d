"""Output of one turn becomes one write, in order, and is not lost by a close that follows."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.transports.http1_output import Http1Output


class Wire:
    """A transport that records its calls."""

    def __init__(self) -> None:
        self.said: list[bytes | str] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.said.append(data)

    def close(self) -> None:
        self.said.append("close")
        self.closing = True

    def abort(self) -> None:
        self.said.append("abort")
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> str:
        return name


def lines() -> tuple[Http1Output, Wire]:
    wire = Wire()
    return Http1Output(cast(Any, wire), asyncio.get_running_loop()), wire


async def turn() -> None:
    await asyncio.sleep(0)


async def test_what_is_written_in_one_turn_is_one_write() -> None:
    output, wire = lines()
    output.write(b"head ")
    output.write(b"body")
    assert wire.said == []
    await turn()
    assert wire.said == [b"head body"]
    output.write(b"next")
    await turn()
    await turn()
    assert wire.said == [b"head body", b"next"]


async def test_what_was_written_is_sent_before_an_end_and_once() -> None:
    output, wire = lines()
    output.write(b"last")
    output.close()
    assert wire.said == [b"last", "close"]
    await turn()
    assert wire.said == [b"last", "close"]


async def test_what_was_cut_off_is_sent_no_more() -> None:
    output, wire = lines()
    output.write(b"unsent")
    output.abort()
    output.write(b"after the end")
    await turn()
    await turn()
    assert wire.said == ["abort"]


async def test_a_new_owner_of_the_transport_writes_after_earlier_output() -> None:
    output, wire = lines()
    output.write(b"answer")
    output.detach().write(b"frame")
    await turn()
    assert wire.said == [b"answer", b"frame"]


async def test_all_else_is_the_transports() -> None:
    output, wire = lines()
    assert output.get_extra_info("socket") == "socket"
    assert not output.is_closing()
    output.close()
    assert output.is_closing() and wire.closing
