"""A request for a WebSocket, to its answer; and what is agreed about compression."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from gateway.transports import handshake
from gateway.transports.handshake import Handshake, SharedDeflate, accept_usual, subprotocols

OURS = "server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("", ""),  # each of these behind the extension's name
        ("; client_max_window_bits", ""),  # what Chromium says
        ("; client_no_context_takeover; client_max_window_bits", ""),
        ("; server_no_context_takeover", ""),
        ("; client_max_window_bits=9", "; client_max_window_bits=9"),
        ("; server_max_window_bits=12", "; server_max_window_bits=12"),
        ("; server_no_context_takeover; server_max_window_bits=15", "; server_max_window_bits=15"),
    ],
)
def test_neither_side_keeps_a_context_whatever_was_offered(offer: str, answer: str) -> None:
    assert agreed("permessage-deflate" + offer) == f"permessage-deflate; {OURS}{answer}"


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=11",  # what all others are sent could not be read
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; unknown",
        "x-webkit-deflate-frame",
        "permessage-bzip2",
    ],
)
def test_what_cannot_be_shared_is_not_agreed(offer: str) -> None:
    assert agreed(offer) is None


def test_of_several_offers_the_first_that_can_be_shared_is_taken() -> None:
    offers = (
        "permessage-deflate; server_max_window_bits=9, permessage-deflate; client_max_window_bits, permessage-deflate"
    )
    assert agreed(offers) == f"permessage-deflate; {OURS}"


def agreed(offer: str) -> str | None:
    """The answer to an offer; None: nothing is agreed."""
    answer, extensions = ServerProtocol(extensions=[SharedDeflate()]).process_extensions(
        Headers({"Sec-WebSocket-Extensions": offer})
    )
    assert bool(extensions) == (answer is not None)
    return answer


KEY = (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")
GOOD = [
    (b"host", b"a"),
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    KEY,
    (b"sec-websocket-version", b"13"),
]


@given(
    st.permutations(GOOD),
    st.lists(
        st.sampled_from(
            [
                (b"origin", b"https://a"), (b"upgrade", b"h2c"), (b"connection", b"close"), KEY,
                (b"sec-websocket-version", b"8"), (b"sec-websocket-extensions", b"permessage-deflate"),
            ]
        ),
        max_size=2,
    ),
    st.dictionaries(
        st.sampled_from([b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version"]),
        st.sampled_from(
            [
                b"", b"WebSocket", b"websocket, h2c", b"keep-alive, Upgrade", b"upgrade,", b"13", b"13 ", b"12",
                b"dGhlIHNhbXBsZSBub25jZQ=", b"dGhlIHNhbXBsZSBub25jZR==", b"dGhlIHNhbXBsZSBub25j!Q==", b"AA==",
            ]
        ),
        max_size=1,
    ),
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["1.1", "1.0"]),
    st.booleans(),
)  # fmt: skip
def test_a_usual_request_is_accepted_as_the_library_accepts_it(
    good: list[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]], other: dict[bytes, bytes], method: str,
    version: str, compression: bool,
) -> None:  # fmt: skip
    headers = [(name, other.get(name, value)) for name, value in [*good, *more] if name != b"host"]
    judge = handshake._COMPRESSING if compression else handshake._PLAIN
    accepted = accept_usual(request(headers, method, version), headers, judge)
    event("usual" if accepted is not None else "not usual")
    if accepted is not None:
        fields = Headers((name.decode(), value.decode("latin-1")) for name, value in headers)
        assert judge.process_request(Request("/", fields, method, f"HTTP/{version}"))[:2] == (accepted, None)


def test_a_request_as_browsers_write_it_is_usual() -> None:
    for connection in (b"Upgrade", b"keep-alive, Upgrade"):
        headers = [(b"connection", connection), *GOOD[2:], (b"origin", b"https://a")]
        assert accept_usual(request(headers), headers, handshake._PLAIN) is not None
    headers.append((b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits"))
    assert accept_usual(request(headers), headers, handshake._PLAIN) is not None
    assert accept_usual(request(headers), headers, handshake._COMPRESSING) is None


def request(
    headers: list[tuple[bytes, bytes]], method: str = "GET", version: str = "1.1", *, compression: bool = False
) -> HTTPScope:
    """What uvicorn has read."""
    return cast(HTTPScope, {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": version, "scheme": "https", "method": method,
        "client": ("192.0.2.7", 1), "root_path": "", "headers": headers, "state": {"compression": compression},
    })  # fmt: skip


class Asking:
    """An opener and its transport: somebody asks for a WebSocket, and `app` decides."""

    def __init__(self, app: ASGIApp) -> None:
        self.said = b""
        self.outcomes: list[object] = []  # whether it was accepted, and with what
        self.decided = asyncio.Event()
        config = Config(app, ws="none", proxy_headers=False)
        config.load()
        self.server = ServerState()
        self.handshake = Handshake(self, config, self.server)

    def write(self, data: bytes) -> None:
        self.said += data

    def handshake_accepted(self, *, deflates: bool) -> None:
        self.outcomes.append(("accepted", deflates))
        self.decided.set()

    def handshake_refused(self) -> None:
        self.outcomes.append("refused")
        self.decided.set()

    def ask(
        self, headers: list[tuple[bytes, bytes]], target: bytes = b"/ws", method: str = "GET", version: str = "1.1",
        compression: bool = False,
    ) -> None:  # fmt: skip
        self.handshake.start(request(headers, method, version, compression=compression), target, cast(Any, self))

    @property
    def status(self) -> int:
        return int(self.said.split(b" ")[1])


async def accept(scope: Scope, receive: Receive, send: Send) -> None:
    """An endpoint that lets in whoever asks."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})


