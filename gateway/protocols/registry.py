"""The protocols that clients can speak, by the WebSocket subprotocol with which they ask for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.protocols.native.protocol import NATIVE
from gateway.protocols.protocol import ClientProtocol

PROTOCOLS: Final[Mapping[str, ClientProtocol]] = {protocol.name: protocol for protocol in (NATIVE,)}


def choose(offered: Sequence[str]) -> tuple[ClientProtocol, str | None]:
    """The protocol for a client that offers these subprotocols, and the subprotocol for the response.

    Without a known one the client speaks the native protocol. The response has its first one even so: a client that
    offers subprotocols fails the connection if the response has none.
    """
    for name in offered:
        if name in PROTOCOLS:
            return PROTOCOLS[name], name
    return NATIVE, offered[0] if offered else None
