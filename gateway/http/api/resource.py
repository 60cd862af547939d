"""The common parts of the HTTP API: authorization, bodies, queries, the audit log, and errors in one format."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import orjson
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope as AsgiScope

from gateway.auth import api_keys
from gateway.auth.api_keys import ApiKey, Scope
from gateway.broker.client import Impaired, Unavailable, Unconfirmed, WrongType
from gateway.core import json_text
from gateway.core.identity import AuthError, KeyServerUnavailable
from gateway.logging import logger
from gateway.node.node import Node

MAX_LIMIT: Final = 10_000  # items on one page
DEFAULT_LIMIT: Final = 1000
AUDIT_CHARACTERS: Final = 200  # of each value in the audit log
SMALL_BYTES: Final = 4096  # the limit for a body with a few fields
TOO_LARGE: Final = "The body is larger than the limit of {} bytes"
GZIP: Final = b"\x1f\x8b"  # the first bytes of gzip data (RFC 1952)
NOT_DECODED: Final = "The body is encoded (Content-Encoding: {}): send it without an encoding"

Handler = Callable[[Request], Awaitable[Any]]


class _Name(Convertor[str]):
    """A name in a path, ``{topic:name}``, of any characters.

    Starlette's own `path` does not match line breaks: for "a" followed by a line break it finds "a".
    """

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """Return `value` unchanged."""
        return value

    def to_string(self, value: str) -> str:
        """Return `value` unchanged."""
        return value


register_url_convertor("name", _Name())


class _ApiRoute(Route):
    """A route that matches the path before decoding, so that an encoded slash is part of a name.

    The topic of ``/api/topics/a%2Fhistory`` is ``a/history``. The route decodes the names once, after matching.
    """

    def matches(self, scope: AsgiScope) -> tuple[Match, AsgiScope]:
        """Whether the route matches the request, and the names in its path."""
        raw: bytes = scope["raw_path"] if scope["type"] == "http" else b""
        match, found = super().matches({**scope, "path": raw.decode("latin-1")})
        if found:
            found["path_params"] = {name: unquote(value) for name, value in found["path_params"].items()}
        return match, found


class ApiError(Exception):
    """The API refuses a request, with this status, code and message."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


def resource(path: str, *query: str, **methods: tuple[Scope, Handler]) -> Route:
    """The route of one resource. All its methods share one route, so that a 405 response lists all of them in `Allow`.

    Args:
        path: The path, with parameters in braces.
        query: The allowed query parameters.
        methods: For each HTTP method, the scope that the caller's key needs, and the handler. The API sends the
            return value of the handler as JSON.
    """

    async def answer(request: Request) -> Response:
        scope, handler = methods["GET" if request.method == "HEAD" else request.method]
        status = 500  # for the audit log, if the handler raises
        try:
            response = await _answer(request, scope, handler, query)
            status = response.status_code
        finally:
            if scope == "admin":
                write_audit(request, handler.__name__, status)
        return response

    return _ApiRoute(path, answer, methods=list(methods))


async def _answer(request: Request, scope: Scope, handler: Handler, query: tuple[str, ...]) -> Response:
    try:
        await _authorize(request, scope)
        _check_query(request, query)
        return json(await handler(request))
    except (ApiError, Unavailable, ClientDisconnect) as error:
        return refusal_of(error)


def refusal_of(error: ApiError | Unavailable | ClientDisconnect) -> Response:
    """The response to a request that failed with `error`."""
    match error:
        case ApiError():
            return refusal(error.status, error.code, error.message, error.headers)
        case Unconfirmed():
            return refusal(503, "unconfirmed", f"{error}; it is safe to retry with the same idempotencyKey")
        case WrongType():
            return refusal(502, "malformed", f"Redis holds a value of the wrong type: {error}. Delete its key")
        case Impaired():
            return refusal(503, "unavailable", f"Not possible now: {error}", {"retry-after": "5"})
        case Unavailable():
            return refusal(503, "unavailable", f"Redis is not available: {error}", {"retry-after": "1"})
        case ClientDisconnect():  # the client does not receive this response; it only ends the request
            return refusal(400, "bad_request", "The connection closed before the body was complete")


def node_of(request: Request) -> Node:
    """The node that serves the request."""
    node: Node = request.app.state.node
    return node


async def read_body(request: Request, limit: int) -> Any:
    """Read the request's body: JSON of at most `limit` bytes.

    Raises:
        ApiError: The body is larger (413), encoded (415), or not JSON (400).
    """
    received = bytearray()
    encoding = content_encoding(request)
    if encoding is not None:
        raise ApiError(415, "unsupported_encoding", NOT_DECODED.format(encoding))
    if content_length(request) > limit:  # reject before reading the body
        raise ApiError(413, "too_large", TOO_LARGE.format(limit))
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise ApiError(413, "too_large", TOO_LARGE.format(limit))
    try:
        return json_text.loads(bytes(received))
    except ValueError as error:
        raise _not_json(bytes(received), error) from None


