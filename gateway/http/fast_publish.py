"""The fast path of POST /api/publish: it answers in the transport, without a task, ASGI or Starlette.

It calls the same functions as the route (`http/api/publish.py`), in the same order. It declines an unusual request
before anything has happened, and the route answers instead. Requests that are refused are among these. So only the
results of Redis are answered here, with the same response objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import orjson
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.auth.api_keys import digest_of
from gateway.broker.client import Unavailable
from gateway.core import json_text
from gateway.core.publication import Publication
from gateway.delivery.publisher import PendingPublish
from gateway.http.api import publish
from gateway.http.api.resource import bearer, internal_refusal, refusal_of
from gateway.http.middleware import HEADERS, host_check
from gateway.node.node import Node
from gateway.transports.fast_exchange import FastExchange, FastPath, Headers, Start

# uvicorn stops reading a larger body until the application takes it.
MAX_BODY_BYTES: Final = HIGH_WATER_LIMIT
# Headers that change how a request is read or answered. A header that is given twice is unusual too.
UNUSUAL: Final = frozenset({b"content-encoding", b"expect", b"transfer-encoding", b"upgrade"})
_SECURITY: Final = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode()


class FastPublish:
    """Publishes with the API keys, the settings and the publisher of `node`. See `FastPath`."""

    def __init__(self, node: Node) -> None:
        self._api_keys = node.api_keys
        self._publisher = node.publisher
        self._is_served = host_check(node.settings.hosts)
        self._max_body_bytes = min(MAX_BODY_BYTES, 2 * node.settings.max_message_bytes)

    def accept(self, method: bytes, target: bytes, headers: Headers) -> Start | None:
        """As `FastPath.accept`."""
        if target != b"/api/publish" or method != b"POST":
            return None
        fields = dict(headers)
        if len(fields) < len(headers) or not UNUSUAL.isdisjoint(fields):
            return None
        length = fields.get(b"content-length", b"")
        if not length.isdigit() or len(length) >= 10 or int(length) > self._max_body_bytes:
            return None
        if b"authorization" not in fields or not self._is_served(fields.get(b"host", b"").decode("latin-1")):
            return None
        given = bearer(fields[b"authorization"].decode("latin-1")).encode("latin-1")
        return partial(self._start, digest_of(given))

    def _start(self, digest: bytes, exchange: FastExchange) -> bool:
        """As `Start`. `digest`: of the API key of the request, whose rights may have changed since the last request."""
        key = self._api_keys.find_digest(digest)
        if key is None or not key.may("publish") or len(exchange.body) > self._max_body_bytes:
            return False
        try:
            publications = publish.parse(json_text.loads(bytes(exchange.body)))
            publish.check_permission(key, publications)
            pending = self._publisher.submit(publications)
        except Exception:  # nothing was queued: the route meets the same error, and answers it
            return False
        pending.answers.add_done_callback(partial(self._respond, exchange, publications, pending))
        return True

    def _respond(
        self, exchange: FastExchange, publications: Sequence[Publication], pending: PendingPublish,
        _done: asyncio.Future[object],
    ) -> None:  # fmt: skip
        try:
            content = publish.results(publications, self._publisher.positions(publications, pending))
        except Unavailable as error:
            _send(exchange, refusal_of(error))
        except BaseException:
            _send(exchange, internal_refusal())
            raise
        else:
            body = orjson.dumps(content)
            length = b"content-length: %d\r\ncontent-type: application/json\r\n" % len(body)
            exchange.respond(STATUS_LINE[200], length + _SECURITY, body)


def create(node: Node) -> FastPath | None:
    """The fast path of `node`; None if it is turned off, or Redis is a cluster, which needs a task for redirections."""
    return FastPublish(node) if node.settings.fast_paths and node.publisher.can_submit else None


def _send(exchange: FastExchange, response: Response) -> None:
    lines = b"".join([b"%s: %s\r\n" % header for header in response.raw_headers])
    exchange.respond(STATUS_LINE[response.status_code], lines + _SECURITY, bytes(response.body))
