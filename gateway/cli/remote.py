"""The cluster as its HTTP API shows it, for the command line: what fails, fails as a sentence for a person."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
import orjson

DEFAULT_URL: Final = "http://127.0.0.1:8404"  # the load balancer's internal port in the local stack
PAGE_CLIENTS: Final = 1000
PAGE_TOPICS: Final = 1000

CONNECT_SECONDS: Final = 5.0
# Longer than a node waits for Redis, so that it is the node that says why.
ANSWER_SECONDS: Final = 30.0

Filters = dict[str, str | int | None]


class RemoteError(Exception):
    """What the cluster did not do: one sentence that says what, and what to do about it.

    `status` is that of the answer, None if there was none that a gateway would give.
    """

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Remote:
    """The API at `url`, asked with `key`; closed at the end of a `with`. `transport` replaces the network in tests.

    Every method raises `RemoteError`, and returns the API's own document: docs are at ``/api/openapi.json``.
    """

    def __init__(self, url: str, key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._http = httpx.Client(
            base_url=self.url,
            # Bytes: a key may be any text, and httpx would have it ASCII.
            headers={b"Authorization": f"Bearer {key}".encode()} if key else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # Given explicitly, it is not overruled by HTTP_PROXY: the API's address is an inner one.
            transport=transport or httpx.HTTPTransport(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    # ---- what can be asked

    def version(self) -> str:
        """The version of the node that answers; needs no key."""
        return str(self._ask("GET", "openapi.json", expect="info")["info"]["version"])

    def publish(self, message: dict[str, Any]) -> dict[str, Any]:
        """Publish one message."""
        return self._ask("POST", "publish", expect="results", body=orjson.dumps(message))

    def nodes(self) -> dict[str, Any]:
        """The living nodes."""
        return self._ask("GET", "nodes", expect="nodes")

    def topics(self, limit: int, after: str | None = None, contains: str | None = None) -> dict[str, Any]:
        """The first `limit` topics that have subscribers, over as many pages as that takes."""
        found: list[dict[str, Any]] = []
        while True:
            about = {"after": after, "contains": contains, "limit": min(limit - len(found), PAGE_TOPICS)}
            page = self._ask("GET", "topics", expect="topics", parameters=about)
            found += page["topics"]
            after = page.get("next")  # gateway 0.1.0 has no pages
            if after is None or len(found) >= limit:
                return {**page, "topics": found}

    def topic(self, topic: str) -> dict[str, Any]:
        """One topic."""
        return self._ask("GET", "topics", topic, expect="subscribers")

    def clients(self, filters: Filters, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """The first `limit` clients by these filters, over as many pages as that takes."""
        found: list[dict[str, Any]] = []
        while True:
            about = {**filters, "limit": min(limit - len(found), PAGE_CLIENTS), "cursor": cursor}
            page = self._ask("GET", "clients", expect="clients", parameters=about)
            found += page["clients"]
            cursor = page["next"]
            if cursor is None or len(found) >= limit:
                return {"clients": found, "next": cursor}

    def client(self, client_id: str) -> dict[str, Any]:
        """One client."""
        return self._ask("GET", "clients", client_id, expect="id")

    def disconnect_client(self, client_id: str) -> dict[str, Any]:
        """Have a client's socket closed."""
        return self._ask("DELETE", "clients", client_id, expect="disconnected")

    def disconnect_user(self, user: str) -> dict[str, Any]:
        """Have all sockets of a user closed."""
        return self._ask("DELETE", "users", user, "clients", expect="disconnected")

    def unsubscribe(self, client_id: str, topic: str) -> dict[str, Any]:
        """Take a topic from a client."""
        return self._ask("DELETE", "clients", client_id, "topics", topic, expect="unsubscribed")

    def revoke(self, document: dict[str, Any]) -> dict[str, Any]:
        """Refuse a token (``jti``), or all of a ``user``, until it ``expires``."""
        return self._ask("POST", "revocations", expect="until", body=orjson.dumps(document))

    def revocations(self) -> dict[str, Any]:
        """What is revoked."""
        return self._ask("GET", "revocations", expect="revocations")

    def drain(self, node: str) -> dict[str, Any]:
        """Have a node, by name or id, send its clients away and end."""
        return self._ask("POST", "nodes", node, "drain", expect="draining")

    def rebalance(self, seconds: float) -> dict[str, Any]:
        """Have nodes with more clients than the mean send their surplus to the others, over so many seconds."""
        return self._ask("POST", "rebalance", expect="moves", body=orjson.dumps({"seconds": seconds}))

    def services(self) -> dict[str, Any]:
        """All services."""
        return self._ask("GET", "services", expect="services")

    def service(self, name: str) -> dict[str, Any]:
        """One service."""
        return self._ask("GET", "services", name, expect="instances")

    # ---- how

    def _ask(
        self, method: str, *segments: str, expect: str, parameters: Filters | None = None, body: bytes | None = None
    ) -> dict[str, Any]:
        """The answer, an object with the member `expect`."""
        path = "/".join(map(_segment, segments))
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        try:
            answer = self._http.request(method, f"/api/{path}", params=given, content=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise RemoteError(
                f"Cannot reach {self.url} ({_reason(error)}): is the cluster up, and is --url (GATEWAY_URL) its "
                "internal address?"
            ) from None
        except httpx.HTTPError as error:
            unknown = "" if method == "GET" else "; it may be done or not, so look before you ask again"
            raise RemoteError(f"{self.url} gave no answer ({_reason(error)}){unknown}") from None
        try:
            document = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            document = None
        if answer.status_code != 200:
            raise self._refusal(answer.status_code, document)
        if not isinstance(document, dict) or expect not in document:
            raise self._stranger(200)
        return document

    def _refusal(self, status: int, document: Any) -> RemoteError:
        try:
            message = str(document["error"]["message"])
        except (KeyError, TypeError):
            if status == 413:
                return RemoteError("This is larger than the load balancer lets through", status)
            return self._stranger(status)
        match status:
            case 401 if self._key:
                return RemoteError(f"{self.url} does not take this key: GATEWAY_API_KEY must be the nodes' own", status)
            case 401:
                return RemoteError(f"{self.url} wants a key: set GATEWAY_API_KEY to the nodes' own", status)
            case 403 if document["error"].get("code") == "forbidden":
                return RemoteError(message, status)
            case 403:
                return RemoteError(
                    f"The API at {self.url} is off: start its nodes with a GATEWAY_API_KEY, and set the same here",
                    status,
                )
            case 503 if document["error"].get("code") != "unconfirmed":  # that was done, and says what to do
                return RemoteError(f"The cluster cannot do it now ({message}): ask again when /readyz says 200", status)
            case _:
                return RemoteError(message, status)

    def _stranger(self, status: int) -> RemoteError:
        return RemoteError(
            f"{self.url} answers {status}, and not as a gateway does: is --url (GATEWAY_URL) its internal address?"
        )


def _segment(name: str) -> str:
    # A topic may be called "..", which would be a step up.
    return quote(name, safe="") if name.strip(".") else "%2E" * len(name)


def _reason(error: Exception) -> str:
    """What the system says, without its number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or (
        "timed out" if isinstance(error, httpx.TimeoutException) else type(error).__name__
    )
