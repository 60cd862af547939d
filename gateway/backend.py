"""The HTTP back end behind GATEWAY_BACKEND_URL: few calls at once, each with a deadline, none while it is ill.

docs/backend.md is the contract. Every call is signed, so that the back end knows that it was this gateway that called
(and what it says of its client is proved). What is sent twice: a call that the back end cannot have seen, and one
that does no harm twice. Nothing else.
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

from gateway.core import protocol
from gateway.core.breaker import Breaker
from gateway.core.numbers import InfiniteError, NumberError
from gateway.core.protocol import Json
from gateway.logs import logger
from gateway.metrics import Metrics

SIGNATURE: Final = "gateway-signature"
OPEN_SECONDS: Final = 2.0  # that the breaker leaves it alone at first: a deploy takes seconds, not minutes
MAX_WAITING: Final = 1000  # calls that wait for one of the connections; one more is refused
TRIES: Final = 2
PAUSE_SECONDS: Final = 0.05  # before the second try, and at most twice that
KEPT_SECONDS: Final = 2.0  # an idle connection: servers close theirs after 5, and a call must not meet that
ENVELOPE_LEVELS: Final = 4  # of JSON that an answer is put into on its way to a client

_RETRIED: Final = frozenset({502, 503, 504})
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class BackendError(Exception):
    """The back end gave no answer that can be used. Of a call that changes something nobody knows whether it did."""


class BackendAway(BackendError):
    """It was not reached, so nothing has happened there: safe to ask again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the back end said: below 500, or 501."""

    status: int
    body: Json  # None if there was none
    max_age: float | None  # seconds for which it holds, as its Cache-Control says; 0: it is not to be kept
    exact: str | None = None  # the body's JSON as it stands, if it has integers beyond 64 bits; then `body` is None

    @property
    def content(self) -> Json:
        """What is written for a client: no integer in it is rounded."""
        return self.body if self.exact is None else orjson.Fragment(self.exact)

    @property
    def good(self) -> bool:
        """Whether it did what it was asked for."""
        return 200 <= self.status < 300

    @property
    def message(self) -> str | None:
        """The sentence for people in a refusal: `{"error": {"message": …}}`."""
        match self.body:
            case {"error": {"message": str(message)}}:
                return message[:500]
        return None


class Backend:
    """The back end at `url`; `now` gives seconds since 1970. Its connections live until `close`."""

    def __init__(
        self, url: str, *, secret: str, timeout_seconds: float, connections: int, max_answer_bytes: int,
        metrics: Metrics, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._url = url.rstrip("/")
        self._secret = secret.encode()
        self.timeout_seconds = timeout_seconds
        self._max_answer_bytes = max_answer_bytes
        self._metrics = metrics
        self._now = now
        self._log = logger()
        self._breaker = Breaker(recoveries=None, open_seconds=OPEN_SECONDS)
        self._slots = asyncio.Semaphore(connections)
        self._waiting = 0
        self._http = httpx.AsyncClient(
            # Half of the deadline for a connect, so that a second try finds time. The whole is bounded by `_call`.
            timeout=httpx.Timeout(timeout_seconds, connect=timeout_seconds / 2),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=KEPT_SECONDS),
            # It speaks for all clients: what a cookie would remember of one is nothing to the next.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": "websocket-gateway", "accept": "application/json"},
            trust_env=False,
        )

    @property
    def waiting(self) -> int:
        """Calls that wait for a connection."""
        return self._waiting

    @property
    def open(self) -> bool:
        """Whether the breaker leaves it alone."""
        return self._breaker.state == "open"

    async def get(self, target: str) -> Answer:
        """What is at `target`: a path with its query, both percent-encoded, behind the back end's URL.

        Raises:
            BackendAway: It was not reached.
            BackendError: It gave no usable answer.
        """
        return await self._call("GET", target, None, again=True)

    async def post(self, path: str, document: Json, *, idempotent: bool = False) -> Answer:
        """What it answers to `document`; `idempotent`: that it is asked twice does no harm.

        Raises:
            BackendAway: It was not reached.
            BackendError: It gave no usable answer; unless `idempotent`, it may have done what was asked.
        """
        return await self._call("POST", path, orjson.dumps(document), again=idempotent)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _call(self, method: str, target: str, content: bytes | None, *, again: bool) -> Answer:
        loop = asyncio.get_running_loop()
        if not self._breaker.allows(loop.time()):
            self._metrics.backend_calls.labels("left_alone").inc()
            raise BackendAway("the back end has failed again and again, and is left alone for a while")
        if self._waiting >= MAX_WAITING:
            self._metrics.backend_calls.labels("refused").inc()
            raise BackendAway(f"{MAX_WAITING} calls wait for the back end already")
        started = loop.time()
        at_work = False
        try:
            async with asyncio.timeout(self.timeout_seconds):
                self._waiting += 1
                try:
                    await self._slots.acquire()
                finally:
                    self._waiting -= 1
                try:
                    at_work = True
                    answer = await self._try(method, target, content, again=again)
                finally:
                    self._slots.release()
        except TimeoutError:
            self._failed("late")
            if at_work:
                raise BackendError(f"the back end did not answer within {self.timeout_seconds:g} s") from None
            raise BackendAway("the back end is too busy") from None
        except BackendError as error:
            self._failed("away" if isinstance(error, BackendAway) else "failed")
            raise
        self._succeeded()
        self._metrics.backend_calls.labels("answered").inc()
        self._metrics.backend_seconds.observe(loop.time() - started)
        return answer

    async def _try(self, method: str, target: str, content: bytes | None, *, again: bool) -> Answer:
        for left in reversed(range(TRIES)):
            try:
                answer = await self._send(method, target, content)
            except _NEVER_SENT as error:
                if not left:
                    raise BackendAway(f"the back end was not reached: {error!r}") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not (again and left):
                    raise BackendError(f"the back end broke off: {error!r}") from None
            else:
                if not (again and left and answer.status in _RETRIED):
                    if answer.status >= 500 and answer.status != 501:
                        raise BackendError(f"the back end answered {answer.status}")
                    return answer
            await asyncio.sleep(random.uniform(PAUSE_SECONDS, 2 * PAUSE_SECONDS))
        raise AssertionError

    async def _send(self, method: str, target: str, content: bytes | None) -> Answer:
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
                    raise BackendError(f"the back end's answer has more than {self._max_answer_bytes} bytes")
        finally:
            await response.aclose()
        return _answer(response.status_code, bytes(received), _max_age(response))

    # The breaker counts failures within minutes. Of the thousands of calls of some minutes a few may fail; that several
    # in a row do is what says that it is ill.

    def _succeeded(self) -> None:
        was = self._breaker.state
        self._breaker.succeeded(asyncio.get_running_loop().time())
        if self._breaker.state == "closed":
            self._breaker.reset()
            if was != "closed":
                self._log.info("back end answers again")

    def _failed(self, result: str) -> None:
        self._metrics.backend_calls.labels(result).inc()
        was = self._breaker.state
        self._breaker.failed(asyncio.get_running_loop().time())
        if was != "open" and self._breaker.state == "open":
            self._log.warning("back end left alone", last=result)


def sign(secret: bytes, seconds: int, method: str, target: bytes, content: bytes) -> str:
    """The signature of a call at `seconds` since 1970: HMAC-SHA256, hex, of ``{seconds}.{method}.{target}.{body}``.

    `target` is the path with its query, as it stands in the request line.
    """
    signed = b"%d.%b.%b.%b" % (seconds, method.encode(), target, content)
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


def _answer(status: int, text: bytes, max_age: float | None) -> Answer:
    try:
        return Answer(status, protocol.loads(text, ENVELOPE_LEVELS) if text else None, max_age)
    except InfiniteError as error:
        raise BackendError(f"the back end's answer cannot be read: {error}") from None
    except NumberError:
        return Answer(status, None, max_age, text.decode())
    except ValueError as error:
        if 200 <= status < 300:
            raise BackendError(f"the back end's answer is not JSON: {error}") from None
        return Answer(status, None, max_age)  # a proxy's page; the status says enough


def _max_age(response: httpx.Response) -> float | None:
    control = response.headers.get("cache-control", "").lower()
    directives = dict(part.strip().partition("=")[::2] for part in control.split(","))
    if not directives.keys().isdisjoint(("no-store", "no-cache", "private")):
        return 0.0
    for name in ("s-maxage", "max-age"):
        if re.fullmatch(r"\d{1,9}", directives.get(name, "")):
            return float(directives[name])
    return None