async def decided(asking: Asking) -> None:
    async with asyncio.timeout(5):
        await asking.decided.wait()


async def test_whoever_asks_well_is_let_in() -> None:
    asking = Asking(accept)
    asking.ask([*GOOD, (b"sec-websocket-protocol", b"one, two")])
    await decided(asking)
    assert asking.outcomes == [("accepted", False)]
    head, _, rest = asking.said.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"Sec-WebSocket-Protocol: one",
    ]  # fmt: skip
    assert not rest


async def test_what_the_endpoint_is_asked() -> None:
    asked: list[Scope] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope)
        await accept(scope, receive, send)

    asking = Asking(look)
    asking.ask(GOOD, b"/a%20b?c=%20d")
    await decided(asking)
    (scope,) = asked
    assert {name: scope[name] for name in ("type", "scheme", "path", "raw_path", "query_string", "client")} == {
        "type": "websocket", "scheme": "wss", "path": "/a b", "raw_path": b"/a%20b", "query_string": b"c=%20d",
        "client": ("192.0.2.7", 1),
    }  # fmt: skip
    assert scope["headers"] == GOOD and scope["state"] == {"compression": False}
    assert scope["extensions"]["gateway.connection"] is asking


async def test_compression_is_agreed_where_it_is_on_and_one_handshake_says_nothing_of_the_next() -> None:
    offer = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")
    for headers, compression, deflates in (
        ([*GOOD, offer], True, True),
        (GOOD, True, False),
        ([*GOOD, offer], False, False),
    ):
        asking = Asking(accept)
        asking.ask(headers, compression=compression)
        await decided(asking)
        assert asking.outcomes == [("accepted", deflates)]
        assert (b"Sec-WebSocket-Extensions: permessage-deflate" in asking.said) == deflates


@pytest.mark.parametrize(
    ("status", "headers", "how"),
    [
        (400, [one for one in GOOD if one is not KEY], {}),
        (400, [*GOOD, KEY], {}),
        (400, [(KEY[0], b"short") if one is KEY else one for one in GOOD], {}),
        (400, [(name, b"12" if name.endswith(b"version") else value) for name, value in GOOD], {}),
        (400, [*GOOD, (b"origin", b"http://a"), (b"origin", b"http://b")], {}),
        (400, [*GOOD, (b"sec-websocket-protocol", b"no token")], {}),
        (400, [*GOOD, (b"content-length", b"5")], {}),
        (400, [*GOOD, (b"transfer-encoding", b"chunked")], {}),
        (400, GOOD, {"target": b"/\xc3\xa9"}),
        (405, GOOD, {"method": "POST"}),
        (426, [(name, b"close" if name == b"connection" else value) for name, value in GOOD], {}),
        (505, GOOD, {"version": "1.0"}),
    ],
)
async def test_whoever_asks_badly_is_refused_and_the_endpoint_not_asked(
    status: int, headers: list[tuple[bytes, bytes]], how: dict[str, Any]
) -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("asked")

    asking = Asking(never)
    asking.ask(headers, **how)
    assert asking.outcomes == ["refused"]
    assert asking.status == status


async def test_a_body_of_nothing_is_none() -> None:
    asking = Asking(accept)
    asking.ask([*GOOD, (b"content-length", b"0")])
    await decided(asking)
    assert asking.status == 101


async def test_an_endpoint_that_fails_or_says_nothing_is_our_fault() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    for app in (fail, silent):
        asking = Asking(app)
        asking.ask(GOOD)
        await decided(asking)
        assert asking.outcomes == ["refused"] and asking.status == 500


async def test_a_refusal_stands_whatever_the_endpoint_says_later() -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    failed: list[BaseException] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        await go_on.wait()
        try:
            await accept(scope, receive, send)
        except RuntimeError as error:
            failed.append(error)

    asking = Asking(slow)
    asking.ask(GOOD)
    await reached.wait()
    asking.handshake.reject(HTTPStatus.BAD_REQUEST)
    go_on.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*asking.server.tasks)
    assert asking.outcomes == ["refused"] and asking.status == 400
    assert len(failed) == 1


async def test_what_the_endpoint_adds_to_the_answer_is_in_it() -> None:
    async def adds(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"x-more", b"1")]})

    asking = Asking(adds)
    asking.ask(GOOD)
    await decided(asking)
    assert b"\r\nx-more: 1\r\n" in asking.said


@pytest.mark.parametrize(
    ("values", "offered"),
    [
        ([], []),
        ([b""], []),
        ([b" , "], []),
        ([b",,"], []),
        ([b"", b""], []),
        ([b"a"], ["a"]),
        ([b"a, b"], ["a", "b"]),
        ([b"a", b"b"], ["a", "b"]),
        ([b"a, a", b"a"], ["a"]),
        ([b"\ta ,"], ["a"]),
        ([b"graphql-ws.v1+json"], ["graphql-ws.v1+json"]),
        ([b"a b"], None),
        ([b"\xff"], None),
        ([b"a, \x00"], None),
        ([b"a/b"], None),
        ([b'"a"'], None),
        ([b"", b"("], None),
    ],
)
def test_subprotocols_are_a_list_of_tokens_that_may_be_empty(values: list[bytes], offered: list[str] | None) -> None:
    assert subprotocols(values) == offered
