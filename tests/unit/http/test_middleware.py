"""Permitted hosts, and the headers of every response."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message

from gateway.http.middleware import HEADERS, SecurityMiddleware, is_allowed_host

OURS = ("live.example", "*.apps.example")


@pytest.mark.parametrize(
    "host",
    [
        "live.example", "LIVE.example", "live.example:8080", "live.example.", "a.apps.example", "a.b.apps.example:443",
        "localhost", "localhost:8080", "a.localhost", "gateway", "gateway:9000", "127.0.0.1", "127.0.0.1:9000", "[::1]",
        "[::1]:9000", "192.0.2.7",
    ],
)  # fmt: skip
def test_our_own_names_and_addresses_are_served(host: str) -> None:
    assert is_allowed_host(host, OURS)


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:8080", "live.example.evil.example", "xlive.example", "apps.example",
        "evilapps.example",
        "live.example:80:80", "live.example:x", "live.example:\uff18\uff10", "::1", "[evil.example]",
        "127.0.0.1.evil.example", "127.1.evil", ".", "evil.example.", "[]", ":80", "localhost.evil.example",
    ],
)  # fmt: skip
def test_other_names_are_not(host: str) -> None:
    assert not is_allowed_host(host, OURS)


def test_without_a_list_only_what_no_strangers_dns_has_is_served() -> None:
    assert is_allowed_host("localhost:8080", ())
    assert not is_allowed_host("live.example", ())


async def answer(*hosts: str, path: str = "/") -> tuple[int, dict[str, str]]:
    """What the door and an application behind it say: status and headers."""

    async def fine(_request: Any) -> PlainTextResponse:
        return PlainTextResponse("fine", headers={"cache-control": "max-age=5"})

    app = SecurityMiddleware(Starlette(routes=[Route("/", fine)]), OURS)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {
        "type": "http", "path": path, "method": "GET", "query_string": b"", "root_path": "",
        "headers": [(b"host", host.encode()) for host in hosts],
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def test_a_stranger_is_turned_away_at_the_door() -> None:
    assert (await answer("evil.example"))[0] == 421
    assert (await answer())[0] == 400
    assert (await answer("live.example", "evil.example"))[0] == 400


async def test_every_answer_has_the_headers_that_it_does_not_set_itself() -> None:
    status, headers = await answer("live.example")
    assert status == 200
    assert headers.items() >= {**HEADERS, "cache-control": "max-age=5"}.items()
    for host, path in (("live.example", "/nothing"), ("evil.example", "/")):
        assert (await answer(host, path=path))[1].items() >= HEADERS.items()
