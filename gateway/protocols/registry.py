"""The protocols that clients can speak, by the WebSocket subprotocol with which they ask for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.protocols.centrifugo import protocol as centrifugo
from gateway.protocols.native.protocol import NATIVE
from gateway.protocols.protocol import ClientProtocol

PROTOCOLS: Final[Mapping[str, ClientProtocol]] = {protocol.name: protocol for protocol in (NATIVE,)}
CENTRIFUGO: Final[Mapping[str, ClientProtocol]] = {each.name: each for each in (centrifugo.JSON, centrifugo.PROTOBUF)}
UNIDIRECTIONAL: Final = centrifugo.UNIDIRECTIONAL
UNIDIRECTIONAL_PATH: Final = "/connection/uni_websocket"


def choose(offered: Sequence[str]) -> tuple[ClientProtocol, str | None]:
    """The protocol for a client that offers these subprotocols, and the subprotocol for the response.

    Without a known one the client speaks the native protocol. The response has its first one even so: a client that
    offers subprotocols fails the connection if the response has none.
    """
    for name in offered:
        if name in PROTOCOLS:
            return PROTOCOLS[name], name
    return NATIVE, offered[0] if offered else None


def choose_centrifugo(path: str, offered: Sequence[str], query: Mapping[str, str]) -> tuple[ClientProtocol, str | None]:
    """The same for a client of Centrifugo's protocol. Without a known subprotocol its query may ask for Protobuf."""
    if path == UNIDIRECTIONAL_PATH:
        return UNIDIRECTIONAL, None
    for name in offered:
        if name in CENTRIFUGO:
            return CENTRIFUGO[name], name
    protobuf = "protobuf" in (query.get("format"), query.get("cf_protocol"))
    return (centrifugo.PROTOBUF if protobuf else centrifugo.JSON), None
