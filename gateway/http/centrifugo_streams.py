"""Clients of Centrifugo's protocol without WebSockets.

    POST /connection/http_stream    the body has the first commands; an endless response with one reply per line
    GET, POST /connection/sse       the same as Server-Sent Events; GET has the first commands in `cf_connect`
    POST /emulation                 further commands, with the session that the reply to connect names; to any node

    POST /connection/uni_http_stream    for clients that only listen: the first message is the fields of connect, and
    GET, POST /connection/uni_sse       each line is a push. A client that is refused gets an HTTP status

With the content type application/octet-stream, `/connection/http_stream` and `/emulation` speak Protobuf.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.broker.client import Unavailable
from gateway.broker.keys import node_of as node_id_of
from gateway.core import frames
from gateway.http import handshake
from gateway.http.api.resource import node_of
from gateway.http.handshake import HandshakeRefused
from gateway.http.streams import HEADERS, STREAM_NAME, open_stream, read_body, with_cors
from gateway.node.node import Node
from gateway.protocols.centrifugo import protobuf
from gateway.protocols.centrifugo import protocol as centrifugo
from gateway.protocols.centrifugo.protocol import Centrifugo
from gateway.transports.http_stream import HttpStream

BINARY_TYPE: Final = "application/octet-stream"
PREFLIGHT_SECONDS: Final = "300"
CONNECT_SECONDS: Final = 10.0  # for the answer to `connect` of a client that only listens
# The HTTP status for a close code; for others it is 503, and the client may connect again.
STATUS: Final = {3005: 401, 3500: 401, 3501: 400, 3503: 403, 3504: 429, 3505: 400, 3013: 429}
QUOTED_BYTES: Final = 2  # of an emulated command in a JSON string, for each byte of it
_PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "content-type",
    "access-control-max-age": PREFLIGHT_SECONDS,
}


async def http_stream(request: Request) -> Response:
    """Open a stream, and send its replies, one per line, until it ends."""
    binary = request.headers.get("content-type") == BINARY_TYPE
    return await _stream(request, "http_stream", centrifugo.PROTOBUF if binary else centrifugo.JSON)


async def sse(request: Request) -> Response:
    """Open a stream, and send its replies as events until it ends."""
    return await _stream(request, "sse", centrifugo.JSON)


async def uni_http_stream(request: Request) -> Response:
    """Open a stream of pushes, one per line."""
    return await _stream(request, "http_stream", centrifugo.UNIDIRECTIONAL)


async def uni_sse(request: Request) -> Response:
    """Open a stream of pushes as events."""
    return await _stream(request, "sse", centrifugo.UNIDIRECTIONAL)


async def emulation(request: Request) -> Response:
    """Pass commands of a client to the node of its stream. The replies come in the stream."""
    if request.method == "OPTIONS":
        return _preflight(request)
    node = node_of(request)
    try:
        handshake.check_origin(request, node)
        body = await read_body(request, QUOTED_BYTES * node.settings.max_message_bytes)
        name, commands = _emulated(body, binary=request.headers.get("content-type") == BINARY_TYPE)
        if len(commands) > node.settings.max_message_bytes:
            raise HandshakeRefused(413, f"the commands are larger than {node.settings.max_message_bytes} bytes")
        at, posted = node_id_of(name.decode().rpartition(".")[0]), name + b"\n" + commands
        if at == node.id:
            node.event_streams.post_received(posted)  # a stream that has ended is no error: the client knows it
        elif not await node.post_forwarder.forward(at, posted):
            raise HandshakeRefused(404, "there is no such node; connect again")
    except Unavailable as error:
        return with_cors(request, HandshakeRefused(503, f"Redis is not available: {error}").response(node))
    except HandshakeRefused as refusal:
        return with_cors(request, refusal.response(node))
    return with_cors(request, Response(status_code=204))


def _emulated(body: bytes, *, binary: bool) -> tuple[bytes, bytes]:
    """The name of the stream and the commands in the body of an emulation request."""
    try:
        fields = protobuf.decode("EmulationRequest", body) if binary else orjson.loads(body)
        name, commands = fields["session"].encode(), fields.get("data") or b""
        commands = commands if isinstance(commands, bytes) else commands.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HandshakeRefused(400, "the body must have session and data") from None
    if not STREAM_NAME.fullmatch(name):
        raise HandshakeRefused(400, "session must be what the reply to connect has named")
    return name, commands


async def _stream(request: Request, kind: str, protocol: Centrifugo) -> Response:
    if request.method == "OPTIONS":
        return _preflight(request)
    node, binary = node_of(request), protocol is centrifugo.PROTOBUF
    try:
        handshake.check_origin(request, node)
        if request.method == "POST":
            commands = await read_body(request, node.settings.max_message_bytes)
        else:
            commands = request.query_params.get("cf_connect", "").encode()
        if not commands:
            raise HandshakeRefused(400, "the first command must be connect, in the body or in cf_connect")
        stream = await open_stream(request, node, kind, protocol, lasts=True, binary=binary)
        stream.post_received(commands)
        first = await _answer(stream) if protocol is centrifugo.UNIDIRECTIONAL else []
    except HandshakeRefused as refusal:
        return with_cors(request, refusal.response(node))
    media_type = "text/event-stream" if kind == "sse" else BINARY_TYPE if binary else "application/json"
    replies = _replies(stream, first, node, kind, binary=binary)
    return with_cors(request, StreamingResponse(replies, media_type=media_type, headers=HEADERS))


async def _answer(stream: HttpStream) -> list[bytes]:
    """The first frames for a client that only listens.

    Raises:
        HandshakeRefused: Its `connect` is refused.
    """
    answered = False
    try:
        taken = await stream.take_frames(quiet_seconds=CONNECT_SECONDS)
        refused: dict[str, Any] | None = {"code": 0, "reason": "closed"}
        if taken is not None:
            refused = orjson.loads(next(frames.payloads(taken[0]))).get("disconnect") if taken else None
        if refused is not None:
            raise HandshakeRefused(STATUS.get(refused["code"], 503), refused["reason"])
        answered = True
        return taken or []
    finally:
        if not answered:
            stream.finish()


async def _replies(
    stream: HttpStream, first: list[bytes], node: Node, kind: str, *, binary: bool
) -> AsyncIterator[bytes]:
    begin, end = (b"data: ", b"\n\n") if kind == "sse" else (b"", b"" if binary else b"\n")
    try:
        if kind == "sse":
            yield b"\r\n"
        taken: list[bytes] | None = first or await stream.take_frames(quiet_seconds=node.settings.ping_seconds)
        while taken is not None:
            yield b"".join(
                begin + payload + end
                for data in taken or [stream.conversation.ping()]
                for payload in frames.payloads(data)
            )
            taken = await stream.take_frames(quiet_seconds=node.settings.ping_seconds)
    finally:
        stream.finish()


def _preflight(request: Request) -> Response:
    node = node_of(request)
    try:
        handshake.check_origin(request, node)
    except HandshakeRefused as refusal:
        return refusal.response(node)
    return with_cors(request, Response(status_code=204, headers=_PREFLIGHT))


ROUTES: Final = [
    Route("/connection/http_stream", http_stream, methods=["POST", "OPTIONS"]),
    Route("/connection/sse", sse, methods=["GET", "POST", "OPTIONS"]),
    Route("/connection/uni_http_stream", uni_http_stream, methods=["POST", "OPTIONS"]),
    Route("/connection/uni_sse", uni_sse, methods=["GET", "POST", "OPTIONS"]),
    Route("/emulation", emulation, methods=["POST", "OPTIONS"]),
]
