"""Clients without WebSockets: Server-Sent Events, long polling, and their messages by POST.

    GET  /sse[?topic=…]   an endless response with one event per message; recovers from `Last-Event-ID`
    POST /poll            empty body: opens a stream; body with its name: waits for messages, one per line
    POST /say             the stream's name, then messages of the client, one per line; to any node

The name of a stream contains a secret key, so it is sent in bodies only. The bodies are plain text, which pages of
allowed origins may send without a CORS preflight.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.broker.client import Unavailable
from gateway.broker.keys import node_of as node_id_of
from gateway.core import frames, topic_rules
from gateway.core.commands import Subscribe
from gateway.core.names import quoted
from gateway.http import handshake
from gateway.http.api.resource import NOT_DECODED, content_encoding, content_length, node_of
from gateway.http.handshake import HandshakeRefused
from gateway.node.node import Node
from gateway.protocols.native.event_ids import NATIVE_EVENTS, EventIds
from gateway.protocols.native.protocol import NATIVE
from gateway.protocols.protocol import ClientProtocol
from gateway.transports.http1 import EXTENSION, Http1Protocol
from gateway.transports.http_stream import GATHER_SECONDS, HttpStream, StreamInUse

MAX_TOPICS: Final = 20  # in the URL; a client subscribes to more by SUBSCRIBE
MAX_NAME_BYTES: Final = 512
# Behind a proxy the node notices a disconnected client only by writing: the first write causes a reset, the second
# one fails. So a disconnected client is removed after at most twice this time.
POLL_SECONDS: Final = 5.0
STREAM_NAME: Final = re.compile(rb"[A-Za-z0-9_.\-]{3,400}\.[0-9a-f]{32}")

# The second header disables the response buffering of nginx.
HEADERS: Final = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}


async def sse(request: Request) -> Response:
    """Open a stream, and send its messages as events until it ends."""
    node = node_of(request)
    if request.method == "HEAD":
        return Response(media_type="text/event-stream", headers=HEADERS)
    try:
        asked = _topics_of(request)
        stream = await _open(request, node, "sse")
    except HandshakeRefused as refusal:
        return refusal.response(node)
    event_ids = EventIds(asked, request.headers.get("last-event-id", ""))
    if asked:
        stream.receive_command(Subscribe(tuple(asked), None, recover=event_ids.recover))
    answer = StreamingResponse(_events(stream, event_ids), media_type="text/event-stream", headers=HEADERS)
    return with_cors(request, answer)


async def poll(request: Request) -> Response:
    """Open a stream or continue one, and return its waiting messages."""
    node = node_of(request)
    try:
        handshake.check_origin(request, node)
        name = await read_body(request, MAX_NAME_BYTES)
        stream = node.event_streams.find(name) if name else await _open(request, node, "poll")
        taken = await stream.take_frames(GATHER_SECONDS) if stream is not None else None
        if taken is None:
            raise HandshakeRefused(410, "this node has no such stream, or it has ended; open another")
    except StreamInUse:
        return with_cors(request, HandshakeRefused(409, "another request waits for this stream already").response(node))
    except HandshakeRefused as refusal:
        return with_cors(request, refusal.response(node))
    # One message per line: orjson never writes a line break inside a message.
    texts = b"\n".join(text for data in taken for text in frames.payloads(data))
    return with_cors(request, Response(texts, headers=HEADERS, media_type="application/x-ndjson"))


async def send_messages(request: Request) -> Response:
    """Pass messages of a client to the node of its stream. The replies come in the stream."""
    node = node_of(request)
    try:
        handshake.check_origin(request, node)
        body = await read_body(request, node.settings.max_message_bytes + MAX_NAME_BYTES)
        name = body.partition(b"\n")[0]
        if not STREAM_NAME.fullmatch(name):
            raise HandshakeRefused(400, "the first line must be the stream's name, which its OPEN message gives")
        at = node_id_of(name.decode().rpartition(".")[0])
        received = (
            node.event_streams.post_received(body) if at == node.id else await node.post_forwarder.forward(at, body)
        )
        if not received:
            raise HandshakeRefused(410, "there is no such stream, or it has ended; open another")
    except Unavailable as error:
        return with_cors(request, HandshakeRefused(503, f"Redis is not available: {error}").response(node))
    except HandshakeRefused as refusal:
        return with_cors(request, refusal.response(node))
    return with_cors(request, Response(status_code=204))


async def _open(request: Request, node: Node, kind: str) -> HttpStream:
    return await open_stream(request, node, kind, NATIVE_EVENTS if kind == "sse" else NATIVE, lasts=kind == "sse")


async def open_stream(
    request: Request, node: Node, kind: str, protocol: ClientProtocol, *, lasts: bool, binary: bool = False
) -> HttpStream:
    """Open a stream for a request, after the checks of a handshake. `lasts`: one endless response takes its frames.

    Raises:
        HandshakeRefused: The client is refused.
    """
    line: Http1Protocol = request.scope["extensions"][EXTENSION]
    full = line.refusal()
    if full is not None:
        raise HandshakeRefused(503, full)
    client = await handshake.accept_handshake(request, node)
    if lasts:
        line.set_user_timeout(node.settings.ping_seconds + node.settings.pong_seconds)
    stream = HttpStream(kind, node.event_streams, line.abort if lasts else lambda: None, binary=binary)
    handshake.open_connection(client, stream, protocol, node)
    return stream


async def _events(stream: HttpStream, event_ids: EventIds) -> AsyncIterator[bytes]:
    try:
        while (taken := await stream.take_frames(quiet_seconds=POLL_SECONDS)) is not None:
            # Without a message, send an SSE comment, to detect a disconnected client.
            yield b"".join(event_ids.event(text) for data in taken for text in frames.payloads(data)) or b":\n\n"
    finally:
        stream.finish()


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request, of at most `limit` bytes.

    Raises:
        HandshakeRefused: It is larger, encoded, or cut off.
    """
    encoding = content_encoding(request)
    if encoding is not None:
        raise HandshakeRefused(415, NOT_DECODED.format(encoding))
    if content_length(request) > limit:  # reject before reading the body
        raise HandshakeRefused(413, f"the body is larger than {limit} bytes")
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > limit:
                raise HandshakeRefused(413, f"the body is larger than {limit} bytes")
    except ClientDisconnect:  # the client does not receive this response; it only ends the request
        raise HandshakeRefused(400, "the connection closed before the body was complete") from None
    return bytes(received)


def _topics_of(request: Request) -> list[str]:
    asked = list(dict.fromkeys(request.query_params.getlist("topic")))
    if len(asked) > MAX_TOPICS or not all(map(topic_rules.is_topic, asked)):
        bad = next((name for name in asked if not topic_rules.is_topic(name)), None)
        what = f"{len(asked)} topics" if bad is None else f"the topic {quoted(bad)}"
        raise HandshakeRefused(
            400,
            f"cannot subscribe to {what}: give the parameter topic at most {MAX_TOPICS} times, each with "
            f"{topic_rules.NAME_FORM}",
        )
    return asked


def with_cors(request: Request, response: Response) -> Response:
    """Add the CORS headers that let a page read the response (Fetch, 3.2). `check_origin` has allowed its origin."""
    origin = request.headers.get("origin")
    if origin is not None and response.status_code != 403:
        response.headers["access-control-allow-origin"] = origin
        response.headers["access-control-allow-credentials"] = "true"
        response.headers["vary"] = "Origin"
    return response


ROUTES: Final = [
    Route("/sse", sse, methods=["GET"]),
    Route("/poll", poll, methods=["POST"]),
    Route("/say", send_messages, methods=["POST"]),
]
