"""Checks the URL of a server before the client connects.  (pure)"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_SCHEMES: Final = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_UNSENDABLE: Final = re.compile(r"[\x00-\x20\x7f\\]")


def address(url: str) -> str:
    """Return the WebSocket URL for a URL that begins with ws, wss, http or https.

    Raises:
        TypeError: `url` is not a string.
        ValueError: `url` is invalid. The message never shows a user name or a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"the URL is of type {type(url).__name__}; it must be a str such as 'ws://localhost:8080/ws'")
    if _UNSENDABLE.search(url):
        raise ValueError("the URL contains a space, a backslash or a control character; write it percent-encoded")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        named = f"scheme {scheme!r}" if separator else "no scheme"
        raise ValueError(f"the URL has {named}; it must begin with ws://, wss://, http:// or https://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:  # an invalid port, IPv6 address or host name
        raise ValueError(f"the URL's host and port cannot be read: {error}") from None
    if not host:
        raise ValueError("the URL has no host; write one, as in 'ws://localhost:8080/ws'")
    if port == 0:
        raise ValueError("the URL has port 0; a server's port is between 1 and 65535")
    if parts.fragment:
        raise ValueError("the URL has a fragment (#…), which is never sent to a server; leave it out")
    if parts.username is not None and parts.password is None:
        raise ValueError("the URL has a user name without a password; give both or neither")
    return f"{_SCHEMES[scheme.lower()]}://{rest}"


def shown(url: str) -> str:
    """The URL for logs: without user name, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
