"""Addresses as limits count them.  (pure)"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

# Whoever has one IPv6 address has all of its network (RFC 6177): counted one by one they would have no limit.
IPV6_PREFIX: Final = 64


class Sources:
    """Tells whom an address counts for. `trusted`: our proxies' addresses and networks, which count for nobody."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted = [ipaddress.ip_network(network, strict=False) for network in trusted]
        self.of = lru_cache(maxsize=4096)(self._of)  # asked when a client comes, and again when it goes

    def _of(self, ip: str) -> str | None:
        """The IPv4 address, or the /64 of the IPv6 address, that `ip` is.

        None for what is no address, and for a trusted proxy: it has not said for whom it asks, or asks for itself.
        """
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._trusted):
            return None
        if isinstance(address, ipaddress.IPv4Address):
            return str(address)
        return str(ipaddress.ip_network((int(address), IPV6_PREFIX), strict=False))
