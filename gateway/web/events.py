"""Clients where there can be no WebSocket: Server-Sent Events, long polling, and what they say by POST.

    GET  /sse[?topic=…]   an answer without end: an event for each message; `Last-Event-ID` has what was missed sent
    POST /poll            nothing in it: opens a stream; its name: what has come since, a message a line
    POST /say             the stream's name, then a message a line, to whichever node

A stream's name holds a key, so it travels in bodies only. The bodies are plain text, which a page of a listed origin
may send without asking first.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.cluster.keys import node_of as node_id_of
from gateway.cluster.link import Unavailable
from gateway.core import frames, topics
from gateway.core.places import Places
from gateway.core.protocol import shown
from gateway.node import Node
from gateway.transport.eventstream import GATHER_SECONDS, AlreadyTaken, EventStream
from gateway.transport.request import EXTENSION, RequestProtocol
from gateway.web import entrance
from gateway.web.answers import NOT_DECODED, announced_bytes, encoding_of, node_of
from gateway.web.entrance import Refusal

MAX_TOPICS: Final = 20  # of the URL; whoever wants more says SUBSCRIBE
MAX_NAME_BYTES: Final = 512
# A proxy does not tell us that whom it serves is gone until we write: the first time the kernel answers it with a
# reset, the second time it fails. So nobody stays listed for longer than twice this.
QUIET_SECONDS: Final = 5.0
_NAME: Final = re.compile(rb"[A-Za-z0-9_.\-]{3,400}\.[0-9a-f]{32}")

# Some proxies collect an answer before they pass it on: this is how nginx is told not to.
_HEADERS: Final = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}


async def sse(request: Request) -> Response:
    """Open a stream, and send what comes in it until it ends."""
    node = node_of(request)
    if request.method == "HEAD":
        return Response(media_type="text/event-stream", headers=_HEADERS)
    try:
        asked = _topics_of(request)
        stream = await _open(request, node, "sse")
    except Refusal as refusal:
        return refusal.answer(node)
    places = Places(asked, request.headers.get("last-event-id", ""))
    if asked:
        recover = {topic: place._asdict() for topic, place in places.recover.items()}
        stream.receive_lines(orjson.dumps({"type": "SUBSCRIBE", "topics": asked, "recover": recover}))
    answer = StreamingResponse(_events(stream, places), media_type="text/event-stream", headers=_HEADERS)
    return _shared(request, answer)


async def poll(request: Request) -> Response:
    """Open a stream, or go on with one: what has come in it."""
    node = node_of(request)
    try:
        entrance.check_origin(request, node)
        name = await _body(request, MAX_NAME_BYTES)
        stream = node.clients.event_streams.find(name) if name else await _open(request, node, "poll")
        taken = await stream.take(GATHER_SECONDS) if stream is not None else None
        if taken is None:
            raise Refusal(410, "this node has no such stream, or it has ended; open another")
    except AlreadyTaken:
        return _shared(request, Refusal(409, "another request waits for this stream already").answer(node))
    except Refusal as refusal:
        return _shared(request, refusal.answer(node))
    # A message a line: in JSON as we write it none has a line's end in it.
    texts = b"\n".join(text for data in taken for text in frames.payloads(data))
    return _shared(request, Response(texts, headers=_HEADERS, media_type="application/x-ndjson"))


async def say(request: Request) -> Response:
    """Have the stream's node carry out what its client says; the answers come in the stream."""
    node = node_of(request)
    try:
        entrance.check_origin(request, node)
        said = await _body(request, node.settings.max_message_bytes + MAX_NAME_BYTES)
        name = said.partition(b"\n")[0]
        if not _NAME.fullmatch(name):
            raise Refusal(400, "the first line must be the stream's name, which its OPEN message gives")
        at = node_id_of(name.decode().rpartition(".")[0])
        heard = node.clients.hear(said) if at == node.id else await node.relay.forward(at, said)
        if not heard:
            raise Refusal(410, "there is no such stream, or it has ended; open another")
    except Unavailable as error:
        return _shared(request, Refusal(503, f"Redis is not available: {error}").answer(node))
    except Refusal as refusal:
        return _shared(request, refusal.answer(node))
    return _shared(request, Response(status_code=204))


async def _open(request: Request, node: Node, kind: str) -> EventStream:
    line: RequestProtocol = request.scope["extensions"][EXTENSION]
    full = line.refuses()
    if full is not None:
        raise Refusal(503, full)
    guest = await entrance.receive(request, node)
    lasts = kind == "sse"
    if lasts:
        line.watch(node.settings.ping_seconds + node.settings.pong_seconds)
    stream = EventStream(kind, node.clients.event_streams, line.abort if lasts else lambda: None)
    entrance.let_in(guest, stream, node)
    return stream


async def _events(stream: EventStream, places: Places) -> AsyncIterator[bytes]:
    try:
        while (taken := await stream.take(quiet_seconds=QUIET_SECONDS)) is not None:
            # A comment is what may be sent when there is nothing to send.
            yield b"".join(places.event(text) for data in taken for text in frames.payloads(data)) or b":\n\n"
    finally:
        stream.end()


async def _body(request: Request, limit: int) -> bytes:
    encoding = encoding_of(request)
    if encoding is not None:
        raise Refusal(415, NOT_DECODED.format(encoding))
    if announced_bytes(request) > limit:  # before any of it is read
        raise Refusal(413, f"the body is larger than {limit} bytes")
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > limit:
                raise Refusal(413, f"the body is larger than {limit} bytes")
    except ClientDisconnect:  # amid its body: nobody reads the answer
        raise Refusal(400, "the connection ended before the whole body had arrived") from None
    return bytes(received)


def _topics_of(request: Request) -> list[str]:
    asked = list(dict.fromkeys(request.query_params.getlist("topic")))
    if len(asked) > MAX_TOPICS or not all(map(topics.is_topic, asked)):
        bad = next((name for name in asked if not topics.is_topic(name)), None)
        what = f"{len(asked)} topics" if bad is None else f"the topic {shown(bad)}"
        raise Refusal(
            400,
            f"cannot subscribe to {what}: give the parameter topic at most {MAX_TOPICS} times, each with "
            f"{topics.NAME_FORM}",
        )
    return asked


def _shared(request: Request, response: Response) -> Response:
    """Let the page that asked read the answer, now that its origin was found good (Fetch, 3.2)."""
    origin = request.headers.get("origin")
    if origin is not None and response.status_code != 403:
        response.headers["access-control-allow-origin"] = origin
        response.headers["access-control-allow-credentials"] = "true"
        response.headers["vary"] = "Origin"
    return response


ROUTES: Final = [
    Route("/sse", sse, methods=["GET"]),
    Route("/poll", poll, methods=["POST"]),
    Route("/say", say, methods=["POST"]),
]
