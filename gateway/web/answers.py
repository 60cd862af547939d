"""How the HTTP API is asked and answers: who may, what a body and a query may hold, and every refusal in one form."""

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
from starlette.types import Scope as Asked

from gateway.auth import apikeys
from gateway.auth.apikeys import ApiKey, Scope
from gateway.cluster.link import Impaired, Unavailable, Unconfirmed, WrongType
from gateway.core import protocol
from gateway.core.identity import AuthError, KeyServerUnavailable
from gateway.logs import logger
from gateway.node import Node

MAX_LIMIT: Final = 10_000  # items on one page
DEFAULT_LIMIT: Final = 1000
AUDIT_CHARACTERS: Final = 200  # of what the audit log tells of a request
SMALL_BYTES: Final = 4096  # a body of a few fields
TOO_LARGE: Final = "The body is larger than it may be: {} bytes"
GZIP: Final = b"\x1f\x8b"  # how its data begins (RFC 1952)
NOT_DECODED: Final = "The body is encoded (Content-Encoding: {}): send it without an encoding"

Handler = Callable[[Request], Awaitable[Any]]


class _Name(Convertor[str]):
    """A name in a path, ``{topic:name}``, whatever it holds.

    Starlette's own `path` knows no line breaks, and finds "a" where "a" with a line break behind was asked for.
    """

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """As it stands."""
        return value

    def to_string(self, value: str) -> str:
        """As it stands."""
        return value


register_url_convertor("name", _Name())


class _ApiRoute(Route):
    """A route that is compared with the path as it was sent, so that an encoded slash belongs to a name: the topic of
    ``/api/topics/a%2Fhistory`` is ``a/history``. The names are decoded after that, once.
    """

    def matches(self, scope: Asked) -> tuple[Match, Asked]:
        """Whether it serves this request, and the names in its path."""
        raw: bytes = scope["raw_path"] if scope["type"] == "http" else b""
        match, found = super().matches({**scope, "path": raw.decode("latin-1")})
        if found:
            found["path_params"] = {name: unquote(value) for name, value in found["path_params"].items()}
        return match, found


class ApiError(Exception):
    """A request that is not carried out, as the status and the words that say why."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


def resource(path: str, *query: str, **methods: tuple[Scope, Handler]) -> Route:
    """The route of everything that can be done at `path`: a method's handler, and the scope that its caller needs.

    `query`: the parameters that may stand in it. What a handler returns is sent as JSON. One route for all methods:
    of several, the answer to a method that is none of them would allow only the first's.
    """

    async def answer(request: Request) -> Response:
        scope, handler = methods["GET" if request.method == "HEAD" else request.method]
        status = 500  # if it fails in a way that is no answer's
        try:
            response = await _answer(request, scope, handler, query)
            status = response.status_code
        finally:
            if scope == "admin":
                _audit(request, handler.__name__, status)
        return response

    return _ApiRoute(path, answer, methods=list(methods))


async def _answer(request: Request, scope: Scope, handler: Handler, query: tuple[str, ...]) -> Response:
    try:
        await _authorize(request, scope)
        _check_query(request, query)
        return json(await handler(request))
    except ApiError as error:
        return refusal(error.status, error.code, error.message, error.headers)
    except Unconfirmed as error:
        return refusal(503, "unconfirmed", f"{error}; with the same idempotencyKey it is safe to ask again")
    except WrongType as error:
        return refusal(502, "malformed", f"Redis holds a value of another type for this: {error}. Delete its key")
    except Impaired as error:
        return refusal(503, "unavailable", f"Not possible now: {error}", {"retry-after": "5"})
    except Unavailable as error:
        return refusal(503, "unavailable", f"Redis is not available: {error}", {"retry-after": "1"})
    except ClientDisconnect:  # amid its body: nobody's fault here, and nobody reads the answer
        return refusal(400, "bad_request", "The connection ended before the whole body had arrived")


def node_of(request: Request) -> Node:
    """The node that was asked."""
    node: Node = request.app.state.node
    return node


async def body_of(request: Request, limit: int) -> Any:
    """The request's body, JSON of at most `limit` bytes.

    Raises:
        ApiError: It is larger (413), encoded (415), or no JSON (400).
    """
    received = bytearray()
    encoding = encoding_of(request)
    if encoding is not None:
        raise ApiError(415, "unsupported_encoding", NOT_DECODED.format(encoding))
    if announced_bytes(request) > limit:  # before any of it is read
        raise ApiError(413, "too_large", TOO_LARGE.format(limit))
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise ApiError(413, "too_large", TOO_LARGE.format(limit))
    try:
        return protocol.loads(bytes(received))
    except ValueError as error:
        raise _no_json(bytes(received), error) from None


def _no_json(body: bytes, error: ValueError) -> ApiError:
    """What a body that is not JSON is told: about its octets if those are no text, else where it stops to be JSON."""
    if body.startswith(GZIP):
        return ApiError(415, "unsupported_encoding", NOT_DECODED.format("gzip, though no header says so"))
    try:
        body.decode()
    except UnicodeDecodeError as found:
        return ApiError(400, "bad_request", f"The body is not text in UTF-8: octet {found.start} does not fit")
    return ApiError(400, "bad_request", f"The body is not JSON: {error}" if body else "The body is empty; send JSON")


def announced_bytes(request: Request) -> int:
    """The size that the request's head gives for the body; 0, if it gives none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and length.isascii() and len(length) < 19 else 0