def _not_json(body: bytes, error: ValueError) -> ApiError:
    """The error for a body that is not JSON. It names the first byte that is not UTF-8, or the JSON error."""
    if body.startswith(GZIP):
        return ApiError(415, "unsupported_encoding", NOT_DECODED.format("gzip, though no header says so"))
    try:
        body.decode()
    except UnicodeDecodeError as found:
        return ApiError(400, "bad_request", f"The body is not UTF-8 text: byte {found.start} is invalid")
    return ApiError(400, "bad_request", f"The body is not JSON: {error}" if body else "The body is empty; send JSON")


def content_length(request: Request) -> int:
    """The Content-Length of the request; 0 if it has none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and length.isascii() and len(length) < 19 else 0


def content_encoding(request: Request) -> str | None:
    """The Content-Encoding of the request; None if it has none. Nodes do not decode bodies."""
    named = request.headers.get("content-encoding", "").strip().lower()
    return None if named in ("", "identity") else named[:60]


def parse_limit(text: str | None, most: int = MAX_LIMIT, default: int = DEFAULT_LIMIT) -> int:
    """Parse the query parameter `limit`, the number of items. `default` applies if `text` is None.

    Raises:
        ApiError: `text` is not a number from 1 to `most`.
    """
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise ApiError(400, "bad_request", f"limit must be a whole number from 1 to {most}")
    return int(text)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error response in the format of the API."""
    return json({"error": {"code": code, "message": message}}, status, headers)


async def _authorize(request: Request, scope: Scope) -> None:
    given = bearer(request.headers.get("authorization", ""))
    keys = node_of(request).api_keys
    key = keys.find(given.encode("latin-1")) or await _administrator(request, given)
    if key is None and not keys:
        raise ApiError(403, "api_off", "The API is off: this node has neither a GATEWAY_API_KEY nor GATEWAY_API_KEYS")
    if key is None:
        raise _unauthorized("Send the header Authorization: Bearer <GATEWAY_API_KEY>")
    request.state.key = key
    if not key.may(scope):
        raise ApiError(403, "forbidden", f"The key {key.name} does not have the scope {scope}")


def bearer(authorization: str) -> str:
    """The key or token in an Authorization header; "" if the header has none."""
    scheme, _, given = authorization.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


async def _administrator(request: Request, given: str) -> ApiKey | None:
    """The key that stands for the administrator's token `given`; None if `given` is not a JWT."""
    if given.count(".") != 2:
        return None
    try:
        identity = await node_of(request).authenticator.identify(given)
    except KeyServerUnavailable as error:
        raise ApiError(503, "unavailable", str(error), {"retry-after": "5"}) from None
    except AuthError as error:
        raise _unauthorized(str(error)) from None
    if not identity.is_admin or identity.user is None:
        raise ApiError(403, "forbidden", "The token is valid, but not an administrator's")
    return api_keys.administrator_key(identity.user)


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "unauthorized", message, {"www-authenticate": "Bearer"})


def api_key(request: Request) -> ApiKey:
    """The key of the request, or the key that stands for an administrator's token."""
    key: ApiKey = request.state.key
    return key


def audit(request: Request, **about: Any) -> None:
    """Add fields to the audit log entry of this request."""
    request.state.about = about


def write_audit(request: Request, act: str, status: int) -> None:
    """Write the audit log entry of an administrative request, whether it succeeded or was refused."""
    key: ApiKey | None = getattr(request.state, "key", None)
    about = {**request.path_params, **getattr(request.state, "about", {})}
    logger().info(
        "audit", key=key.name if key is not None else None, act=act, path=request.url.path[:AUDIT_CHARACTERS],
        about={name: str(value)[:AUDIT_CHARACTERS] for name, value in about.items() if value is not None},
        ip=request.client.host if request.client else None, status=status,
    )  # fmt: skip


def _check_query(request: Request, parameters: tuple[str, ...]) -> None:
    """Reject unknown query parameters, so that a misspelt filter is not ignored."""
    if not request.scope["query_string"]:  # the usual case for a publish
        return
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in parameters:
            raise ApiError(400, "bad_request", f"Unknown parameter {name[:60]!r}")
        if given.count(name) > 1:
            raise ApiError(400, "bad_request", f"Parameter {name!r} is given twice; send it once")


async def http_exception(request: Request, error: Exception) -> Response:
    """Convert Starlette's HTTP errors into the format of the API."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    match error.status_code:
        case 404:
            return refusal(
                404, "not_found", f"The gateway serves no page and no API at {request.url.path[:200]}", headers
            )
        case 405:
            message = f"{request.url.path[:200]} allows {headers.get('allow')}, not {request.method}"
            return refusal(405, "method_not_allowed", message, headers)
        case status:
            return refusal(status, "bad_request", str(error.detail), headers)


def internal_refusal() -> Response:
    """The response for an unexpected exception."""
    return refusal(500, "internal", "The request failed in the node; see its log")


async def internal_error(_request: Request, _failure: Exception) -> Response:
    """The response for an unexpected exception. Starlette raises the exception again, so that it is logged."""
    return internal_refusal()


EXCEPTION_HANDLERS: Final = {HTTPException: http_exception, Exception: internal_error}
