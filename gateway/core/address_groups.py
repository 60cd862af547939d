"""The source of a connection, by which limits count connections.  (pure)"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

# One user has a whole IPv6 network (RFC 6177), so a limit per address would have no effect.
IPV6_PREFIX: Final = 64


class AddressGroups:
    """Maps addresses to sources. `trusted`: the addresses and networks of our proxies, which are not limited."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted = [ipaddress.ip_network(network, strict=False) for network in trusted]
        self.of = lru_cache(maxsize=4096)(self._of)  # called when a client connects and when it disconnects

    def _of(self, ip: str) -> str | None:
        """The source of `ip`: its IPv4 address, or the /64 network of its IPv6 address.

        None if `ip` is not an address, or is a trusted proxy that did not forward a client address.
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