def encoding_of(request: Request) -> str | None:
    """The encoding that the request's head names for the body, which nodes do not decode; None: it names none."""
    named = request.headers.get("content-encoding", "").strip().lower()
    return None if named in ("", "identity") else named[:60]


def limit_of(text: str | None, most: int = MAX_LIMIT, default: int = DEFAULT_LIMIT) -> int:
    """How many items the query's `limit` asks for; `default`, if it has none.

    Raises:
        ApiError: It is no number from 1 to `most`.
    """
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise ApiError(400, "bad_request", f"limit must be a whole number from 1 to {most}")
    return int(text)


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` as an answer."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal in the form that all of them have."""
    return json({"error": {"code": code, "message": message}}, status, headers)


async def _authorize(request: Request, scope: Scope) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    given = given.strip() if scheme.lower() == "bearer" else ""
    keys = node_of(request).api_keys
    key = keys.find(given.encode("latin-1")) or await _administrator(request, given)
    if key is None and not keys:
        raise ApiError(403, "api_off", "The API is off: this node has neither a GATEWAY_API_KEY nor GATEWAY_API_KEYS")
    if key is None:
        raise _unauthorized("Send the header Authorization: Bearer <GATEWAY_API_KEY>")
    request.state.key = key
    if not key.may(scope):
        raise ApiError(403, "forbidden", f"The key {key.name} has not the scope {scope}")


async def _administrator(request: Request, given: str) -> ApiKey | None:
    """What `given` is worth as an administrator's token; None, if it is no token at all."""
    if given.count(".") != 2:
        return None
    try:
        who = await node_of(request).trust.identify(given)
    except KeyServerUnavailable as error:
        raise ApiError(503, "unavailable", str(error), {"retry-after": "5"}) from None
    except AuthError as error:
        raise _unauthorized(str(error)) from None
    if not who.is_admin or who.user is None:
        raise ApiError(403, "forbidden", "The token is good, but not an administrator's")
    return apikeys.of_administrator(who.user)


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "unauthorized", message, {"www-authenticate": "Bearer"})


def key_of(request: Request) -> ApiKey:
    """The key that was given, or what an administrator's token stands for."""
    key: ApiKey = request.state.key
    return key


def audit(request: Request, **about: Any) -> None:
    """Have the audit line of this request tell, beside its path, what it is about."""
    request.state.about = about


def _audit(request: Request, act: str, status: int) -> None:
    """One line for each administrative act, done or refused: who, what, on what, from where, and what came of it."""
    key: ApiKey | None = getattr(request.state, "key", None)
    about = {**request.path_params, **getattr(request.state, "about", {})}
    logger().info(
        "audit", key=key.name if key is not None else None, act=act, path=request.url.path[:AUDIT_CHARACTERS],
        about={name: str(value)[:AUDIT_CHARACTERS] for name, value in about.items() if value is not None},
        ip=request.client.host if request.client else None, status=status,
    )  # fmt: skip


def _check_query(request: Request, parameters: tuple[str, ...]) -> None:
    """A misspelt filter must not be read as none."""
    if not request.scope["query_string"]:  # as with all that publish
        return
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in parameters:
            raise ApiError(400, "bad_request", f"Unknown parameter {name[:60]!r}")
        if given.count(name) > 1:
            raise ApiError(400, "bad_request", f"Parameter {name!r} is given twice")


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, in our form."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    match error.status_code:
        case 404:
            return refusal(
                404, "not_found", f"The gateway serves no page and no API at {request.url.path[:200]}", headers
            )
        case 405:
            message = f"{request.url.path[:200]} takes {headers.get('allow')}, not {request.method}"
            return refusal(405, "method_not_allowed", message, headers)
        case status:
            return refusal(status, "bad_request", str(error.detail), headers)


async def internal_error(_request: Request, _failure: Exception) -> Response:
    """A fault of ours, in our form; Starlette raises it again for the log."""
    return refusal(500, "internal", "The node failed at this; its log says how")


EXCEPTION_HANDLERS: Final = {HTTPException: http_exception, Exception: internal_error}
