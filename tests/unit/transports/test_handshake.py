"""The WebSocket handshake and the negotiation of compression."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from uvicorn._types import HTTPScope
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from gateway.transports import handshake
from gateway.transports.handshake import HANDSHAKE_SECONDS, Handshake, SharedDeflate, accept_usual, subprotocols
from tests.unit.virtual_time import in_virtual_time, later

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
def test_no_side_keeps_a_compression_context_for_any_offer(offer: str, answer: str) -> None:
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


Policy = Callable[[dict[str, Any], Handshake], None]


class FakeConnection:
    """A connection and its transport: it keeps what its client is sent, and how the handshake ended."""

    def __init__(self, policy: Policy) -> None:
        self.written = b""
        self.outcomes: list[object] = []
        self.decide = policy  # it is its own policy, too
        self.handshake = Handshake(cast(Any, self), self)

    def write(self, data: bytes) -> None:
        self.written += data

    def handshake_accepted(self, *, deflates: bool) -> None:
        self.outcomes.append(("accepted", deflates))

    def handshake_refused(self) -> None:
        self.outcomes.append("refused")

    def start(
        self, headers: list[tuple[bytes, bytes]], target: bytes = b"/ws", method: str = "GET", version: str = "1.1",
        compression: bool = False,
    ) -> None:  # fmt: skip
        self.handshake.start(request(headers, method, version, compression=compression), target, cast(Any, self))

    @property
    def status(self) -> int:
        return int(self.written.split(b" ")[1])


def accept(scope: dict[str, Any], handshake: Handshake) -> None:
    """Accept every client, with the first subprotocol that it offers."""
    handshake.accept((scope["subprotocols"] or [None])[0])


async def test_a_valid_request_gets_101_with_a_subprotocol() -> None:
    connection = FakeConnection(accept)
    connection.start([*GOOD, (b"sec-websocket-protocol", b"one, two")])
    assert connection.outcomes == [("accepted", False)]
    head, _, rest = connection.written.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"Sec-WebSocket-Protocol: one",
    ]  # fmt: skip
    assert not rest


async def test_the_policy_gets_the_request() -> None:
    scopes: list[dict[str, Any]] = []

    def keep(scope: dict[str, Any], handshake: Handshake) -> None:
        scopes.append(scope)
        accept(scope, handshake)

    FakeConnection(keep).start(GOOD, b"/a%20b?c=%20d")
    assert scopes == [{
        "type": "websocket", "scheme": "wss", "path": "/a b", "query_string": b"c=%20d", "client": ("192.0.2.7", 1),
        "headers": GOOD, "subprotocols": [],
    }]  # fmt: skip


async def test_compression_is_negotiated_for_each_connection_by_itself() -> None:
    offer = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")
    for headers, compression, deflates in (
        ([*GOOD, offer], True, True),
        (GOOD, True, False),
        ([*GOOD, offer], False, False),
    ):
        connection = FakeConnection(accept)
        connection.start(headers, compression=compression)
        assert connection.outcomes == [("accepted", deflates)]
        assert (b"Sec-WebSocket-Extensions: permessage-deflate" in connection.written) == deflates


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
async def test_an_invalid_request_is_refused_without_the_policy(
    status: int, headers: list[tuple[bytes, bytes]], how: dict[str, Any]
) -> None:
    def never(scope: dict[str, Any], handshake: Handshake) -> None:
        raise AssertionError("the policy was called")

    connection = FakeConnection(never)
    connection.start(headers, **how)
    assert connection.outcomes == ["refused"]
    assert connection.status == status


async def test_a_content_length_of_zero_is_no_body() -> None:
    connection = FakeConnection(accept)
    connection.start([*GOOD, (b"content-length", b"0")])
    assert connection.status == 101


async def test_a_policy_that_fails_costs_the_client_status_500() -> None:
    def fail(scope: dict[str, Any], handshake: Handshake) -> None:
        raise RuntimeError("broken")

    connection = FakeConnection(fail)
    connection.start(GOOD)
    assert connection.outcomes == ["refused"] and connection.status == 500


async def test_an_application_without_a_policy_has_no_websockets() -> None:
    connection = FakeConnection(accept)
    connection.handshake = Handshake(cast(Any, connection), None)
    connection.start(GOOD)
    assert connection.outcomes == ["refused"] and connection.status == 404


@in_virtual_time
async def test_a_policy_that_does_not_decide_in_time_costs_the_client_status_503() -> None:
    connection = FakeConnection(lambda _scope, _handshake: None)
    connection.start(GOOD)
    await later(HANDSHAKE_SECONDS - 0.1)
    assert connection.outcomes == [] and not connection.handshake.is_over
    await later(0.2)
    assert connection.outcomes == ["refused"] and connection.status == 503
    connection.handshake.accept(None)  # too late
    assert connection.outcomes == ["refused"] and connection.status == 503


@pytest.mark.parametrize("over", ["rejected", "canceled"])
async def test_nothing_follows_the_end_of_a_handshake(over: str) -> None:
    connection = FakeConnection(lambda _scope, _handshake: None)
    connection.start(GOOD)
    if over == "rejected":
        connection.handshake.reject(HTTPStatus.BAD_REQUEST)
    else:
        connection.handshake.cancel()
    assert connection.handshake.is_over
    written, outcomes = connection.written, list(connection.outcomes)
    connection.handshake.accept("one")
    connection.handshake.reject(HTTPStatus.FORBIDDEN)
    assert (connection.written, connection.outcomes) == (written, outcomes)


async def test_a_refusal_has_the_headers_and_the_body_of_the_policy() -> None:
    connection = FakeConnection(
        lambda _scope, handshake: handshake.reject(
            HTTPStatus.TOO_MANY_REQUESTS, b"later", [(b"retry-after", b"5"), (b"content-length", b"9")]
        )
    )
    connection.start(GOOD)
    assert connection.written == (
        b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlater"
    )


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
