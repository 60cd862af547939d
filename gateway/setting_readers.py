"""Readers of the values of settings: each takes a variable's text and returns its value, or raises ValueError.

The error's text completes the sentence "GATEWAY_X must be ...".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from gateway.core.urls import parse_redis


def integer(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return read


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A reader of seconds from `low` to `high`, with at most six digits after the point."""

    def read(text: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text) or not low <= float(text) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return float(text)

    return read


def flag(text: str) -> bool:
    """0 or 1."""
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def matching(pattern: str, what: str) -> Callable[[str], str]:
    """A reader of texts that match `pattern` as a whole; `what` names them in the error."""

    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(what)
        return text

    return read


def secret(text: str) -> str:
    """A text in UTF-8."""
    if text.encode(errors="ignore").decode() != text:  # bytes in the environment that are not UTF-8
        raise ValueError("text in UTF-8")
    return text


def redis_url(text: str) -> str:
    """The URL of a Redis, validated."""
    parse_redis(text)
    return text


_HOST = r"[a-z0-9_](?:[a-z0-9_.\-]*[a-z0-9_])?\.?|\[[0-9a-f:.]{2,45}\]"
_ORIGIN = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.\-]*)://(?P<host>{_HOST})?(?::(?P<port>\d{{1,5}}))?")


def _origin(text: str) -> str | None:
    """`text` in lower case, as in the Origin header of a browser (RFC 6454, 6.2); None: not an origin."""
    if text == "null":
        return text
    parts = _ORIGIN.fullmatch(text.lower())
    if parts is None:
        return None
    scheme, host, port = parts["scheme"], parts["host"], parts["port"]
    # Some schemes of applications have origins without a host: file://
    if host is None and (scheme in ("http", "https") or port is not None):
        return None
    if port is not None and not 0 < int(port) < 65536:
        return None
    return text.lower()


def origins(text: str) -> tuple[str, ...]:
    """Origins of pages, separated by commas."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        origin = _origin(part)
        if origin is None:
            raise ValueError(
                "origins such as https://app.example, capacitor://localhost, file:// or null, separated by commas and "
                f"without a path; {part!r} is not one"
            )
        found.append(origin)
    return tuple(found)


def hosts(text: str) -> tuple[str, ...]:
    """Host names, separated by commas."""
    names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for host in names:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
            raise ValueError(
                f"names such as live.example or *.example, without port, separated by commas; {host!r} is not one"
            )
    return names


def address(text: str) -> str:
    """host:port."""
    match = re.fullmatch(r"([A-Za-z0-9.\-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]):(\d{1,5})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError("host:port, with IPv6 in brackets: 10.0.0.7:9000, [fd00::7]:9000")
    return text


def networks(text: str) -> tuple[str, ...]:
    """IP addresses and networks, separated by commas."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for network in found:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ValueError(f"addresses or networks separated by commas; {network!r} is not one") from None
    return found
