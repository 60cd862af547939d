"""Client of the HTTP back end at GATEWAY_BACKEND_URL: limited concurrency, a deadline per call, a circuit breaker.

docs/how-to/answer-from-your-back-end.md is the contract. Every call is signed, which proves to the back end that this
gateway sent it and that the data about its client is genuine. The gateway
retries a call only if it is idempotent or never reached the back end.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx
import orjson

from gateway.core import json_text
from gateway.core.circuit_breaker import CircuitBreaker
from gateway.core.json_numbers import InfiniteError, NumberError
from gateway.core.json_text import Json
from gateway.logging import logger
from gateway.metrics import Metrics

SIGNATURE: Final = "gateway-signature"
OPEN_SECONDS: Final = 2.0  # first open time of the breaker: a deployment takes seconds, not minutes
MAX_WAITING: Final = 1000  # calls that wait for a connection; further calls are rejected
ATTEMPTS: Final = 2
PAUSE_SECONDS: Final = 0.05  # shortest pause before a retry; the longest is twice that
KEPT_SECONDS: Final = (
    2.0  # idle connections are closed after this: servers close theirs after 5 s, during a call perhaps
)
ENVELOPE_LEVELS: Final = 4  # JSON levels of the message that encloses an answer

_RETRIED: Final = frozenset({502, 503, 504})
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class BackendError(Exception):
    """The back end gave no valid answer. The outcome of a call that changes data is unknown."""


class BackendUnreachable(BackendError):
    """The back end was not reached, so nothing has happened there: it is safe to retry."""


@dataclass(frozen=True, slots=True)
class BackendResponse:
    """An answer of the back end with a status below 500, or 501."""

    status: int
    body: Json  # None: no body
    max_age: float | None  # seconds, from Cache-Control; 0: do not cache
    exact: str | None = None  # the JSON text, if it has integers beyond 64 bits; `body` is then None

    @property
    def content(self) -> Json:
        """The content for a client, in which no integer is rounded."""
        return self.body if self.exact is None else orjson.Fragment(self.exact)

    @property
    def is_success(self) -> bool:
        """Whether the call succeeded (2xx)."""
        return 200 <= self.status < 300

    @property
    def message(self) -> str | None:
        """The message of an error answer, `{"error": {"message": …}}`, or None."""
        match self.body:
            case {"error": {"message": str(message)}}:
                return message[:500]
        return None


class Backend:
    """Client of the back end at `url`; `now` gives seconds since 1970. Its connections stay open until `close`."""

    def __init__(
        self, url: str, *, secret: str, timeout_seconds: float, connections: int, max_answer_bytes: int,
        metrics: Metrics, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._url = url.rstrip("/")
        self.replace_secret(secret)
        self.timeout_seconds = timeout_seconds
        self._max_answer_bytes = max_answer_bytes
        self._metrics = metrics
        self._now = now
        self._log = logger()
        self._breaker = CircuitBreaker(recoveries=None, open_seconds=OPEN_SECONDS)
        self._slots = asyncio.Semaphore(connections)
        self._waiting = 0
        self._http = httpx.AsyncClient(
            # A connect may take half of the deadline, which leaves time for a retry. `_call` limits the whole.
            timeout=httpx.Timeout(timeout_seconds, connect=timeout_seconds / 2),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=KEPT_SECONDS),
            # No cookies: the connections are shared by all clients.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": "websocket-gateway", "accept": "application/json"},
            trust_env=False,
        )
        metrics.read(
            {"gateway_backend_waiting": lambda: self.waiting_calls, "gateway_backend_open": lambda: self.is_open}, {}
        )

    def replace_secret(self, secret: str) -> None:
        """Sign the next calls with `secret`; "": do not sign them."""
        self._secret = secret.encode()

    @property
    def waiting_calls(self) -> int:
        """Calls that wait for a connection."""
        return self._waiting

    @property
    def is_open(self) -> bool:
        """Whether the circuit breaker is open."""
        return self._breaker.state == "open"

    async def get(self, target: str) -> BackendResponse:
        """GET `target`: a path with its query, both percent-encoded, appended to the back end's URL.

        Raises:
            BackendUnreachable: The back end was not reached.
            BackendError: The back end gave no valid answer.
        """
        return await self._call("GET", target, None, retry=True)

    async def post(self, path: str, document: Json, *, idempotent: bool = False) -> BackendResponse:
        """POST `document`; `idempotent`: the call may be retried.

        Raises:
            BackendUnreachable: The back end was not reached.
            BackendError: The back end gave no valid answer; it may have executed the call.
        """
        return await self._call("POST", path, orjson.dumps(document), retry=idempotent)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _call(self, method: str, target: str, content: bytes | None, *, retry: bool) -> BackendResponse:
        loop = asyncio.get_running_loop()
        if not self._breaker.allows(loop.time()):
            self._metrics.backend_calls.labels("left_alone").inc()
            raise BackendUnreachable("the circuit breaker of the back end is open after repeated failures: retry later")
        if self._waiting >= MAX_WAITING:
            self._metrics.backend_calls.labels("refused").inc()
            raise BackendUnreachable(
                f"the limit of {MAX_WAITING} waiting calls to the back end is reached: retry later"
            )
        started = loop.time()
        called = False
        try:
            async with asyncio.timeout(self.timeout_seconds):
                self._waiting += 1
                try:
                    await self._slots.acquire()
                finally:
                    self._waiting -= 1
                try:
                    called = True
                    answer = await self._try(method, target, content, retry=retry)
                finally:
                    self._slots.release()
        except TimeoutError:
            self._failed("late")
            if called:
                raise BackendError(f"the back end did not answer within {self.timeout_seconds:g} s") from None
            raise BackendUnreachable(
                f"no connection to the back end was free within {self.timeout_seconds:g} s"
            ) from None
        except BackendError as error:
            self._failed("away" if isinstance(error, BackendUnreachable) else "failed")
            raise
        self._succeeded()
        self._metrics.backend_calls.labels("answered").inc()
        self._metrics.backend_seconds.observe(loop.time() - started)
        return answer

    async def _try(self, method: str, target: str, content: bytes | None, *, retry: bool) -> BackendResponse:
        for left in reversed(range(ATTEMPTS)):
            try:
                answer = await self._send(method, target, content)
            except _NEVER_SENT as error:
                if not left:
                    raise BackendUnreachable(f"the back end was not reached: {error!r}") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not (retry and left):
                    raise BackendError(f"the connection to the back end failed: {error!r}") from None
            else:
                if not (retry and left and answer.status in _RETRIED):
                    if answer.status >= 500 and answer.status != 501:
                        raise BackendError(f"the back end answered {answer.status}")
                    return answer
            await asyncio.sleep(random.uniform(PAUSE_SECONDS, 2 * PAUSE_SECONDS))
        raise AssertionError

    async def _send(self, method: str, target: str, content: bytes | None) -> BackendResponse:
        headers = {} if content is None else {"content-type": "application/json"}
        request = self._http.build_request(method, self._url + target, content=content, headers=headers)
        if self._secret:
            seconds = int(self._now())
            signature = sign(self._secret, seconds, method, request.url.raw_path, content or b"")
            request.headers[SIGNATURE] = f"t={seconds},v1={signature}"
        response = await self._http.send(request, stream=True)
        try:
            received = bytearray()
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > self._max_answer_bytes:
                    raise BackendError(f"the back end's answer is over the limit of {self._max_answer_bytes} bytes")
        finally:
            await response.aclose()
        return _answer(response.status_code, bytes(received), _max_age(response))

    # The breaker counts failures within minutes. A few of thousands of calls may fail in that time, so each success
    # resets it: only several failures in a row open it.

    def _succeeded(self) -> None:
        before = self._breaker.state
        self._breaker.succeeded(asyncio.get_running_loop().time())
        if self._breaker.state == "closed":
            self._breaker.reset()
            if before != "closed":
                self._log.info("back end recovered")

    def _failed(self, result: str) -> None:
        self._metrics.backend_calls.labels(result).inc()
        before = self._breaker.state
        self._breaker.failed(asyncio.get_running_loop().time())
        if before != "open" and self._breaker.state == "open":
            self._log.warning("back end circuit breaker opened", last=result)


def sign(secret: bytes, seconds: int, method: str, target: bytes, content: bytes) -> str:
    """Sign a call at `seconds` since 1970: the hex HMAC-SHA256 of ``{seconds}.{method}.{target}.{body}``.

    `target` is the path with its query, exactly as in the request line.
    """
    signed = b"%d.%b.%b.%b" % (seconds, method.encode(), target, content)
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


def _answer(status: int, text: bytes, max_age: float | None) -> BackendResponse:
    try:
        return BackendResponse(status, json_text.loads(text, ENVELOPE_LEVELS) if text else None, max_age)
    except InfiniteError as error:
        raise BackendError(f"the back end's answer cannot be read: {error}") from None
    except NumberError:
        return BackendResponse(status, None, max_age, text.decode())
    except ValueError as error:
        if 200 <= status < 300:
            raise BackendError(f"the back end's answer is not JSON: {error}") from None
        return BackendResponse(status, None, max_age)  # for example an error page of a proxy: the status is enough


def _max_age(response: httpx.Response) -> float | None:
    control = response.headers.get("cache-control", "").lower()
    directives = dict(part.strip().partition("=")[::2] for part in control.split(","))
    if not directives.keys().isdisjoint(("no-store", "no-cache", "private")):
        return 0.0
    for name in ("s-maxage", "max-age"):
        if re.fullmatch(r"\d{1,9}", directives.get(name, "")):
            return float(directives[name])
    return None
