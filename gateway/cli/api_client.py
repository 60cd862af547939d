"""A client of the cluster's HTTP API for the commands. Its errors are sentences for people."""

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
# Longer than a node waits for Redis, so that the node can report the reason.
ANSWER_SECONDS: Final = 30.0

Filters = dict[str, str | int | None]


class ApiClientError(Exception):
    """A request failed. The message is one sentence with the reason and the remedy.

    `status` is the HTTP status; None if there was no response of a gateway.
    """

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class ApiClient:
    """The HTTP API at `url`, used with `key` as a context manager. `transport` replaces the network in tests.

    Every method returns the JSON document of the API (see ``/api/openapi.json``), or raises `ApiClientError`.
    """

    def __init__(self, url: str, key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._http = httpx.Client(
            base_url=self.url,
            # As bytes, since httpx accepts only ASCII text, and a key may be any text.
            headers={b"Authorization": f"Bearer {key}".encode()} if key else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # An explicit transport ignores HTTP_PROXY, since the API has an internal address.
            transport=transport or httpx.HTTPTransport(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    # ---- operations

    def version(self) -> str:
        """The version of the node that answers. It needs no key."""
        return str(self._ask("GET", "openapi.json", expect="info")["info"]["version"])

    def publish(self, message: dict[str, Any]) -> dict[str, Any]:
        """Publish one message."""
        return self._ask("POST", "publish", expect="results", body=orjson.dumps(message))

    def nodes(self) -> dict[str, Any]:
        """The living nodes."""
        return self._ask("GET", "nodes", expect="nodes")

    def topics(self, limit: int, after: str | None = None, contains: str | None = None) -> dict[str, Any]:
        """The first `limit` topics that have subscribers, from as many pages as necessary."""
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
        """The first `limit` clients that match the filters, from as many pages as necessary."""
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
        """Close a client's socket."""
        return self._ask("DELETE", "clients", client_id, expect="disconnected")

    def disconnect_user(self, user: str) -> dict[str, Any]:
        """Close all sockets of a user."""
        return self._ask("DELETE", "users", user, "clients", expect="disconnected")

    def unsubscribe(self, client_id: str, topic: str) -> dict[str, Any]:
        """Unsubscribe a client from a topic."""
        return self._ask("DELETE", "clients", client_id, "topics", topic, expect="unsubscribed")

    def revoke(self, document: dict[str, Any]) -> dict[str, Any]:
        """Revoke one token (``jti``) or all tokens of a ``user``, until ``expires``."""
        return self._ask("POST", "revocations", expect="until", body=orjson.dumps(document))

    def revocations(self) -> dict[str, Any]:
        """The revocations."""
        return self._ask("GET", "revocations", expect="revocations")

    def drain(self, node: str) -> dict[str, Any]:
        """Drain a node, given by name or id."""
        return self._ask("POST", "nodes", node, "drain", expect="draining")

    def rebalance(self, seconds: float) -> dict[str, Any]:
        """Have the nodes above the mean move surplus clients to the others, over `seconds` seconds."""
        return self._ask("POST", "rebalance", expect="moves", body=orjson.dumps({"seconds": seconds}))

    def reload(self) -> dict[str, Any]:
        """Have every node read its topic rules and keys again."""
        return self._ask("POST", "reload", expect="reloaded")

    def services(self) -> dict[str, Any]:
        """All services."""
        return self._ask("GET", "services", expect="services")

    def service(self, name: str) -> dict[str, Any]:
        """One service."""
        return self._ask("GET", "services", name, expect="instances")

    # ---- requests

    def _ask(
        self, method: str, *segments: str, expect: str, parameters: Filters | None = None, body: bytes | None = None
    ) -> dict[str, Any]:
        """Make a request and return its response, an object with the member `expect`."""
        path = "/".join(map(_segment, segments))
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        try:
            answer = self._http.request(method, f"/api/{path}", params=given, content=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ApiClientError(
                f"Cannot reach {self.url} ({_reason(error)}): start the cluster, or set --url (GATEWAY_URL) to its "
                "internal address"
            ) from None
        except httpx.HTTPError as error:
            unknown = "" if method == "GET" else "; it may have been done or not, so check before you retry"
            raise ApiClientError(f"{self.url} did not answer ({_reason(error)}){unknown}") from None
        try:
            document = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            document = None
        if answer.status_code != 200:
            raise self._refusal(answer.status_code, document)
        if not isinstance(document, dict) or expect not in document:
            raise self._not_a_gateway(200)
        return document

    def _refusal(self, status: int, document: Any) -> ApiClientError:
        try:
            message = str(document["error"]["message"])
        except (KeyError, TypeError):
            if status == 413:
                return ApiClientError("The request is larger than the load balancer allows", status)
            return self._not_a_gateway(status)
        match status:
            case 401 if self._key:
                return ApiClientError(f"{self.url} rejects this key: set GATEWAY_API_KEY to a key of the nodes", status)
            case 401:
                return ApiClientError(f"{self.url} needs a key: set GATEWAY_API_KEY to a key of the nodes", status)
            case 403 if document["error"].get("code") == "forbidden":
                return ApiClientError(message, status)
            case 403:
                return ApiClientError(
                    f"The API at {self.url} is off: start its nodes with a GATEWAY_API_KEY, and set the same key here",
                    status,
                )
            case 503 if document["error"].get("code") != "unconfirmed":  # its message names the remedy itself
                return ApiClientError(
                    f"The cluster cannot do this now ({message}): retry when /readyz answers 200", status
                )
            case _:
                return ApiClientError(message, status)

    def _not_a_gateway(self, status: int) -> ApiClientError:
        return ApiClientError(
            f"{self.url} answers {status}, but it is not a gateway: set --url (GATEWAY_URL) to the internal address"
        )


def _segment(name: str) -> str:
    # A topic may have the name "..", which must not become a path step.
    return quote(name, safe="") if name.strip(".") else "%2E" * len(name)


def _reason(error: Exception) -> str:
    """The error message of the operating system, without its number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or (
        "timed out" if isinstance(error, httpx.TimeoutException) else type(error).__name__
    )
